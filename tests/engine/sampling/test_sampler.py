"""Sampling against transformers.generate and forward; stops, seeds, the nucleus, log-probabilities.

Every request must get what it would get alone: the tests mix lengths, limits and settings.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.base_models import SIZES, save
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import (
    Datum,
    LoraConfig,
    SampledSequence,
    SampledToken,
    SampleProgress,
    SampleRequest,
)
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling import batch, checks
from tinkersmith.engine.sampling.checks import check_request, fitted
from tinkersmith.engine.sampling.rows import ends_of
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.sampling.token_choice import choose_tokens
from tinkersmith.engine.training.step import forward

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_with_torch("tiny", make_tiny_model(folder, max_context=128))


@pytest.fixture(scope="module")
def adapter(base: BaseModel) -> Adapter:
    return snapshot(filled_adapter(base, LoraConfig(8, 0)))


@pytest.fixture(params=[2, 64])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Few rows at a time: slots are refilled, and num_samples is split over prefills."""
    monkeypatch.setattr(batch, "MAX_ROWS", request.param)
    yield request.param


def prompts(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, rng.integers(1, 50)).tolist() for _ in range(count)]


def one(base: BaseModel, adapter: Adapter | None, request: SampleRequest) -> SampledSequence:
    return sample(base, adapter, [request])[0].sequences[0]


def generate(model: Any, prompt: list[int], limit: int | None) -> list[int]:
    """The greedy answer of plain transformers."""
    tokens = torch.tensor([prompt])
    mask = torch.ones_like(tokens)
    output = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=limit)
    return output[0, len(prompt) :].tolist()


def forward_logprobs(
    base: BaseModel, adapter: Adapter | None, prompt: list[int], completion: list[int]
) -> np.ndarray:
    """What `forward` says of the completion's tokens."""
    tokens = np.asarray([*prompt, *completion])
    datum = Datum(tokens[:-1], {"target_tokens": tokens[1:]})
    return forward(base, adapter, [datum], "cross_entropy", {}).logprobs[0][len(prompt) - 1 :]


# ---- greedy


def test_greedy_equals_transformers_generate_with_the_exported_adapter(
    base: BaseModel, adapter: Adapter, tmp_path: Path, rows: int
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base.folder)
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder),
        save_as_peft(base, adapter, tmp_path / "adapter"),
    )
    questions = prompts(seed=1, count=9)
    answers = []
    for weights, model in ((None, plain), (adapter, tuned)):
        requests = [
            SampleRequest(prompt, max_tokens=10 + 5 * index, temperature=0)
            for index, prompt in enumerate(questions)
        ]
        results = sample(base, weights, requests)
        for request, result in zip(requests, results, strict=True):
            expected = generate(model, request.prompt, request.max_tokens)
            assert result.sequences[0].tokens == expected
        answers.append([result.sequences[0].tokens for result in results])
    assert answers[0] != answers[1]


def test_greedy_equals_generate_for_llama_too(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM, LlamaConfig(**SIZES))
    base = load_with_torch("llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt in prompts(seed=2, count=3):
        ours = one(base, None, SampleRequest(prompt, max_tokens=20, temperature=0)).tokens
        assert ours == generate(model, prompt, 20)


def test_without_a_limit_the_answer_fills_the_context(base: BaseModel) -> None:
    prompt = list(range(100))
    answer = one(base, None, SampleRequest(prompt, temperature=0, stop=[]))
    # The last token is sampled, never read: all before it fit into the context.
    assert len(answer.tokens) == base.max_context - len(prompt) + 1
    assert answer.stop_reason == "length"
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    whole = model(torch.tensor([[*prompt, *answer.tokens[:-1]]])).logits[0, 99:].argmax(-1)
    assert whole.tolist() == answer.tokens


# ---- log-probabilities


def test_logprobs_are_those_of_forward_whatever_the_sampling_settings(
    base: BaseModel, adapter: Adapter, rows: int
) -> None:
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 0.8, "top_p": 0.9},
    ]
    requests = [
        SampleRequest(prompt, num_samples=2, max_tokens=30, stop=[], **setting)
        for prompt, setting in zip(prompts(seed=3, count=5), settings, strict=True)
    ]
    for weights in (None, adapter):
        for request, result in zip(requests, sample(base, weights, requests), strict=True):
            for sequence in result.sequences:
                expected = forward_logprobs(base, weights, request.prompt, sequence.tokens)
                np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)


