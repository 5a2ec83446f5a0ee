"""Requests that join, leave and fail in a running batch get what they would get alone."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.adapters import filled_adapter
from tests.support.answers import assert_equal_answers
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.json_grammar import Grammars, vocabulary_of
from tinkersmith.engine.kernels import padded_cache
from tinkersmith.engine.kernels.native.build import cache_folder, native_library
from tinkersmith.engine.messages import (
    Answering,
    LoraConfig,
    SampledToken,
    SampleProgress,
    SampleRequest,
    SampleResult,
)
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.fast_code import with_native_code
from tinkersmith.engine.sampling import batch as batch_module
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.decoder import LayerDecoder
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.server.routes.chat_prompts import read_texts

pytestmark = pytest.mark.slow

PLENTY = 2**40  # bytes of free memory


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_with_torch("tiny", make_tiny_model(tmp_path_factory.mktemp("m"), max_context=256))


@pytest.fixture(params=["written out", "model's layers"])
def base(request: pytest.FixtureRequest, dense: BaseModel) -> BaseModel:
    if request.param == "written out in C++":
        library = native_library(cache_folder())
        return with_native_code(dense, library) if library else pytest.skip("no C++ compiler")
    return dense if request.param == "written out" else dataclasses.replace(dense, kernels=None)


@pytest.fixture(scope="module")
def adapter(dense: BaseModel) -> Adapter:
    return snapshot(filled_adapter(dense, LoraConfig(8, 0)))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is prefilled at a time, and slots come in several groups, also for tiny inputs."""
    monkeypatch.setattr(batch_module, "LEAST_PREFILL", 8)
    monkeypatch.setattr(batch_module, "_FIRST_PREFILL", 8)
    monkeypatch.setattr(batch_module, "HOLD_UP", 0.0)
    monkeypatch.setattr(padded_cache, "_GROUP", 3)
    monkeypatch.setattr(padded_cache, "_STEP", 8)


def decode(tokens: list[int]) -> str:
    return "".join(chr(97 + token % 26) for token in tokens)


def requests_of_many_kinds(seed: int, count: int) -> list[SampleRequest]:
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 250, 45).tolist()
    return [
        SampleRequest(
            (common if number % 3 == 0 else [])
            + rng.integers(0, 250, rng.integers(1, 60)).tolist(),
            num_samples=1 + number % 3,
            max_tokens=int(rng.integers(1, 40)),
            temperature=(0.0, 1.0, 0.7)[number % 3],
            top_k=(-1, 20)[number % 2],
            top_p=(1.0, 0.9)[number % 2],
            seed=number,
            stop=([], [int(rng.integers(250))], ["abc"])[number % 3],
            prompt_logprobs=number % 4 == 1,
            topk_sample_logprobs=2 if number % 5 == 0 else 0,
        )
        for number in range(count)
    ]


def run(
    batch: Batch, at_step: dict[int, Sequence[SampleRequest]], adapter: Adapter | None = None
) -> dict[int, Answering]:
    """Let requests join at numbered steps, until all are finished; the answers in their order."""
    joined: list[Answering] = []
    number = 0
    while batch.sequences or number <= max(at_step):
        joined += [batch.add(request, adapter) for request in at_step.get(number, [])]
        batch.step()
        number += 1
    return dict(enumerate(joined))


def alone(base: BaseModel, adapter: Adapter | None, request: SampleRequest) -> SampleResult:
    return sample(base, adapter, [request], decode)[0]


