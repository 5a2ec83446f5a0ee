"""What the server says of a model's context is what training, sampling and /oai accept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker

from tests.support.clients import train
from tests.support.engine import KEY, MODEL, RunningEngine, datum, running_engine
from tests.support.family_twin import WINDOW, make_family
from tests.support.processes import PATIENCE
from tests.support.window_families import FAMILIES

pytestmark = pytest.mark.engine

# One with kernels for sequences up to its window, one without; and one whose config.json does not
# say, so that transformers knows it.
MODELS = ("Mistral v0.1", "gpt-oss", "Gemma 2")


@dataclass(frozen=True)
class World:
    engine: RunningEngine
    service: tinker.ServiceClient


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folders: dict[str, Path] = {}
    for family in FAMILIES:
        if family.name in MODELS:
            folders[family.name] = make_family(family, tmp_path_factory.mktemp("model"))
    silent = folders["Gemma 2"] / "config.json"
    config = json.loads(silent.read_text())
    del config["max_position_embeddings"]
    silent.write_text(json.dumps(config))
    others = [
        option
        for name, folder in folders.items()
        for option in ("--base-model", f"{name}={folder}")
    ]
    first = folders[MODELS[0]]
    folder = tmp_path_factory.mktemp("engine")
    with running_engine(folder, first, *others) as engine, engine.client() as service:
        yield World(engine, service)


def announced(world: World, name: str) -> int | None:
    models = world.service.get_server_capabilities().supported_models
    [length] = [model.max_context_length for model in models if model.model_name == name]
    return length


def random_tokens(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 250, count).tolist()


@pytest.mark.parametrize("name", [MODEL, "gpt-oss"])
def test_the_announced_context_is_accepted_and_one_token_more_is_not(
    world: World, name: str
) -> None:
    context = announced(world, name)
    assert context is not None
    assert context == 128 > WINDOW
    client = world.service.create_lora_training_client(name, rank=2, seed=0).result()
    whole = datum(random_tokens(context + 1))  # that many tokens are read
    assert np.isfinite(train(client, [whole]))
    longer = datum(random_tokens(context + 2))
    with pytest.raises(Exception, match=f"129 tokens; {name} takes at most 128"):
        client.forward_backward([longer], "cross_entropy").result()
    sampler = world.service.create_sampling_client(base_model=name).result()
    prompt = tinker.ModelInput.from_ints(random_tokens(context - 9))
    params = tinker.SamplingParams(max_tokens=10, temperature=1.0, seed=0, stop=[])
    [sequence] = sampler.sample(prompt, 1, params).result().sequences
    assert len(sequence.tokens) == 10
    too_long = tinker.ModelInput.from_ints(random_tokens(context + 1))
    with pytest.raises(Exception, match=f"{name} takes at most 128"):
        sampler.sample(too_long, 1, params).result()
    assert announced(world, name) == context  # also when it is loaded


@pytest.mark.parametrize("name", [MODEL, "gpt-oss"])
def test_the_inference_routes_accept_the_announced_context(world: World, name: str) -> None:
    def complete(tokens: int) -> httpx.Response:
        body = {"model": name, "prompt": random_tokens(tokens), "max_tokens": 1000}
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{world.engine.url}/oai/api/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE)

    answer = complete(120).json()
    assert 1 <= answer["usage"]["completion_tokens"] <= 9  # the last token is never read
    refused = complete(129)
    assert refused.status_code == 400
    assert "129 tokens; the model takes at most 128" in refused.text


def test_a_context_that_config_json_does_not_say_is_announced_once_the_model_is_loaded(
    world: World,
) -> None:
    assert announced(world, "Gemma 2") is None
    client = world.service.create_lora_training_client("Gemma 2", rank=2, seed=0).result()
    assert np.isfinite(train(client, [datum(random_tokens(40))]))
    assert announced(world, "Gemma 2") == 8192  # transformers' number for this family


def test_training_beyond_the_window_resumes_bit_for_bit(world: World) -> None:
    data = [datum(random_tokens(60)), datum(random_tokens(20))]
    for name in (MODEL, "gpt-oss"):
        client = world.service.create_lora_training_client(name, rank=2, seed=0).result()
        losses = [train(client, data, rate=0.01) for _ in range(3)]
        assert losses[2] < losses[0]
        state = client.save_state("state").result().path
        resumed = world.service.create_training_client_from_state_with_optimizer(state).result()
        assert train(resumed, data) == train(client, data)
