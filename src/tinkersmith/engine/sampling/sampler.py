"""Prompts -> sampled sequences and log-probabilities, from one frozen set of weights.

Prompts are prefilled in packs, without padding, and a shared prefix only once. Then rows decode
together, each in a slot of the KV cache. A finished row's slot goes to the next row at once. Greedy
answers are those of `transformers.generate`; reported log-probabilities are the model's own, before
temperature.

Axes: B active rows, H hidden size, V vocabulary, K candidates of a position, T prompt tokens.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from tinkersmith.engine.hardware.memory import free_memory
from tinkersmith.engine.messages import (
    SampledSequence,
    SampledToken,
    SampleRequest,
    SampleResult,
)
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import ExactLogits
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.decoder import Decoder, LayerDecoder
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun, shared_runs
from tinkersmith.engine.sampling.token_choice import choose_tokens, sample_alternatives
from tinkersmith.engine.training.packing import PACK_TOKENS, packs

MAX_ROWS = 128
EMPTY_LOGPROB = -99999.0  # the wire's mark for an empty top-k cell
_CHUNK_ROWS = 256


@dataclass(slots=True)
class _Row:
    request: SampleRequest
    sequence: SampledSequence
    rng: np.random.Generator
    limit: int
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    number: int  # among its request's samples
    top_ids: list[np.ndarray] = field(default_factory=list)
    top_logprobs: list[np.ndarray] = field(default_factory=list)

    @property
    def last_token(self) -> int:
        return (self.sequence.tokens or self.request.prompt)[-1]


@dataclass(slots=True)
class _Prompt:
    index: int
    request: SampleRequest
    run: TokenRun  # all but the prompt's last token
    rows: list[_Row]  # that have not begun


class Sampler(Protocol):
    """Answers the requests of sampling clients; the user chooses which one with --sampler."""

    def sample(
        self,
        base: BaseModel,
        sampler_id: str,  # of the client; its adapter never changes
        adapter: Adapter | None,
        requests: Sequence[SampleRequest],
        decode: Callable[[list[int]], str] | None,
    ) -> list[SampleResult]:
        """Answer all requests; `decode` is needed where a stop is a string."""
        ...

    def forget(self, sampler_id: str) -> None:
        """Free what is held for a sampling client that has ended."""
        ...


class OwnSampler:
    """The engine's own `Sampler`: it holds nothing between requests."""

    def sample(
        self,
        base: BaseModel,
        sampler_id: str,
        adapter: Adapter | None,
        requests: Sequence[SampleRequest],
        decode: Callable[[list[int]], str] | None,
    ) -> list[SampleResult]:
        return sample(base, adapter, requests, decode)

    def forget(self, sampler_id: str) -> None: ...


@torch.no_grad()
def sample(
    base: BaseModel,
    adapter: Adapter | None,
    requests: Sequence[SampleRequest],
    decode: Callable[[list[int]], str] | None = None,
) -> list[SampleResult]:
    """Answer all requests; `decode` is needed where a stop is a string.

    A result does not depend on the other requests, beyond the last digit of a float: every
    sequence has its own random generator, seeded by (seed, its number).
    """
    if not requests:
        return []
    slots = _slots(base, requests)
    decoder: Decoder
    if base.kernels is None:
        decoder = LayerDecoder(base, adapter, slots)
    else:
        decoder = DenseDecoder(base, adapter, slots)
    waiting = _prompts(base, requests, decoder.shares)
    results = [SampleResult([]) for _ in requests]
    for prompt in waiting:
        results[prompt.index].sequences = [row.sequence for row in prompt.rows]
    active: list[_Row] = []
    while waiting or active:
        if waiting and len(active) < slots:
            waiting = deque(prompt for prompt in waiting if not _is_cancelled(prompt.request))
            _fill(base, decoder, waiting, results, active, slots)
            if not active:
                break
        requests = [row.request for row in active]
        greedy = not any(
            request.temperature or request.topk_sample_logprobs for request in requests
        )
        _take_tokens(*decoder.step([row.last_token for row in active], greedy=greedy), active)
        _drop_finished(decoder, active, decode)
    return results