def test_prompt_logprobs_are_those_of_forward_and_the_first_is_unknown(
    base: BaseModel, adapter: Adapter, rows: int
) -> None:
    requests = [
        SampleRequest(prompt, num_samples=3, max_tokens=1, prompt_logprobs=True)
        for prompt in [*prompts(seed=4, count=5), [7]]
    ]
    for request, result in zip(requests, sample(base, adapter, requests), strict=True):
        assert len(result.sequences) == 3
        ours = result.prompt_logprobs
        assert ours is not None and ours.shape == (len(request.prompt),) and np.isnan(ours[0])
        if len(ours) > 1:
            expected = forward_logprobs(base, adapter, request.prompt[:1], request.prompt[1:])
            np.testing.assert_allclose(ours[1:], expected, atol=1e-4)


def test_only_the_last_n_prompt_logprobs_are_given_when_asked(base: BaseModel) -> None:
    prompt = prompts(seed=5, count=1)[0]
    whole = SampleRequest(prompt, max_tokens=1, prompt_logprobs=True)
    last = dataclasses.replace(whole, prompt_logprobs_last_n=2)
    whole, last = (dataclasses.replace(one, topk_prompt_logprobs=2) for one in (whole, last))
    full, part = sample(base, None, [whole, last])
    assert full.prompt_logprobs is not None and part.prompt_logprobs is not None
    assert np.isnan(part.prompt_logprobs[:-2]).all()
    np.testing.assert_array_equal(part.prompt_logprobs[-2:], full.prompt_logprobs[-2:])
    assert full.topk_prompt_logprobs is not None and part.topk_prompt_logprobs is not None
    for ours, theirs, empty in zip(
        part.topk_prompt_logprobs, full.topk_prompt_logprobs, (0, -99999.0), strict=True
    ):
        assert (ours[:-2] == empty).all()
        np.testing.assert_array_equal(ours[-2:], theirs[-2:])


def test_top_k_logprobs_of_prompt_and_answer_are_the_likeliest_in_order(
    base: BaseModel, adapter: Adapter
) -> None:
    prompt = prompts(seed=6, count=1)[0]
    request = SampleRequest(
        prompt, max_tokens=12, stop=[], topk_prompt_logprobs=4, topk_sample_logprobs=3, seed=1
    )
    result = sample(base, adapter, [request])[0]
    sequence = result.sequences[0]
    assert result.topk_prompt_logprobs is not None and sequence.topk is not None
    prompt_ids, prompt_values = result.topk_prompt_logprobs
    ids, values = sequence.topk
    assert prompt_ids.shape == (len(prompt), 4) and ids.shape == (12, 3)
    assert (prompt_ids[0] == 0).all() and (prompt_values[0] == -99999.0).all()
    tokens = torch.tensor([*prompt, *sequence.tokens])
    hidden = base.hidden(tokens, [len(tokens)], adapter)
    logprobs = base.logits(hidden, adapter).log_softmax(-1)
    for given, expected in (
        ((prompt_ids[1:], prompt_values[1:]), logprobs[: len(prompt) - 1].topk(4)),
        ((ids, values), logprobs[len(prompt) - 1 : -1].topk(3)),
    ):
        np.testing.assert_array_equal(given[0], expected.indices)
        np.testing.assert_allclose(given[1], expected.values.detach(), atol=1e-4)