@pytest.mark.parametrize("rows", [3, 64])
def test_requests_that_join_at_any_step_get_what_each_gets_alone(
    base: BaseModel, adapter: Adapter, rows: int, small_steps: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(batch_module, "MAX_ROWS", rows)
    requests = requests_of_many_kinds(seed=int(np.random.default_rng().integers(10**6)), count=14)
    expected = [alone(base, adapter, request) for request in requests]
    batch = Batch(base, decode, CacheMemory())
    answers = run(
        batch, {0: requests[:3], 2: requests[3:4], 5: requests[4:11], 30: requests[11:]}, adapter
    )
    assert_equal_answers([answers[number].result for number in range(14)], expected)
    assert not batch.sequences and not batch.is_ready


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(
    dense: BaseModel, small_steps: None
) -> None:
    shown: list[SampledToken] = []
    watched = SampleRequest([1, 2], 1, 60, seed=1, stop=[], progress=SampleProgress(shown.append))
    long = SampleRequest(list(range(200)), 1, 5, seed=2, stop=[])
    batch = Batch(dense, None, CacheMemory())
    batch.add(watched, None)
    for _ in range(3):
        batch.step()
    answering, before = batch.add(long, None), len(shown)
    while not answering.result.sequences[0].tokens:
        batch.step()
    pieces = -(-199 // 8)
    assert len(shown) - before == pieces  # one token between every two pieces
    while batch.sequences:
        batch.step()
    assert_equal_answers([answering.result], [alone(dense, None, long)])
    assert answering.result.prompt_cache_hit_tokens == 0


def test_prefill_takes_the_time_of_a_few_steps_at_most(
    dense: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which a step takes 10 seconds, and a token of a prompt 1."""
    seconds, read = [0.0], list[int]()
    step, prefill = DenseDecoder.step, DenseDecoder.prefill

    def slow_step(self: DenseDecoder, tokens: Sequence[int], *rest: Any, **named: Any) -> Any:
        seconds[0] += 10
        return step(self, tokens, *rest, **named)

    def slow_prefill(self: DenseDecoder, runs: Sequence[TokenRun], wanted: Sequence[bool]) -> Any:
        read.append(sum(len(run.tokens) for run in runs))
        seconds[0] += read[-1]
        return prefill(self, runs, wanted)

    monkeypatch.setattr(DenseDecoder, "step", slow_step)
    monkeypatch.setattr(DenseDecoder, "prefill", slow_prefill)
    monkeypatch.setattr(batch_module, "LEAST_PREFILL", 1)
    batch = Batch(dense, None, CacheMemory(), clock=lambda: seconds[0])
    batch.add(SampleRequest([1, 2], 1, 40, stop=[]), None)
    batch.step()
    read.clear()
    for number in range(3):
        batch.add(SampleRequest([number] * 101, 1, 2, stop=[]), None)
    while batch.sequences:
        batch.step()
    assert sum(read) == 300 and max(read) == 10 * batch_module.HOLD_UP


def test_a_cancelled_request_leaves_at_once_wherever_it_is(
    base: BaseModel, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "MAX_ROWS", 3)
    staying = SampleRequest([8, 9], 1, 40, seed=2, stop=[])
    leaving = [SampleRequest(list(range(n)), 1, 200, seed=n, stop=[]) for n in (5, 90, 30, 60)]
    batch = Batch(base, None, CacheMemory())
    kept = batch.add(staying, None)
    batch.step()
    gone = [batch.add(request, None) for request in leaving]  # active, being prefilled, and waiting
    batch.step()
    gone.append(batch.add(leaving[0], None))  # not seen yet
    for answering in gone:
        answering.cancelled = True
    assert set(batch.step()) == set(gone)
    assert batch.sequences == 1
    while batch.sequences:
        batch.step()
    assert_equal_answers([kept.result], [alone(base, None, staying)])


class Poisoned:
    """A model that fails in every step that a poisoned request takes part in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base: BaseModel, token: int) -> None:
        kind = DenseDecoder if base.kernels else LayerDecoder
        self.token, self.failures = token, 0
        self.step, self.prefill = kind.step, kind.prefill
        poisoned = self

        def step(decoder: Any, tokens: Sequence[int], *rest: Any, **named: Any) -> Any:
            poisoned.check(tokens)
            return poisoned.step(decoder, tokens, *rest, **named)

        def prefill(decoder: Any, runs: Sequence[TokenRun], wanted: Sequence[bool]) -> Any:
            return poisoned.prefill(decoder, runs, wanted)

        monkeypatch.setattr(kind, "step", step)
        monkeypatch.setattr(kind, "prefill", prefill)

    def check(self, tokens: Sequence[int]) -> None:
        if self.token in tokens:
            self.failures += 1
            raise RuntimeError("poison")


@pytest.fixture
def poison(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poisoned]:
    yield Poisoned(monkeypatch, base, token=251)


@pytest.mark.parametrize("poisonous", [1, 2])
def test_a_request_that_fails_in_the_middle_fails_alone(
    base: BaseModel, adapter: Adapter, small_steps: None, poison: Poisoned, poisonous: int
) -> None:
    shown: list[SampledToken] = []
    good = [
        dataclasses.replace(request, stop=[]) for request in requests_of_many_kinds(seed=5, count=8)
    ]
    expected = []
    token, poison.token = poison.token, -1
    for request in good:
        expected.append(alone(base, adapter, request))
    poison.token = token
    good[2] = dataclasses.replace(good[2], progress=SampleProgress(shown.append))
    bad = [SampleRequest([7, 251], 1, 5, stop=[]) for _ in range(poisonous)]
    batch = Batch(base, decode, CacheMemory())
    answers = run(batch, {0: good[:4], 6: [*bad, *good[4:]]}, adapter)
    failed = [number for number, one in answers.items() if one.error is not None]
    assert failed == list(range(4, 4 + poisonous))
    assert str(answers[4].error) == "poison" and poison.failures >= poisonous
    ours = [one.result for number, one in answers.items() if number not in failed]
    assert_equal_answers(ours, expected)
    tokens = [[one.token for one in shown if one.number == n] for n in range(good[2].num_samples)]
    assert tokens == [sequence.tokens for sequence in ours[2].sequences]  # each reported once


def test_only_the_requests_whose_schemas_are_too_complex_fail(dense: BaseModel) -> None:
    tokenizer = read_texts("bytes", dense.folder, "2026-01-31").tokenizer
    vocabulary = vocabulary_of("bytes", tokenizer)
    # More properties than llguidance can follow at a time, which shows once the object is begun.
    names = {f"k{number}": {"type": "integer"} for number in range(520)}
    grammars = Grammars(vocabulary)
    broad = grammars.of({"type": "object", "properties": names})
    narrow = grammars.of({"const": {"a": 1}})
    requests = [
        SampleRequest([1, 2, number], max_tokens=12, temperature=0.0, stop=[], grammar=grammar)
        for number, grammar in enumerate((None, broad, narrow, broad, None))
    ]
    expected = [alone(dense, None, requests[index]) for index in (0, 2, 4)]
    answers = run(Batch(dense, None, CacheMemory()), {0: requests})
    for index in (1, 3):
        assert "make the schema simpler" in str(answers[index].error)
    assert all(answers[index].error is None for index in (0, 2, 4))
    assert_equal_answers([answers[index].result for index in (0, 2, 4)], expected)
    assert tokenizer.decode(expected[1].sequences[0].tokens).startswith('{"a":')


def test_only_the_row_whose_logits_are_not_finite_fails(
    dense: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DenseDecoder.step

    def breaking(self: DenseDecoder, tokens: Sequence[int], *rest: Any, **named: Any) -> Any:
        logits, exact = step(self, tokens, *rest, **named)
        assert logits is not None
        for row, token in enumerate(tokens):
            if token == 251:
                logits[row] = torch.nan
        return logits, exact

    good = [dataclasses.replace(one, stop=[]) for one in requests_of_many_kinds(seed=6, count=4)]
    expected = [alone(dense, None, request) for request in good]
    monkeypatch.setattr(DenseDecoder, "step", breaking)
    batch = Batch(dense, None, CacheMemory())
    bad = SampleRequest([3, 251], 2, 9, stop=[])
    answers = run(batch, {0: [*good[:2], bad, *good[2:]]})
    assert "not finite" in str(answers[2].error)
    assert_equal_answers([answers[number].result for number in (0, 1, 3, 4)], expected)


def test_a_stop_text_that_cannot_be_looked_for_fails_its_request_alone(dense: BaseModel) -> None:
    def broken(tokens: list[int]) -> str:
        raise ValueError("no such token")

    good = SampleRequest([3, 4], 2, 9, seed=1, stop=[])
    bad = SampleRequest([3, 5], 3, 9, stop=["x"])
    batch = Batch(dense, broken, CacheMemory())
    answers = run(batch, {0: [good, bad]})
    assert isinstance(answers[1].error, ValueError)
    assert_equal_answers([answers[0].result], [alone(dense, None, good)])


# ---- several adapters


@pytest.fixture(scope="module")
def many_adapters(dense: BaseModel) -> list[Adapter | None]:
    """The base model alone, and adapters of different ranks and parts."""
    configs = [
        LoraConfig(8, 1),
        LoraConfig(3, 2),
        LoraConfig(16, 3, train_attn=False),
        LoraConfig(5, 4, train_mlp=False, train_unembed=False),
        LoraConfig(4, 5, train_attn=False, train_mlp=False),
    ]
    filled = [filled_adapter(dense, config, seed=config.rank) for config in configs]
    return [None, *map(snapshot, filled)]


def run_mixed(
    batch: Batch, at_step: dict[int, Sequence[tuple[SampleRequest, Adapter | None]]]
) -> list[Answering]:
    """Let requests of different adapters join at numbered steps, until all are finished."""
    joined: list[Answering] = []
    number = 0
    while batch.sequences or number <= max(at_step):
        joined += [batch.add(request, adapter) for request, adapter in at_step.get(number, [])]
        batch.step()
        number += 1
    return joined


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize(
    "base", ["written out", "written out in C++", "model's layers"], indirect=True
)
def test_requests_of_different_adapters_get_what_each_gets_alone(
    base: BaseModel,
    many_adapters: list[Adapter | None],
    rows: int,
    small_steps: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "MAX_ROWS", rows)
    monkeypatch.setattr(batch_module, "OWN_ROWS", 2)
    requests = requests_of_many_kinds(seed=int(np.random.default_rng().integers(10**6)), count=16)
    mixed = [(one, many_adapters[number % 6]) for number, one in enumerate(requests)]
    expected = [alone(base, adapter, request) for request, adapter in mixed]
    together = run_mixed(
        Batch(base, decode, CacheMemory()),
        {0: mixed[:5], 2: mixed[5:6], 5: mixed[6:13], 30: mixed[13:]},
    )
    assert_equal_answers([one.result for one in together], expected)


def test_rows_of_different_adapters_share_each_step(
    dense: BaseModel, many_adapters: list[Adapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    step = DenseDecoder.step

    def counted(self: DenseDecoder, tokens: Sequence[int], *rest: Any, **named: Any) -> Any:
        counts.append(len(tokens))
        return step(self, tokens, *rest, **named)

    monkeypatch.setattr(DenseDecoder, "step", counted)
    request = SampleRequest([1, 2, 3], 1, 7, seed=1, stop=[])
    run_mixed(Batch(dense, None, CacheMemory()), {0: [(request, one) for one in many_adapters]})
    assert counts == [len(many_adapters)] * 7


def test_what_one_adapter_has_read_never_serves_another(
    base: BaseModel, many_adapters: list[Adapter | None]
) -> None:
    prompt = list(range(100, 160))
    request = SampleRequest(prompt, 1, 6, temperature=0, stop=[])
    mixed = [(request, adapter) for adapter in many_adapters[:3] for _ in range(2)]
    answers = run_mixed(Batch(base, None, CacheMemory()), {0: mixed})
    for number in range(3):
        hits = [one.result.prompt_cache_hit_tokens for one in answers[2 * number : 2 * number + 2]]
        assert sorted(hits) == [0, 59]  # the second one of the same adapter, and nobody else
    expected = [alone(base, adapter, request) for _, adapter in mixed]
    assert_equal_answers([one.result for one in answers], expected)
    texts = {tuple(one.result.sequences[0].tokens) for one in answers}
    assert len(texts) == 3  # else this test could not see whose past was read


def test_an_adapter_that_is_not_finite_fails_its_own_requests_only(
    base: BaseModel, many_adapters: list[Adapter | None], small_steps: None
) -> None:
    broken = snapshot(filled_adapter(base, LoraConfig(4, 0)))
    with torch.no_grad():
        for name, weight in broken.weights.items():
            if name.endswith("lora_B"):
                weight.fill_(torch.inf)
    requests = requests_of_many_kinds(seed=7, count=6)
    requests = [dataclasses.replace(one, stop=[], prompt_logprobs=False) for one in requests]
    mixed = list(zip(requests, many_adapters, strict=True))
    expected = [alone(base, adapter, request) for request, adapter in mixed]
    bad = SampleRequest([3, 4, 5], 2, 9, stop=[])
    answers = run_mixed(
        Batch(base, decode, CacheMemory()), {0: [*mixed[:3], (bad, broken)], 3: mixed[3:]}
    )
    assert "not finite" in str(answers.pop(3).error)
    assert_equal_answers([one.result for one in answers], expected)


def test_an_adapter_with_many_rows_leaves_others_their_own(
    dense: BaseModel, many_adapters: list[Adapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "MAX_ROWS", 6)
    monkeypatch.setattr(batch_module, "OWN_ROWS", 2)
    greedy, modest, late = many_adapters[:3]
    batch = Batch(dense, None, CacheMemory())
    batch.add(SampleRequest([1, 2], 20, 10, seed=1, stop=[]), greedy)
    for _ in range(3):
        batch.step()
    assert len(batch._active) == 6
    batch.add(SampleRequest([1, 3], 5, 10, seed=2, stop=[]), modest)
    begun: list[tuple[int, int, int]] = []
    while batch.sequences:
        batch.step()
        if len(begun) == 2:
            batch.add(SampleRequest([1, 4], 1, 10, seed=3, stop=[]), late)
        rows = [row.adapter for row in batch._active]
        begun.append((rows.count(greedy), rows.count(modest), rows.count(late)))
    assert begun[0][:2] == (6, 2)  # at once, though all slots were taken
    assert begun[3][2] == 1
    # Where slots become free, the adapter with fewer rows gets them.
    assert (3, 3, 0) in begun


def test_a_request_that_the_kernels_cannot_have_waits_for_the_rows_that_they_have(
    dense: BaseModel, many_adapters: list[Adapter | None]
) -> None:
    assert dense.dense is not None
    base = dataclasses.replace(dense, dense=dataclasses.replace(dense.dense, longest=40))
    short = SampleRequest(list(range(20)), 1, 15, seed=1, stop=[])
    long = SampleRequest(list(range(45)), 1, 30, seed=2, stop=[])
    batch = Batch(base, None, CacheMemory())
    joined = [batch.add(short, many_adapters[1])]
    for _ in range(3):
        batch.step()
    joined += [batch.add(long, many_adapters[2]), batch.add(short, many_adapters[3])]
    kinds: list[tuple[type, int]] = []
    while batch.sequences:
        batch.step()
        if batch._decoder is not None:
            kinds.append((type(batch._decoder), len(batch._active)))
    assert set(kinds[:10]) == {(DenseDecoder, 1)}  # the first one goes on alone
    assert {kind for kind, _ in kinds[12:]} == {LayerDecoder}
    assert max(rows for _, rows in kinds) == 2  # the last one waited behind the long one
    pairs = [(short, many_adapters[1]), (long, many_adapters[2]), (short, many_adapters[3])]
    expected = [alone(dense, adapter, request) for request, adapter in pairs]
    assert_equal_answers([one.result for one in joined], expected)


# ---- memory


def test_rows_wait_for_memory_and_batches_of_other_weights_leave_each_other_room(
    dense: BaseModel, adapter: Adapter
) -> None:
    per_token = sum(dense.cache.token_bytes)
    room = 2 * 3 * per_token * 60  # half of it is for three rows of 60 tokens
    # What the rows hold is no longer free; what is reserved for them besides was promised.
    memory = CacheMemory(
        lambda device: room - sum(cache.held() for cache in memory._caches.values())
    )
    batches = [Batch(dense, None, memory) for _ in (None, adapter)]
    request = SampleRequest([1] * 30, 1, 30, seed=3, stop=[])
    answers = [
        [batch.add(request, weights) for _ in range(5)]
        for batch, weights in zip(batches, (None, adapter), strict=True)
    ]
    begun: list[list[int]] = []
    while any(batch.sequences for batch in batches):
        ready = [batch for batch in batches if batch.is_ready]
        assert ready
        for batch in ready:
            batch.step()
        begun.append([len(batch._active) for batch in batches])
        assert sum(len(batch._active) for batch in batches) <= 3
    assert max(first for first, _ in begun) == max(second for _, second in begun) == 3
    for weights, given in zip((None, adapter), answers, strict=True):
        expected = [alone(dense, weights, request)] * 5
        assert_equal_answers([one.result for one in given], expected)
    assert not memory._caches and not memory._starving


def test_a_row_that_is_larger_than_the_memory_is_tried_alone(dense: BaseModel) -> None:
    batch = Batch(dense, None, CacheMemory(lambda device: 1))
    answers = run(batch, {0: [SampleRequest([1] * 30, 2, 30, seed=3, stop=[])]})
    assert [len(sequence.tokens) for sequence in answers[0].result.sequences] == [30, 30]


def test_slots_come_and_go_with_the_rows(base: BaseModel) -> None:
    batch = Batch(base, None, CacheMemory(lambda device: PLENTY))
    batch.add(SampleRequest([1], 1, 60, stop=[], seed=0), None)
    batch.add(SampleRequest([2], 40, 5, stop=[], seed=0), None)
    sizes: list[int] = []
    while batch.sequences:
        batch.step()
        sizes.append(0 if batch._decoder is None else batch._decoder.held())
    assert max(sizes[:5]) > 10 * min(sizes[10:-1]) > 0 and sizes[-1] == 0


# ---- what was read for another request


def test_a_request_says_how_much_of_its_prompt_was_read_for_another(dense: BaseModel) -> None:
    common = list(range(60))
    requests = [
        SampleRequest([*common, 100, 101, 102], 2, 3, stop=[]),
        SampleRequest([*common, 110], 1, 3, stop=[]),
        SampleRequest([*common, 120, 121], 1, 3, stop=[]),
        SampleRequest([200, 201], 1, 3, stop=[]),
        SampleRequest([*common, 120, 121], 1, 3, stop=[], prompt_logprobs=True),
    ]
    hits = [result.prompt_cache_hit_tokens for result in sample(dense, None, requests)]
    assert sorted(hits[:3]) == [0, 60, 60] and hits[3:] == [0, 0]
    [same, again] = sample(dense, None, [requests[0]] * 2)
    assert sorted((same.prompt_cache_hit_tokens, again.prompt_cache_hit_tokens)) == [0, 62]
    [layers, _] = sample(dataclasses.replace(dense, kernels=None), None, requests[:2])
    assert layers.prompt_cache_hit_tokens == 0  # nothing is shared there
