"""Families with a state, latent attention or shared experts train and sample like plain ones."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import AutoModelForCausalLM, Qwen3_5ForConditionalGeneration

from tests.support.adapters import filled_adapter, gradients
from tests.support.answers import assert_equal_answers
from tests.support.batches import random_datums
from tests.support.clients import GREEDY, PROMPT, train
from tests.support.engine import datum, running_engine
from tests.support.engine import random_datums as random_sdk_datums
from tests.support.float64_twins import logprobs_of_the_twin
from tests.support.state_families import STATE_FAMILIES, make_with_images, make_with_state
from tinkersmith.engine.messages import Answering, Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import adapter_state, new_adapter, snapshot
from tinkersmith.engine.model.base_model import BaseModel, load_base_model, memory_of_weights
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.engine


@pytest.fixture(params=STATE_FAMILIES, scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = make_with_state(tmp_path_factory.mktemp("m"), request.param)
    return load_base_model(request.param, folder)


def datum_of(rng: np.random.Generator, length: int) -> Datum:
    tokens = rng.integers(0, 250, length + 1)
    weights = rng.choice([0.5, 1.0, -0.3], length).astype(np.float32)
    return Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights})


def test_losses_and_lora_gradients_equal_those_of_a_float64_twin(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    rng = np.random.default_rng(0)
    # Also shorter than a convolution, and longer than a chunk of the delta rule.
    datums = [*random_datums(rng, 3), *(datum_of(rng, length) for length in (1, 2, 70))]
    output = forward_backward(base, adapter, datums, "cross_entropy", {})
    ours = gradients(adapter)
    adapter.clear_gradients()
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float64)
    plain.eval().requires_grad_(False).set_experts_implementation("eager")
    total = torch.zeros((), dtype=torch.float64)
    for one, logprobs in zip(datums, output.logprobs, strict=True):
        expected = logprobs_of_the_twin(plain, adapter, one.tokens, one.inputs["target_tokens"])
        np.testing.assert_allclose(logprobs, expected.detach(), atol=2e-5, rtol=1e-5)
        total = total - (expected * torch.from_numpy(one.inputs["weights"])).sum()
    total.backward()
    assert output.metrics["loss:sum"] == pytest.approx(total.item(), rel=1e-5)
    for name, gradient in gradients(adapter).items():
        difference = (ours[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm(), name


def requests_of_many_lengths(count: int) -> list[SampleRequest]:
    rng = np.random.default_rng(1)
    return [
        SampleRequest(
            rng.integers(0, 250, (1, 2, 9, 66, 30)[number % 5]).tolist(),
            num_samples=1 + number % 2,
            max_tokens=int(rng.integers(1, 25)),
            temperature=(1.0, 0.0)[number % 3 == 2],
            seed=number,
            stop=[],
            prompt_logprobs=number % 4 == 1,
        )
        for number in range(count)
    ]


def test_requests_that_join_and_leave_at_any_step_get_what_each_gets_alone(
    base: BaseModel,
) -> None:
    adapter = snapshot(filled_adapter(base, LoraConfig(4, 0)))
    requests = requests_of_many_lengths(9)
    expected = [sample(base, adapter, [request])[0] for request in requests]
    batch, joined = Batch(base, adapter, None, CacheMemory()), list[Answering]()
    at_step = {0: requests[:3], 2: requests[3:5], 7: requests[5:]}
    number = 0
    while batch.sequences or number <= max(at_step):
        joined += [batch.add(request) for request in at_step.get(number, [])]
        batch.step()
        number += 1
    assert_equal_answers([answering.result for answering in joined], expected)


def test_sampled_and_prompt_log_probabilities_are_those_of_a_forward_pass(
    base: BaseModel,
) -> None:
    adapter = snapshot(filled_adapter(base, LoraConfig(4, 0)))
    prompt = list(range(40, 70))
    request = SampleRequest(prompt, 2, 60, seed=5, stop=[], prompt_logprobs=True)
    [result] = sample(base, adapter, [request])
    for sequence in result.sequences:
        tokens = np.array([*prompt, *sequence.tokens])
        inputs = {"target_tokens": tokens[1:]}
        [whole] = forward(base, adapter, [Datum(tokens[:-1], inputs)], "cross_entropy", {}).logprobs
        np.testing.assert_allclose(sequence.logprobs, whole[len(prompt) - 1 :], atol=1e-4)
        assert result.prompt_logprobs is not None
        np.testing.assert_allclose(result.prompt_logprobs[1:], whole[: len(prompt) - 1], atol=1e-4)


def test_memory_is_reserved_for_keys_values_and_states(base: BaseModel) -> None:
    batch = Batch(base, None, None, CacheMemory())
    batch.add(SampleRequest(list(range(90)), 3, 30, seed=0, stop=[]))
    while not batch._active:
        batch.step()
    assert batch._decoder is not None
    most = base.cache.per_token * (128 * 3 // 2) + base.cache.per_row  # a cache grows by halves
    assert 3 * base.cache.of(90) <= batch._decoder.held() <= 3 * most


def test_a_joined_projection_has_a_lora_for_each_of_its_parts(tmp_path: Path) -> None:
    base = load_base_model("tiny", make_with_state(tmp_path, "qwen3_5"))
    state = adapter_state(new_adapter(base, LoraConfig(4)))
    layer = "base_model.model.model.layers.0.linear_attn"
    sizes = {
        name.removeprefix(f"{layer}.").partition(".")[0]: tuple(weight.shape)
        for name, weight in state.items()
        if name.startswith(layer) and "lora_B" in name
    }
    assert sizes == {
        "in_proj_q": (16, 4),
        "in_proj_k": (16, 4),
        "in_proj_v": (48, 4),
        "in_proj_z": (48, 4),
        "in_proj_b": (4, 4),
        "in_proj_a": (4, 4),
        "out_proj": (32, 4),
    }


def test_clients_of_the_sdk_train_sample_and_resume_bit_for_bit(tmp_path: Path) -> None:
    data = random_sdk_datums(4)
    folders = {family: make_with_state(tmp_path / family, family) for family in STATE_FAMILIES}
    models = [("--base-model", f"{family}={folder}") for family, folder in folders.items()]
    with (
        running_engine(tmp_path / "engine", folders["qwen3_5"], *chain(*models)) as engine,
        engine.client() as service,
    ):
        for family in STATE_FAMILIES:
            client = service.create_lora_training_client(family, rank=4, seed=1).result()
            losses = [train(client, data, rate=0.01) for _ in range(3)]
            assert losses[2] < losses[1] < losses[0]
            state = client.save_state(f"state-{family}").result().path
            resumed = service.create_training_client_from_state_with_optimizer(state).result()
            assert [train(resumed, data) for _ in range(2)] == [
                train(client, data) for _ in range(2)
            ]
            sampler = client.save_weights_and_get_sampling_client().result()
            [sequence] = sampler.sample(PROMPT, 1, GREEDY).result().sequences
            whole = datum([*PROMPT.to_ints(), *sequence.tokens])
            output = client.forward([whole], "cross_entropy").result().loss_fn_outputs[0]
            sampled = output["logprobs"].to_numpy()[PROMPT.length - 1 :]
            np.testing.assert_allclose(sampled, np.array(sequence.logprobs), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_text_part_of_a_model_that_sees_images_is_loaded(
    tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_with_images(tmp_path, tied=tied)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]["tie_word_embeddings"]  # as folders on the Hub: said outside only
    file.write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        base = load_base_model("sees", folder)
    assert "parameters are not loaded: only its text part is used" in caplog.text
    assert "UNEXPECTED" not in caplog.text
    assert base.tied == tied
    assert all(path.startswith(("model.layers.", "lm_head")) for path in base.shapes)
    assert memory_of_weights(folder, "float32", "cpu") == 4 * base.model.num_parameters()
    tokens = torch.arange(40)
    plain = Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        logits = base.logits(base.hidden(tokens, [40], None), None)
        torch.testing.assert_close(logits, plain(tokens[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_an_adapter_of_plain_peft_is_divided_into_the_parts_of_joined_projections(
    tmp_path: Path,
) -> None:
    folder = make_with_images(tmp_path / "model", tied=False)
    plain = Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(1)
    layers = r"model\.language_model\..*\.(in_proj_\w+|out_proj|q_proj|up_proj)"
    config = PeftLoraConfig(r=6, lora_alpha=9, target_modules=layers, init_lora_weights=False)
    peft = get_peft_model(plain, config)
    peft.save_pretrained(tmp_path / "peft")
    base = load_base_model("sees", folder)
    adapter = read_exported_adapter(base, tmp_path / "peft")
    tokens = torch.arange(40)
    with torch.no_grad():
        expected = peft(input_ids=tokens[None]).logits[0]
        logits = base.logits(base.hidden(tokens, [40], adapter), adapter)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