def _prompts(base: BaseModel, requests: Sequence[SampleRequest], shares: bool) -> deque[_Prompt]:
    """All prompts, in the order in which they begin.

    A prompt's last token is read in the row's first step of decoding; all before it are prefilled.
    """
    heads = [list(request.prompt[:-1]) for request in requests]
    runs = [TokenRun(head) for head in heads]
    if shares:  # log-probabilities of a prompt need all of its hidden states
        shared = [i for i, request in enumerate(requests) if not asks_about_prompt(request)]
        last_runs = shared_runs([heads[i] for i in shared]) if shared else []
        for i, run in zip(shared, last_runs, strict=True):
            runs[i] = run
    prompts = [
        _Prompt(i, request, run, [_new_row(base, request, n) for n in range(request.num_samples)])
        for i, (request, run) in enumerate(zip(requests, runs, strict=True))
    ]
    # The longest first, so that rows of similar length stand together and the longest answers do
    # not begin last. Prompts with one parent follow each other, so that it can be freed early.
    longest: dict[int, int] = {}
    for prompt in prompts:
        family = id(prompt.run.parent)
        longest[family] = max(longest.get(family, 0), len(prompt.request.prompt))

    def place(prompt: _Prompt) -> tuple[int, int, int]:
        family = id(prompt.run.parent)
        return -longest[family], family, -len(prompt.request.prompt)

    return deque(sorted(prompts, key=place))


def asks_about_prompt(request: SampleRequest) -> bool:
    return bool(
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.target_prompt_logprobs is not None
        or request.prompt_alt_tokens_k
    )


def ends_of(base: BaseModel, request: SampleRequest) -> list[int | str]:
    """The tokens and texts that end an answer."""
    ends: list[int | str] = sorted(base.eos_ids)
    if request.stop is None:
        return ends
    return [*request.stop, *(ends if request.stop_at_ends else [])]


def _is_cancelled(request: SampleRequest) -> bool:
    return request.progress is not None and request.progress.cancelled


def _new_row(base: BaseModel, request: SampleRequest, number: int) -> _Row:
    longest = base.max_context - len(request.prompt) + 1
    stop = ends_of(base, request)
    return _Row(
        request=request,
        sequence=SampledSequence(),
        rng=_generator(request.seed, number),
        limit=longest if request.max_tokens is None else request.max_tokens,
        stop_ids=frozenset(token for token in stop if isinstance(token, int)),
        stop_texts=tuple(text for text in stop if isinstance(text, str)),
        number=number,
    )


def _generator(seed: int | None, number: int) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else [seed % 2**64, number])