def test_target_prompt_logprobs_score_the_named_tokens(base: BaseModel) -> None:
    prompt = prompts(seed=7, count=1)[0]
    targets = np.random.default_rng(7).integers(0, 250, (len(prompt) - 1, 5))
    targets[:, 2] = prompt[1:]
    request = SampleRequest(
        prompt, max_tokens=1, prompt_logprobs=True, target_prompt_logprobs=targets
    )
    result = sample(base, None, [request])[0]
    assert result.target_prompt_logprobs is not None and result.prompt_logprobs is not None
    np.testing.assert_array_equal(result.target_prompt_logprobs[:, 2], result.prompt_logprobs[1:])
    datum = Datum(np.asarray(prompt[:-1]), {"target_tokens": targets})
    expected = forward(base, None, [datum], "cross_entropy", {}).logprobs[0]
    np.testing.assert_allclose(result.target_prompt_logprobs, expected, atol=1e-4)
    some = np.where(np.arange(5) == 3, -1, targets)  # -1 asks for nothing
    part = sample(base, None, [dataclasses.replace(request, target_prompt_logprobs=some)])[0]
    assert part.target_prompt_logprobs is not None
    assert (part.target_prompt_logprobs[:, 3] == 0).all()
    np.testing.assert_allclose(part.target_prompt_logprobs[:, :3], expected[:, :3], atol=1e-4)


def test_what_was_not_asked_is_not_answered(base: BaseModel) -> None:
    result = sample(base, None, [SampleRequest([1, 2], max_tokens=1, topk_prompt_logprobs=2)])[0]
    assert result.prompt_logprobs is None and result.topk_prompt_logprobs is not None
    assert result.target_prompt_logprobs is None and result.prompt_alt_tokens is None
    assert result.sequences[0].topk is None


def test_alternative_prompt_tokens_are_draws_with_their_own_logprobs(base: BaseModel) -> None:
    prompt = prompts(seed=8, count=1)[0]
    temperature = 1.7
    request = SampleRequest(prompt, 1, 1, temperature, seed=1, prompt_alt_tokens_k=400)
    result = sample(base, None, [request])[0]
    assert result.prompt_alt_tokens is not None
    ids, values = result.prompt_alt_tokens
    assert ids.shape == values.shape == (len(prompt) - 1, 400)
    tokens = torch.tensor(prompt)
    logprobs = base.logits(base.hidden(tokens, [len(prompt)], None), None).log_softmax(-1)
    expected = logprobs[:-1].gather(-1, torch.from_numpy(ids.astype(np.int64)))
    np.testing.assert_allclose(values, expected.detach(), atol=1e-4)
    for row, row_ids in zip((logprobs[:-1] / temperature).softmax(-1), ids, strict=True):
        likeliest = int(row.argmax())
        share = float(row[likeliest])
        deviation = (share * (1 - share) / 400) ** 0.5
        assert abs((row_ids == likeliest).mean() - share) < 5 * deviation + 1e-3
    cold = sample(base, None, [dataclasses.replace(request, temperature=0)])[0].prompt_alt_tokens
    assert cold is not None
    assert (cold[0] == logprobs[:-1].argmax(-1, keepdim=True).numpy()).all()


# ---- randomness


def test_a_seed_gives_the_same_tokens_alone_and_in_any_company(
    base: BaseModel, adapter: Adapter, rows: int
) -> None:
    requests = [
        SampleRequest(prompt, num_samples=3, max_tokens=8 + index, seed=index % 3, top_p=0.95)
        for index, prompt in enumerate(prompts(seed=11, count=7))
    ]
    together = sample(base, adapter, requests)
    for request, result in zip(requests, together, strict=True):
        alone = sample(base, adapter, [request])[0]
        ours = [sequence.tokens for sequence in result.sequences]
        assert ours == [sequence.tokens for sequence in alone.sequences]
        assert len({tuple(tokens) for tokens in ours}) == 3  # the samples differ from each other


def test_another_seed_or_none_gives_other_tokens(base: BaseModel) -> None:
    request = SampleRequest([1, 2, 3], max_tokens=20, stop=[], temperature=1.5)
    seeded = [dataclasses.replace(request, seed=seed) for seed in (0, 1, 2**63)]
    results = sample(base, None, [*seeded, request, request])
    assert len({tuple(result.sequences[0].tokens) for result in results}) == 5


