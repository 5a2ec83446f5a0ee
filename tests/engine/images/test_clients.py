"""Images through a real engine process, driven by the unmodified SDK."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker
from tinker.types import EncodedTextChunk, ImageAssetPointerChunk, ImageChunk

from tests.support.clients import new_client, train
from tests.support.engine import KEY, MODEL, RunningEngine, datum, running_engine
from tests.support.processes import PATIENCE
from tests.support.seeing_models import (
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    make_seeing,
    picture,
)

pytestmark = pytest.mark.engine

WIDE, SQUARE = picture(40, 16, 1), picture(24, 24, 2, "JPEG")
TOKENS = {WIDE: 10, SQUARE: 9}


@pytest.fixture(
    scope="module", params=[pytest.param("qwen3_vl", marks=pytest.mark.long), "qwen3_5"]
)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    folder = make_seeing(tmp_path_factory.mktemp("model"), request.param)
    with running_engine(tmp_path_factory.mktemp("engine"), folder) as running:
        yield running


@pytest.fixture(scope="module")
def service(engine: RunningEngine) -> Iterator[tinker.ServiceClient]:
    with engine.client() as client:
        yield client


def image_chunk(data: bytes, expected: int | None = None) -> ImageChunk:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return ImageChunk(data=data, format=kind, expected_tokens=expected or TOKENS[data])


def shown(*images: bytes, question: bytes = b"What?") -> tinker.ModelInput:
    chunks: list = []
    for image in images:
        chunks += [
            EncodedTextChunk(tokens=[VISION_START]),
            image_chunk(image),
            EncodedTextChunk(tokens=[VISION_END]),
        ]
    return tinker.ModelInput(chunks=[*chunks, EncodedTextChunk(tokens=list(question))])


def taught(prompt: tinker.ModelInput, answer: list[int]) -> tinker.Datum:
    """A datum that answers a prompt, as the cookbook shifts it: images have target 0."""
    whole = prompt.append(EncodedTextChunk(tokens=answer[:-1]))
    targets, weights = np.zeros(whole.length, np.int64), np.zeros(whole.length, np.float32)
    targets[-len(answer) :], weights[-len(answer) :] = answer, 1
    return tinker.Datum(
        model_input=whole,
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(weights),
        },
    )


DATA = [
    taught(shown(WIDE), list(b"left")),
    taught(shown(SQUARE), list(b"right")),
    taught(shown(WIDE, SQUARE), list(b"both")),
    datum(list(b"no image")),
]
GREEDY = tinker.SamplingParams(max_tokens=5, temperature=0.0, stop=[])


def test_a_client_learns_to_tell_images_apart_and_resumes_bit_for_bit(
    service: tinker.ServiceClient,
) -> None:
    client = new_client(service, rank=8)
    losses = [train(client, DATA, rate=2e-2) for _ in range(25)]
    assert losses[-1] < 0.05 * losses[0]
    state = client.save_state("state").result().path
    resumed = service.create_training_client_from_state_with_optimizer(state).result()
    assert [train(resumed, DATA) for _ in range(3)] == [train(client, DATA) for _ in range(3)]
    sampler = client.save_weights_and_get_sampling_client().result()
    for prompt, answer in ((shown(WIDE), b"left"), (shown(SQUARE), b"right")):
        response = sampler.sample(prompt, 2, GREEDY).result()
        for sequence in response.sequences:
            assert bytes(sequence.tokens[: len(answer)]) == answer
    response = sampler.sample(shown(WIDE, SQUARE), 1, GREEDY).result()
    assert bytes(response.sequences[0].tokens[:4]) == b"both"


def test_sampled_and_prompt_log_probabilities_are_those_of_forward(
    engine: RunningEngine, service: tinker.ServiceClient
) -> None:
    client = new_client(service)
    train(client, DATA)
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt = shown(SQUARE, WIDE)
    before = prompt_tokens(engine)
    wanted = tinker.SamplingParams(max_tokens=7, temperature=1.0, seed=3, stop=[])
    response = sampler.sample(prompt, 3, wanted, include_prompt_logprobs=True).result()
    after = prompt_tokens(engine)
    assert after - before == prompt.length == 9 + 10 + 4 + 5
    for sequence in response.sequences:
        data = taught(prompt, list(sequence.tokens))
        output = client.forward([data], "cross_entropy").result().loss_fn_outputs[0]
        logprobs = output["logprobs"].to_numpy()
        sampled = np.array(sequence.logprobs)
        np.testing.assert_allclose(logprobs[-len(sampled) :], sampled, atol=1e-4)
    logprobs = response.prompt_logprobs
    assert logprobs is not None and len(logprobs) == prompt.length
    assert logprobs[0] is None
    ids = [VISION_START, *[IMAGE_PAD] * 9, VISION_END, VISION_START, *[IMAGE_PAD] * 10, VISION_END]
    scored = taught(prompt, [0])
    scored.loss_fn_inputs["target_tokens"] = tinker.TensorData.from_numpy(
        np.array([*ids[1:], *b"What?", 0])
    )
    output = client.forward([scored], "cross_entropy").result().loss_fn_outputs[0]
    ours = np.array(logprobs[1:], np.float32)
    np.testing.assert_allclose(output["logprobs"].to_numpy()[:-1], ours, atol=1e-4)
    assert sampler.compute_logprobs(prompt).result() == logprobs


def prompt_tokens(engine: RunningEngine) -> int:
    """How many tokens of prompts the engine says it has read."""
    answer = httpx.get(f"{engine.url}/metrics", headers={"x-api-key": KEY}, timeout=PATIENCE)
    [line] = [line for line in answer.text.splitlines() if 'total{kind="prompt"}' in line]
    return int(float(line.split()[-1]))


WRONG = {
    "expected_tokens is 12, and tiny has 10 for it (2 x 5)": image_chunk(WIDE, 12),
    "is damaged": ImageChunk(data=WIDE[:300], format="png", expected_tokens=10),
    "is not a PNG or JPEG file": ImageChunk(data=b"x", format="png", expected_tokens=1),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_image_is_refused_and_the_client_goes_on(
    service: tinker.ServiceClient, sentence: str
) -> None:
    client, other = new_client(service), new_client(service)
    sampler = service.create_sampling_client(base_model=MODEL).result()
    wrong = tinker.ModelInput(chunks=[WRONG[sentence], EncodedTextChunk(tokens=[1, 2])])
    with pytest.raises(tinker.RequestFailedError) as error:
        client.forward_backward([*DATA, taught(wrong, [3, 4])], "cross_entropy").result()
    assert sentence in str(error.value) and "image 1 of datum 4" in str(error.value)
    with pytest.raises(tinker.RequestFailedError) as error:
        sampler.sample(wrong, 1, GREEDY).result()
    assert sentence in str(error.value) and "image 1 of the prompt" in str(error.value)
    assert train(client, DATA) == train(other, DATA)


def test_images_that_the_engine_would_have_to_fetch_are_refused(
    service: tinker.ServiceClient,
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    pointer = ImageAssetPointerChunk(format="png", location="https://a/b.png", expected_tokens=3)
    with pytest.raises(tinker.BadRequestError, match="fetches no images"):
        sampler.sample(tinker.ModelInput(chunks=[pointer]), 1, GREEDY).result()


def test_a_prompt_is_too_long_with_the_tokens_of_its_images(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt = shown(*[WIDE] * 45)  # 45 times 12 tokens, of 512
    with pytest.raises(tinker.RequestFailedError, match="has 545 tokens; tiny takes at most 512"):
        sampler.sample(prompt, 1, GREEDY).result()


@pytest.mark.long
def test_an_adapter_that_was_trained_with_images_survives_the_engine(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "model")
    with running_engine(tmp_path / "engine", folder) as first, first.client() as service:
        client = new_client(service)
        train(client, DATA)
        path = client.save_weights_for_sampler("end").result().path
        sampler = service.create_sampling_client(model_path=path).result()
        expected = sampler.sample(shown(WIDE), 1, GREEDY).result().sequences[0].tokens
    with running_engine(tmp_path / "engine", folder) as second, second.client() as service:
        sampler = service.create_sampling_client(model_path=path).result()
        assert sampler.sample(shown(WIDE), 1, GREEDY).result().sequences[0].tokens == expected