def _slots(base: BaseModel, requests: Sequence[SampleRequest]) -> int:
    """How many rows a KV cache in half of the free memory holds, at most MAX_ROWS."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * base.layers * heads * size * base.dtype.itemsize
    longest = max(
        len(request.prompt) + (request.max_tokens or base.max_context - len(request.prompt))
        for request in requests
    )
    wanted = sum(request.num_samples for request in requests)
    fitting = free_memory(base.device) // 2 // (per_token * longest)
    return max(1, min(MAX_ROWS, wanted, fitting))


def _fill(
    base: BaseModel,
    decoder: Decoder,
    waiting: deque[_Prompt],
    results: Sequence[SampleResult],
    active: list[_Row],
    slots: int,
) -> None:
    """Give all free slots to rows of waiting prompts, and prefill what these need."""
    begun: list[tuple[_Prompt, list[_Row]]] = []
    free = slots - len(active)
    while waiting and free:
        prompt = waiting[0]
        rows, prompt.rows = prompt.rows[:free], prompt.rows[free:]
        begun.append((prompt, rows))
        free -= len(rows)
        if not prompt.rows:
            waiting.popleft()
    asking = {
        id(prompt.run): prompt
        for prompt, rows in begun
        if asks_about_prompt(prompt.request) and not rows[0].number
    }
    needed = {id(run): run for prompt, _ in begun for run in prompt.run.chain()}
    missing = [run for run in needed.values() if run.past is None and run.tokens]
    while missing:
        ready = [run for run in missing if run.parent is None or run.parent.past is not None]
        for pack in packs([len(run.tokens) for run in ready], PACK_TOKENS):
            runs = [ready[i] for i in pack]
            hidden = decoder.prefill(runs, [id(run) in asking for run in runs])
            for run, states in zip(runs, hidden, strict=True):
                if states is not None:
                    prompt = asking[id(run)]
                    _prompt_outputs(base, decoder, prompt.request, results[prompt.index], states)
        missing = [run for run in missing if run.past is None]
    for prompt in asking.values():
        if not prompt.run.tokens:  # a prompt of one token: nothing was prefilled
            nothing = torch.empty(0)
            _prompt_outputs(base, decoder, prompt.request, results[prompt.index], nothing)
    for prompt, rows in begun:
        for row in rows:
            decoder.put(len(active), prompt.run)
            active.append(row)


def _drop_finished(
    decoder: Decoder, active: list[_Row], decode: Callable[[list[int]], str] | None
) -> None:
    """Free the slots of finished rows; the last row moves into the gap."""
    for slot in range(len(active) - 1, -1, -1):
        finished = _finished(active[slot], decode)
        _report(active[slot], finished)
        if not finished:
            continue
        _close(active[slot])
        last = len(active) - 1
        if slot != last:
            decoder.move(last, slot)
            active[slot] = active[last]
        active.pop()


def _finished(row: _Row, decode: Callable[[list[int]], str] | None) -> bool:
    tokens = row.sequence.tokens
    if tokens[-1] in row.stop_ids:
        row.sequence.stop_reason = "stop"
        return True
    if row.stop_texts:
        assert decode is not None  # see check_request
        # A token is at least a byte of text, so a stop text lies within as many last tokens.
        window = max(len(text.encode()) for text in row.stop_texts) + 8
        tail = decode(tokens[-window:])
        if any(text in tail for text in row.stop_texts):
            row.sequence.stop_reason = "stop"
            return True
    return len(tokens) >= row.limit or _is_cancelled(row.request)


def _report(row: _Row, finished: bool) -> None:
    """Tell a client that waits for each token of the row's last one."""
    progress = row.request.progress
    if progress is None or progress.take is None or progress.cancelled:
        return
    topk = (row.top_ids[-1], row.top_logprobs[-1]) if row.request.topk_sample_logprobs else None
    sequence = row.sequence
    reason = sequence.stop_reason if finished else None
    token, logprob = sequence.tokens[-1], sequence.logprobs[-1]
    progress.begun = True
    progress.take(SampledToken(row.number, token, logprob, topk, reason))


def _close(row: _Row) -> None:
    if row.request.topk_sample_logprobs:
        row.sequence.topk = (np.stack(row.top_ids), np.stack(row.top_logprobs))


def _take_tokens(
    logits: torch.Tensor | None, exact: ExactLogits | None, rows: Sequence[_Row]
) -> None:
    """Sample one token for each row from (B, V) logits and note its log-probability."""
    requests = [row.request for row in rows]
    uniforms = [row.rng.random() if row.request.temperature > 0 else 0.0 for row in rows]
    chosen, normaliser = choose_tokens(
        logits, requests, torch.tensor(uniforms, dtype=torch.float64), exact
    )
    tokens, likeliest = chosen[:, None], chosen.new_empty(len(rows), 0)
    if widest := max(request.topk_sample_logprobs for request in requests):
        assert logits is not None
        likeliest = logits.float().topk(widest).indices
        tokens = torch.cat((tokens, likeliest), -1)  # (B, 1 + K)
    if exact is not None:
        chosen_logits = exact.of(tokens)
    else:
        assert logits is not None
        chosen_logits = logits.gather(-1, tokens).float()
    logprobs = chosen_logits - normaliser
    for row, token, logprob in zip(rows, chosen.tolist(), logprobs[:, 0].tolist(), strict=True):
        row.sequence.tokens.append(token)
        row.sequence.logprobs.append(logprob)
    for index, row in enumerate(rows):
        if count := row.request.topk_sample_logprobs:
            # In the order of the scores: the logits that chose them may have been rounded.
            values, order = logprobs[index, 1 : 1 + count].sort(descending=True, stable=True)
            row.top_ids.append(likeliest[index, order].cpu().numpy().astype(np.int32))
            row.top_logprobs.append(values.cpu().numpy())