def test_temperature_and_top_k_give_the_distribution_they_name(base: BaseModel) -> None:
    count, prompt = 4096, [5, 6, 7]
    hidden = base.hidden(torch.tensor(prompt), [3], None)
    values, ids = base.logits(hidden[-1:], None)[0].topk(4)
    for temperature in (0.5, 2.0):
        request = SampleRequest(prompt, count, 1, temperature, top_k=4, seed=3)
        drawn = [s.tokens[0] for s in sample(base, None, [request])[0].sequences]
        expected = (values / temperature).softmax(-1)
        for token, probability in zip(ids.tolist(), expected.tolist(), strict=True):
            deviation = (probability * (1 - probability) / count) ** 0.5
            assert abs(drawn.count(token) / count - probability) < 5 * deviation, temperature
        assert set(drawn) <= set(ids.tolist())


def test_the_last_digit_of_a_logit_does_not_decide_a_draw() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(np.repeat(rng.normal(size=50), 2).astype(np.float32))  # pairs alike
    noise = torch.from_numpy(rng.normal(size=(2, 1000, 100)).astype(np.float32)) * 1e-6
    uniforms = torch.from_numpy(rng.random(1000))
    for request in (SampleRequest([0]), SampleRequest([0], top_p=0.97)):
        draws = [
            choose_tokens(logits + part, [request] * 1000, uniforms)[0].tolist() for part in noise
        ]
        assert sum(one != other for one, other in zip(*draws, strict=True)) <= 1


def test_any_seed_and_any_temperature_can_be_drawn_with(base: BaseModel) -> None:
    request = SampleRequest([1, 2, 3], max_tokens=20, stop=[], temperature=1.5)
    seeds = (-1, -2, 2**63, 2**70)
    results = sample(base, None, [dataclasses.replace(request, seed=seed) for seed in seeds])
    assert len({tuple(result.sequences[0].tokens) for result in results}) == len(seeds)
    greedy = one(base, None, dataclasses.replace(request, temperature=0)).tokens
    for temperature in (1e-3, 1e-45, 5e-324):
        cold = dataclasses.replace(request, temperature=temperature)
        assert one(base, None, cold).tokens[:3] == greedy[:3]


@pytest.mark.parametrize(
    ("top_k", "top_p", "allowed"),
    [
        (-1, 1.0, {0, 1, 2, 3}),
        (-1, 0.1, {3}),
        (-1, 0.49, {3}),
        (-1, 0.51, {3, 1}),  # the token that crosses is kept
        (-1, 0.79, {3, 1}),
        (-1, 0.81, {3, 1, 0}),
        (-1, 0.99, {3, 1, 0, 2}),
        (1, 1.0, {3}),
        (2, 1.0, {3, 1}),
        (2, 0.6, {3}),  # of what top_k left, 0.625 is the likeliest token's share
        (2, 0.65, {3, 1}),
        (50, 1.0, {0, 1, 2, 3}),
    ],
)
def test_top_k_and_top_p_keep_the_smallest_set_that_reaches_the_mass(
    top_k: int, top_p: float, allowed: set[int]
) -> None:
    logits = torch.tensor([0.15, 0.3, 0.05, 0.5]).log()
    uniforms = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    request = SampleRequest([0], top_k=top_k, top_p=top_p)
    drawn, _ = choose_tokens(logits.expand(1000, 4), [request] * 1000, uniforms)
    assert set(drawn.tolist()) == allowed


# ---- stops


def first_new(tokens: list[int], start: int) -> int:
    """The first position from `start` on whose token has not occurred before it."""
    return next(i for i in range(start, len(tokens)) if tokens[i] not in tokens[:i])


def test_a_stop_token_ends_the_answer_and_stays_in_it(base: BaseModel, rows: int) -> None:
    questions = prompts(seed=10, count=6)
    requests = [
        SampleRequest(prompt, max_tokens=40, stop=[], temperature=1.2, seed=4)
        for prompt in questions
    ]
    free = [result.sequences[0].tokens for result in sample(base, None, requests)]
    ends = [first_new(tokens, 3 + index) for index, tokens in enumerate(free)]
    stopping = [
        dataclasses.replace(request, stop=[tokens[end], 255])
        for request, tokens, end in zip(requests, free, ends, strict=True)
    ]
    for tokens, end, result in zip(free, ends, sample(base, None, stopping), strict=True):
        sequence = result.sequences[0]
        assert sequence.tokens == tokens[: end + 1]
        assert sequence.stop_reason == "stop"
        assert len(sequence.logprobs) == end + 1


