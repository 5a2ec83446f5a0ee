"""The written-out prefill and decode against the model's own layers, on fresh random inputs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.adapters import filled_adapter
from tests.support.answers import assert_equal_answers
from tests.support.dense_models import FAMILIES, LLAMA3, SHAPE, save_uneven
from tests.support.loading import load_with_torch
from tinkersmith.engine.kernels import padded_cache, tile_attention
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling import batch, dense_decoder
from tinkersmith.engine.sampling.decoder import Decoder, LayerDecoder
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun, shared_runs
from tinkersmith.engine.sampling.sampler import sample

pytestmark = pytest.mark.slow


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    save_uneven(FAMILIES[request.param](), tmp_path)
    return load_with_torch(request.param, tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups of slots, growing caches and tiles also for tiny inputs."""
    monkeypatch.setattr(padded_cache, "_GROUP", 3)
    monkeypatch.setattr(padded_cache, "_STEP", 8)
    monkeypatch.setattr(dense_decoder, "_STEP", 8)
    monkeypatch.setattr(tile_attention, "TILE_TOKENS", 32)


def adapters(base: BaseModel) -> list[Adapter | None]:
    configs = [LoraConfig(4, 0), LoraConfig(4, 0, train_attn=False, train_unembed=False)]
    return [None, *(snapshot(filled_adapter(base, config)) for config in configs)]


def random_tokens(rng: np.random.Generator, lengths: Sequence[int]) -> list[list[int]]:
    return [rng.integers(0, 300, length).tolist() for length in lengths]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def next_logits(
    decoder: Decoder, adapter: Adapter | None, tokens: list[int]
) -> torch.Tensor:  # (B, V)
    logits, _ = decoder.step(tokens, range(len(tokens)), [adapter] * len(tokens))
    assert logits is not None
    return logits


@torch.no_grad()
def test_logits_equal_those_of_the_models_layers_as_rows_grow_move_and_end(
    base: BaseModel, small_blocks: None
) -> None:
    rng = np.random.default_rng()
    prompts = random_tokens(rng, [40, 1, 33, 70, 2, 9, 0, 21])
    for adapter in adapters(base):
        answers = []
        for kind in (DenseDecoder, LayerDecoder):
            rng = np.random.default_rng(0)
            decoder = kind(base, len(prompts))
            runs = [TokenRun(tokens, adapter) for tokens in prompts]
            filled = [run for run in runs if run.tokens]
            hidden = decoder.prefill(filled, [index % 3 == 0 for index in range(len(filled))])
            seen = [decoder.logits(part, adapter) for part in hidden if part is not None]
            for slot, run in enumerate(runs):
                decoder.put(slot, run)
            active = len(prompts)
            for number in range(30):
                seen.append(next_logits(decoder, adapter, rng.integers(0, 300, active).tolist()))
                if number % 7 == 6:  # the row of slot 1 has ended; the last one takes its place
                    active -= 1
                    decoder.move(active, 1)
                if number == 16:  # a new row
                    decoder.put(active, runs[3])
                    active += 1
            answers.append(seen)
        for ours, theirs in zip(*answers, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_rows_of_rotary_tables_equal_those_that_are_made_for_each_step(
    kind: str, tmp_path: Path
) -> None:
    rope = {**LLAMA3, "rope_type": kind}
    save_uneven(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)), tmp_path)
    model = load_with_torch(kind, tmp_path).dense
    assert model is not None and getattr(model.rotary, "rope_type", "") == kind
    rows = dense_decoder._RotaryRows(model, torch.device("cpu"))
    rng = np.random.default_rng()
    for longest in (1, 40, 41, 300, 20, dense_decoder._MOST_ROTARY_ROWS + 1):
        positions = rng.integers(0, longest, 7).tolist()
        expected = model.rotary_tables(torch.tensor(positions))
        for ours, theirs in zip(rows.at(positions), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)