def _prompt_outputs(
    base: BaseModel,
    decoder: Decoder,
    request: SampleRequest,
    result: SampleResult,
    hidden: torch.Tensor,  # (T - 1, H), of all but the prompt's last token
) -> None:
    """Write the requested log-probabilities of the prompt; position 0 has nothing before it."""
    length, device = len(request.prompt), base.device
    top_k, alternatives_k = request.topk_prompt_logprobs, request.prompt_alt_tokens_k
    targets = request.target_prompt_logprobs
    if targets is None:
        targets = np.zeros((length - 1, 0), np.int32)
    following = torch.tensor(request.prompt[1:], dtype=torch.int64, device=device)[:, None]
    wanted = torch.from_numpy(targets.astype(np.int64)).to(device)
    top_ids = following.new_zeros(length - 1, top_k)
    alternatives = following.new_zeros(length - 1, alternatives_k)
    rng = _generator(request.seed, 2**32 - 1)
    for first in range(0, length - 1 if top_k or alternatives_k else 0, _CHUNK_ROWS):
        last = min(first + _CHUNK_ROWS, length - 1)
        logits = decoder.logits(hidden[first:last]).float()
        if top_k:
            top_ids[first:last] = logits.topk(top_k).indices
        if alternatives_k:
            uniforms = torch.from_numpy(rng.random((last - first, alternatives_k))).to(device)
            alternatives[first:last] = sample_alternatives(logits, request.temperature, uniforms)
    columns = (following, wanted, alternatives, top_ids)
    scores = torch.empty(length - 1, sum(column.shape[1] for column in columns))
    if length > 1:
        scores = decoder.logprobs(hidden, torch.cat(columns, -1).clamp(min=0))
    following_scores, wanted_scores, alternative_scores, top_scores = scores.split(
        [column.shape[1] for column in columns], -1
    )
    # In the order of the scores: the logits that chose them may have been rounded.
    top_scores, order = top_scores.sort(dim=-1, descending=True, stable=True)
    skipped = 0  # positions that prompt_logprobs_last_n leaves out
    if request.prompt_logprobs_last_n is not None:
        skipped = max(length - request.prompt_logprobs_last_n - 1, 0)
    if request.prompt_logprobs:
        result.prompt_logprobs = np.full(length, np.nan, np.float32)
        result.prompt_logprobs[1 + skipped :] = following_scores[skipped:, 0].cpu().numpy()
    if top_k:
        ids = np.zeros((length, top_k), np.int32)
        values = np.full((length, top_k), EMPTY_LOGPROB, np.float32)
        ids[1 + skipped :] = top_ids.gather(-1, order)[skipped:].cpu().numpy()
        values[1 + skipped :] = top_scores[skipped:].cpu().numpy()
        result.topk_prompt_logprobs = (ids, values)
    if request.target_prompt_logprobs is not None:
        result.target_prompt_logprobs = wanted_scores.where(wanted >= 0, 0.0).cpu().numpy()
    if alternatives_k:
        result.prompt_alt_tokens = (
            alternatives.cpu().numpy().astype(np.int32),
            alternative_scores.cpu().numpy(),
        )
