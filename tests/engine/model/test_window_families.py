"""Families with sliding windows, soft-capping and sinks, on samples longer than their windows."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.adapters import filled_adapter
from tests.support.answers import assert_equal_answers
from tests.support.family_twin import (
    WINDOW,
    TinyFamily,
    family_datums,
    family_requests,
    make_family,
    packing_difference,
    sampling_difference,
    training_differences,
)
from tests.support.loading import load_with_torch
from tests.support.window_families import FAMILIES
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import new_adapter, snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.sampler import sample

pytestmark = pytest.mark.engine


# The layers of each family that have a window.
WINDOWED = {
    "Mistral v0.1": [0, 1],
    "Qwen2 with windows in its last layers": [1],
    "Gemma 2": [0],
    "Gemma 3": [0],
    "Phi-3": [0, 1],
    "gpt-oss": [0],
    "Cohere2": [0],
    "Granite": [],
}


@dataclass(frozen=True)
class LoadedFamily:
    family: TinyFamily
    base: BaseModel


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedFamily]:
    family: TinyFamily = request.param
    folder = make_family(family, tmp_path_factory.mktemp("model"))
    yield LoadedFamily(family, load_with_torch(family.name, folder))


def test_losses_and_all_lora_gradients_equal_those_of_plain_transformers(
    loaded: LoadedFamily,
) -> None:
    differences = training_differences(loaded.family, loaded.base)
    assert differences.logprob < 2e-5
    assert differences.loss < 1e-5
    assert differences.gradient < 1e-5, differences.worst


def test_a_packed_batch_equals_its_samples_one_by_one(loaded: LoadedFamily) -> None:
    logprobs, gradients = packing_difference(loaded.base, family_datums(loaded.family))
    assert logprobs < 1e-5 and gradients < 1e-5


def test_sampled_tokens_and_prompts_have_the_log_probabilities_of_training(
    loaded: LoadedFamily,
) -> None:
    sampled, prompts = sampling_difference(loaded.base, family_requests(loaded.family))
    assert sampled < 1e-4 and prompts < 1e-4


def test_sampling_holds_no_more_of_a_layer_than_its_window(loaded: LoadedFamily) -> None:
    base = loaded.base
    layers = [layer for layer, window in enumerate(base.cache.windows) if window == WINDOW]
    assert layers == WINDOWED[loaded.family.name]
    windowed = [base.cache.token_bytes[layer] for layer in layers]
    batch = Batch(base, None, CacheMemory())
    adapters = [
        None,
        *(snapshot(filled_adapter(base, LoraConfig(rank, 1), rank)) for rank in (4, 2)),
    ]
    requests = [SampleRequest([1] * length, 1, 60, seed=3, stop=[]) for length in (60, 3, 50)]
    answers = [batch.add(*pair) for pair in zip(requests, adapters, strict=True)]
    most = 0
    while batch.sequences:
        batch.step()
        most = max(most, 0 if batch._decoder is None else batch._decoder.held())
    full = sum(base.cache.token_bytes) - sum(windowed)
    assert 3 * base.cache.of(61) <= most <= 3 * (full * 192 + sum(windowed) * WINDOW)
    for request, adapter, answer in zip(requests, adapters, answers, strict=True):
        [alone] = sample(base, adapter, [request])
        assert_equal_answers([answer.result], [alone])


def llama_shaped(folder: Path) -> BaseModel:
    """Mistral v0.1, which the kernels compute up to its window."""
    return load_with_torch("mistral", make_family(FAMILIES[0], folder))


def test_an_answer_without_max_tokens_begins_in_the_kernels_and_goes_on_beyond_the_window(
    tmp_path: Path,
) -> None:
    base = llama_shaped(tmp_path)
    assert FAMILIES[0].name == "Mistral v0.1" and base.dense is not None
    adapter = snapshot(filled_adapter(base, LoraConfig(4, 0)))
    requests = [
        SampleRequest([7, 8, 9], 2, None, seed=1, stop=[], prompt_logprobs=True),
        SampleRequest([5], 1, 4, seed=2, stop=[]),
        SampleRequest([5, 6, 7, 8], 1, 20, seed=3, stop=[]),
    ]
    layers_only = dataclasses.replace(base, kernels=None)
    expected = [sample(layers_only, adapter, [request])[0] for request in requests]
    batch, kinds = Batch(base, None, CacheMemory()), list[str]()
    answers = [batch.add(request, adapter) for request in requests]
    while batch.sequences:
        batch.step()
        kind = type(batch._decoder).__name__
        if batch._decoder is not None and (not kinds or kinds[-1] != kind):
            kinds.append(kind)
    assert kinds == ["DenseDecoder", "LayerDecoder"]
    assert_equal_answers([answer.result for answer in answers], expected)


def test_a_prompt_beyond_the_window_waits_until_the_rows_of_the_kernels_have_ended(
    tmp_path: Path,
) -> None:
    base = llama_shaped(tmp_path)
    short = SampleRequest([7, 8], 3, 5, seed=1, stop=[])
    long = SampleRequest(list(range(1, 31)), 1, 5, seed=2, stop=[])
    batch, ended = Batch(base, None, CacheMemory()), list[str]()
    names = {batch.add(short, None): "short"}
    batch.step()
    names[batch.add(long, None)] = "long"
    names[batch.add(dataclasses.replace(short, seed=4), None)] = "behind it"
    for _ in range(200):
        assert isinstance(batch._decoder, DenseDecoder) == (len(ended) == 0)
        ended += [names[answering] for answering in batch.step()]
        if len(ended) == 3:
            break
    assert ended[0] == "short" and set(ended) == {"short", "long", "behind it"}
    expected = [sample(base, None, [answering.request])[0] for answering in names]
    assert_equal_answers([answering.result for answering in names], expected)


def test_all_linear_layers_are_trained_and_no_router(loaded: LoadedFamily) -> None:
    names = {
        path.rsplit(".", 1)[-1] for path in new_adapter(loaded.base, LoraConfig(4)).module_paths
    }
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    if loaded.family.name == "Phi-3":
        expected = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    if loaded.family.name == "gpt-oss":
        expected = {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}
    assert names == expected | {"lm_head"}


def test_the_context_is_longer_than_the_window(loaded: LoadedFamily) -> None:
    assert loaded.base.max_context == 128 > WINDOW