@torch.no_grad()
def test_a_shared_beginning_computed_once_changes_nothing(
    base: BaseModel, small_blocks: None
) -> None:
    rng = np.random.default_rng()
    instruction, example, long = random_tokens(rng, [50, 45, 71])
    prompts = [
        *(instruction + tail for tail in random_tokens(rng, [12, 3, 30])),
        *(instruction + example + tail for tail in random_tokens(rng, [1, 40])),
        *([long] * 3),
        *random_tokens(rng, [25, 1]),
    ]
    last = shared_runs(prompts)
    runs = {id(run): run for one in last for run in one.chain()}
    assert sum(len(run.tokens) for run in runs.values()) < 0.7 * sum(map(len, prompts))
    for prompt, run in zip(prompts, last, strict=True):
        assert [token for part in run.chain() for token in part.tokens] == prompt
    for adapter in adapters(base):
        shared, alone = (kind(base, len(prompts)) for kind in (DenseDecoder, LayerDecoder))
        for run in runs.values():
            run.past, run.adapter = None, adapter
        while missing := [run for run in runs.values() if run.past is None]:
            ready = [run for run in missing if run.parent is None or run.parent.past]
            shared.prefill(ready, [False] * len(ready))
        single = [TokenRun(prompt, adapter) for prompt in prompts]
        alone.prefill(single, [False] * len(single))
        for slot, (one, other) in enumerate(zip(last, single, strict=True)):
            shared.put(slot, one)
            alone.put(slot, other)
        for tokens in random_tokens(rng, [len(prompts)] * 3):
            assert_close(next_logits(shared, adapter, tokens), next_logits(alone, adapter, tokens))


@pytest.mark.parametrize("rows", [3, 64])
def test_samples_equal_those_through_the_models_layers(
    base: BaseModel, rows: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_ROWS", rows)
    rng = np.random.default_rng()
    common = rng.integers(0, 300, 40).tolist()
    requests = [
        SampleRequest(
            (common if index % 2 else []) + prompt,
            num_samples=1 + index % 3,
            max_tokens=5 + 3 * index,
            temperature=0.8 if index % 4 else 0.0,
            top_k=-1 if index % 5 else 20,
            seed=index,
            stop=[index],
            prompt_logprobs=index % 6 == 1,
        )
        for index, prompt in enumerate(random_tokens(rng, [1, 2, 50, 17, 9, 33, 20, 1, 8]))
    ]
    adapter = adapters(base)[1]
    found = sample(base, adapter, requests)
    expected = sample(replace(base, kernels=None), adapter, requests)
    assert_equal_answers(found, expected)


def test_matrices_of_adapters_without_rows_are_kept_up_to_a_limit(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = DenseDecoder(base, 2)
    configs = [LoraConfig(rank, rank) for rank in (4, 4, 4, 4)]
    filled = [snapshot(filled_adapter(base, config)) for config in configs]
    size = sum(weight.nbytes for weight in filled[0].weights.values())
    monkeypatch.setattr(dense_decoder, "_REMEMBERED", size)
    runs = [TokenRun([1, 2], adapter) for adapter in filled]
    kept = list[int]()
    for number, run in enumerate(runs):
        decoder.prefill([run], [False])
        decoder.put(0, run)
        decoder.put(1, run)
        decoder.step([3, 4], [0, 1], [filled[number]] * 2)
        kept.append(len(decoder._updates))
    assert kept == [1, 2, 2, 2] and set(decoder._updates) == set(filled[2:])
    # What was forgotten is made again.
    again = decoder.step([5, 6], [0, 1], [filled[0], filled[3]])[0]
    assert again is not None and torch.isfinite(again).all()


def test_half_precision_samples_stay_near_full_precision(base: BaseModel) -> None:
    halved = load_with_torch("half", base.folder, "bfloat16")
    prompt = np.random.default_rng().integers(0, 300, 60).tolist()
    request = SampleRequest(prompt, num_samples=4, max_tokens=40, stop=[], seed=0)
    for sequence in sample(halved, None, [request])[0].sequences:
        tokens = torch.tensor([*prompt, *sequence.tokens])
        logits = base.logits(base.hidden(tokens, [len(tokens)], None), None)[len(prompt) - 1 : -1]
        exact = logits.log_softmax(-1).gather(-1, tokens[len(prompt) :, None])[:, 0]
        assert (exact.detach() - torch.tensor(sequence.logprobs)).abs().mean() < 0.1


def test_short_or_different_beginnings_are_not_shared() -> None:
    prompts = [[1, 2, 3], [1, 2, 4], [], [5] * 40, [6] + [5] * 40]
    runs = shared_runs(prompts)
    assert [run.tokens for run in runs] == prompts
    assert all(run.parent is None for run in runs)


def test_prompts_that_are_the_same_have_one_run() -> None:
    first, second, other = shared_runs([[7] * 50, [7] * 50, [8] * 50])
    assert first is second is not other