def test_the_models_end_token_stops_unless_the_list_of_stops_is_empty(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SampleRequest([1, 2, 3], max_tokens=30, stop=[], temperature=1.2, seed=4)
    free = one(base, None, request)
    assert free.stop_reason == "length" and len(free.tokens) == 30
    end = first_new(free.tokens, 5)
    monkeypatch.setattr(base, "eos_ids", frozenset({free.tokens[end], 255}))
    ended = one(base, None, dataclasses.replace(request, stop=None))
    assert (ended.tokens, ended.stop_reason) == (free.tokens[: end + 1], "stop")
    assert one(base, None, request).tokens == free.tokens


def test_a_stop_text_is_found_across_tokens_and_nothing_after_it_is_sampled(
    base: BaseModel,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base.folder)

    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=False)

    request = SampleRequest([1, 2, 3], max_tokens=40, stop=[], temperature=1.2, seed=4)
    free = one(base, None, request).tokens
    ascii_ids = {index for index in range(256) if decode([index]).isascii()}
    start = next(
        i for i in range(4, 38) if len(set(free[i : i + 2]) & ascii_ids) == 2
    )  # two tokens of a byte each
    text = decode(free[start : start + 2])
    stopping = dataclasses.replace(request, stop=["never to be seen", text])
    sequence = sample(base, None, [stopping], decode)[0].sequences[0]
    assert sequence.stop_reason == "stop"
    assert decode(sequence.tokens).endswith(text)
    assert sequence.tokens == free[: len(sequence.tokens)]
    assert text not in decode(sequence.tokens[:-1])


def test_the_limit_is_the_reason_when_nothing_stopped_it(base: BaseModel) -> None:
    sequence = one(base, None, SampleRequest([1, 2, 3], max_tokens=1, stop=[]))
    assert (len(sequence.tokens), sequence.stop_reason) == (1, "length")


# ---- refusals


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [1, 300]}, "token id 300 is not in the vocabulary of 259"),
        ({"prompt": [-1]}, "token id -1 is not"),
        ({"prompt": [1] * 129}, "the prompt has 129 tokens; tiny takes at most 128"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens is -1; it must be at least 1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"topk_prompt_logprobs": 260}, "topk_prompt_logprobs is 260"),
        ({"target_prompt_logprobs": np.zeros((3, 1), np.int64)}, r"shape \[3, 1\]"),
        ({"target_prompt_logprobs": np.array([[1], [259]])}, "token id 259 is not in"),
        ({"target_prompt_logprobs": np.array([[1], [-2]])}, "token id -2 is not in"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n is 1; it needs prompt_logprobs"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 0}, "must be 1 to 2"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "must be 1 to 2"),
    ],
)
def test_a_wrong_request_is_refused_with_the_value_and_the_range(
    base: BaseModel, change: dict, sentence: str
) -> None:
    good = SampleRequest([1, 2, 3], max_tokens=126)
    check_request(base, good)
    with pytest.raises(Refused, match=sentence):
        check_request(base, dataclasses.replace(good, **change))


def test_max_tokens_beyond_the_context_is_cut_to_what_is_left(base: BaseModel) -> None:
    prompt = list(range(1, 101))  # of a context of 128; the last sampled token is never read
    for wanted, given in ((None, None), (5, 5), (29, 29), (30, 29), (10**9, 29)):
        request = SampleRequest(prompt, max_tokens=wanted, temperature=0, stop=[])
        assert fitted(base, request).max_tokens == given
    answer = one(base, None, fitted(base, SampleRequest(prompt, max_tokens=500, stop=[])))
    assert len(answer.tokens) == 29
    assert answer.stop_reason == "length"


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5}, {"top_p": 0.7}])
def test_logprobs_of_sampled_tokens_are_the_model_s_or_those_of_the_temperature(
    base: BaseModel, sampling: dict[str, Any]
) -> None:
    requests = [
        SampleRequest(
            *([5, 6, 7], 1, 12, temperature),
            seed=1,
            stop=[],
            topk_sample_logprobs=3,
            tempered_logprobs=tempered,
            **sampling,
        )
        for temperature in (0.0, 0.6, 1.0, 1.9)
        for tempered in (False, True)
    ]
    for request, result in zip(requests, sample(base, None, requests), strict=True):
        [answer] = result.sequences
        whole = [*request.prompt, *answer.tokens]
        hidden = base.hidden(torch.tensor(whole), [len(whole)], None)
        logits = base.logits(hidden, None).double()[2:-1]  # (T, V), of the sampled tokens
        scale = request.temperature if request.tempered_logprobs and request.temperature else 1.0
        expected = (logits / scale).log_softmax(-1)
        chosen = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(answer.logprobs, chosen.detach().numpy(), atol=1e-4)
        assert answer.topk is not None
        likeliest = expected.topk(3).values.detach().numpy()
        np.testing.assert_allclose(answer.topk[1], likeliest, atol=1e-4)


def test_no_request_gets_no_answer(base: BaseModel) -> None:
    assert sample(base, None, []) == []


@pytest.mark.parametrize("name", ["topk_prompt_logprobs", "prompt_alt_tokens_k"])
def test_a_table_over_the_prompt_that_would_fill_the_memory_is_refused(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(checks, "MAX_CELLS", 300)
    wanted: dict[str, Any] = {name: 100}
    check_request(base, SampleRequest([1, 2, 3], **wanted))
    wanted[name] += 1
    with pytest.raises(Refused, match=f"{name} is 101; with a prompt of 3 tokens at most 100"):
        check_request(base, SampleRequest([1, 2, 3], **wanted))


def test_tokens_are_reported_as_they_are_sampled(base: BaseModel) -> None:
    tokens: list[SampledToken] = []
    request = SampleRequest([5, 6, 7], 3, 8, seed=1, stop=[], topk_sample_logprobs=2)
    watched = dataclasses.replace(request, progress=SampleProgress(tokens.append))
    [result], [plain] = sample(base, None, [watched]), sample(base, None, [request])
    for number, sequence in enumerate(result.sequences):
        own = [token for token in tokens if token.number == number]
        assert [token.token for token in own] == sequence.tokens == plain.sequences[number].tokens
        assert [token.logprob for token in own] == sequence.logprobs
        assert [token.stop_reason for token in own] == [None] * 7 + ["length"]
        assert all(token.topk is not None and len(token.topk[0]) == 2 for token in own)


def test_a_cancelled_request_frees_its_slots_and_changes_no_other(base: BaseModel) -> None:
    taken: list[SampledToken] = []

    def take(token: SampledToken) -> None:
        taken.append(token)
        progress.cancelled = len(taken) == 10

    progress = SampleProgress(take)
    leaving = SampleRequest([5, 6, 7], 5, 400, seed=1, stop=[], progress=progress)
    never = dataclasses.replace(leaving, progress=SampleProgress(taken.append, cancelled=True))
    staying = SampleRequest([8, 9], 2, 12, seed=2, stop=[])
    left, unheard, stayed = sample(base, None, [leaving, never, staying])
    assert all(len(sequence.tokens) <= 3 for sequence in left.sequences)
    assert [len(sequence.tokens) for sequence in unheard.sequences] == [0] * 5
    [alone] = sample(base, None, [staying])
    assert [s.tokens for s in stayed.sequences] == [s.tokens for s in alone.sequences]
    assert sample(base, None, [never])[0].sequences[0].tokens == []


def test_own_stops_can_stand_beside_the_models_end_tokens(base: BaseModel) -> None:
    request = SampleRequest([5], stop=[7, "x"], stop_at_ends=True)
    assert ends_of(base, request) == [7, "x", *sorted(base.eos_ids)]
    assert ends_of(base, dataclasses.replace(request, stop_at_ends=False)) == [7, "x"]
    assert ends_of(base, SampleRequest([5])) == sorted(base.eos_ids)
