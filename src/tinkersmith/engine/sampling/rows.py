"""A row: one sequence that is being sampled. The next tokens of rows, and when a row is finished.

Axes: B active rows, V vocabulary, K candidates of a position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.json_grammar import GrammarState
from tinkersmith.engine.messages import Answering, SampledSequence, SampledToken, SampleRequest
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import ExactLogits
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.token_choice import (
    COLDEST,
    UnsampledRows,
    choose_tokens,
    generator,
    tempered_normaliser,
)

_FEW = 1024  # allowed tokens that are looked at without the rest of the vocabulary


@dataclass(slots=True, eq=False)
class Row:
    answering: Answering
    adapter: Adapter | None  # None: the base model alone
    sequence: SampledSequence
    rng: np.random.Generator
    limit: int
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    number: int  # among its request's samples
    longest: int  # tokens that it can come to have, with its prompt
    grammar: GrammarState | None  # what may follow; None: any token
    # Of its next token. It is drawn once, however often a step that fails is repeated.
    uniform: float | None = None
    top_ids: list[np.ndarray] = field(default_factory=list[np.ndarray])
    top_logprobs: list[np.ndarray] = field(default_factory=list[np.ndarray])

    @property
    def request(self) -> SampleRequest:
        return self.answering.request

    @property
    def length(self) -> int:
        """Tokens that it has by now, with its prompt."""
        return len(self.request.prompt) + len(self.sequence.tokens)

    @property
    def last_token(self) -> int:
        return (self.sequence.tokens or self.request.prompt)[-1]

    def next_uniform(self) -> float:
        if not self.request.temperature > 0:
            return 0.0
        if self.uniform is None:
            self.uniform = self.rng.random()
        return self.uniform

    def close(self) -> None:
        if self.top_ids:
            self.sequence.topk = (np.stack(self.top_ids), np.stack(self.top_logprobs))


def new_row(base: BaseModel, adapter: Adapter | None, answering: Answering, number: int) -> Row:
    request = answering.request
    longest = base.max_context - len(request.prompt) + 1
    stop, grammar = ends_of(base, request), request.grammar
    if grammar is not None:
        stop.append(grammar.end_id)
    return Row(
        answering=answering,
        adapter=adapter,
        sequence=answering.result.sequences[number],
        rng=generator(request.seed, number),
        limit=longest if request.max_tokens is None else request.max_tokens,
        stop_ids=frozenset(token for token in stop if isinstance(token, int)),
        stop_texts=tuple(text for text in stop if isinstance(text, str)),
        number=number,
        longest=len(request.prompt)
        + (request.max_tokens or base.max_context - len(request.prompt)),
        grammar=None if grammar is None else grammar.begin(),
    )


def ends_of(base: BaseModel, request: SampleRequest) -> list[int | str]:
    """The tokens and texts that end an answer."""
    ends: list[int | str] = sorted(base.eos_ids)
    if request.stop is None:
        return ends
    return [*request.stop, *(ends if request.stop_at_ends else [])]


def take_tokens(
    logits: torch.Tensor | None, exact: ExactLogits | None, rows: Sequence[Row]
) -> None:
    """Sample one token for each row from (B, V) logits and note its log-probability.

    Raises:
        UnsampledRows: nothing can be sampled for some rows; nothing is noted for any.
    """
    requests = [row.request for row in rows]
    uniforms = torch.tensor([row.next_uniform() for row in rows], dtype=torch.float64)
    bound = [index for index, row in enumerate(rows) if row.grammar is not None]
    # The log-probabilities of bound rows are those of all tokens; which token they get is decided
    # below, so here they cost as little as greedy ones.
    free = [replace(row.request, temperature=0.0) if row.grammar else row.request for row in rows]
    chosen, normaliser = choose_tokens(logits, free, uniforms, exact)
    if bound:
        assert logits is not None
        chosen[bound] = _choose_allowed(logits, rows, bound, uniforms)
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
    tempered = [
        index
        for index, request in enumerate(requests)
        if request.tempered_logprobs and request.temperature not in (0, 1)
    ]
    if tempered:  # greedy tokens keep the model's: at temperature 0 each would have 0
        assert logits is not None
        scale = torch.tensor([requests[index].temperature for index in tempered])
        scale = scale.to(logits.device)[:, None].clamp(min=COLDEST)
        some = None if exact is None else exact.only(tempered)
        logprobs[tempered] = chosen_logits[tempered] / scale - tempered_normaliser(
            logits[tempered], scale, some
        )
    for row, token, logprob in zip(rows, chosen.tolist(), logprobs[:, 0].tolist(), strict=True):
        if row.grammar is not None and token not in row.stop_ids:
            row.grammar.add(token)
        row.sequence.tokens.append(token)
        row.sequence.logprobs.append(logprob)
        row.uniform = None
    for index, row in enumerate(rows):
        if count := row.request.topk_sample_logprobs:
            # In the order of the scores: the logits that chose them may have been rounded.
            values, order = logprobs[index, 1 : 1 + count].sort(descending=True, stable=True)
            row.top_ids.append(likeliest[index, order].cpu().numpy().astype(np.int32))
            row.top_logprobs.append(values.cpu().numpy())


def _choose_allowed(
    logits: torch.Tensor, rows: Sequence[Row], bound: list[int], uniforms: torch.Tensor
) -> torch.Tensor:
    """(B, V) logits -> a token that its grammar allows for each of the rows `bound`.

    Raises:
        UnsampledRows: the grammar of a row is too complex to go on, or allows no token.
    """
    allowed = {index: _allowed(rows[index], index, logits.shape[1]) for index in bound}
    few = [index for index in bound if np.count_nonzero(allowed[index]) <= _FEW]
    many = [index for index in bound if index not in few]
    tokens = dict[int, int]()
    for some, places in ((few, _places([allowed[index] for index in few])), (many, None)):
        if not some:
            continue
        if places is None:
            forbidden = ~np.stack([allowed[index] for index in some])
            held = logits[some]
        else:
            forbidden = places < 0
            columns = torch.from_numpy(places.clip(min=0)).to(logits.device)
            held = logits[torch.tensor(some, device=logits.device)[:, None], columns]
        held = held.masked_fill_(torch.from_numpy(forbidden).to(logits.device), -torch.inf)
        try:
            chosen, _ = choose_tokens(held, [rows[index].request for index in some], uniforms[some])
        except UnsampledRows as refusal:
            raise UnsampledRows([some[index] for index in refusal.rows], str(refusal)) from None
        for at, (index, token) in enumerate(zip(some, chosen.tolist(), strict=True)):
            tokens[index] = token if places is None else int(places[at, token])
    return torch.tensor([tokens[index] for index in bound], device=logits.device)


def _allowed(row: Row, index: int, vocabulary: int) -> np.ndarray:
    """(V,): whether a token may follow."""
    assert row.grammar is not None
    allowed = np.zeros(vocabulary, bool)
    try:
        tokens = row.grammar.allowed()[:vocabulary]  # a tokenizer may know fewer, or more
    except Refused as refusal:
        raise UnsampledRows([index], str(refusal)) from None
    allowed[: len(tokens)] = tokens
    allowed[list(row.stop_ids)] = row.grammar.may_end
    if not allowed.any():
        sentence = "the tokenizer has no token with which the answer's JSON could go on."
        raise UnsampledRows([index], sentence)
    return allowed


def _places(allowed: Sequence[np.ndarray]) -> np.ndarray:
    """(B, K): the allowed tokens of each row in their order, -1 where there are fewer."""
    of_rows = [np.flatnonzero(tokens) for tokens in allowed]
    places = np.full((len(of_rows), max(map(len, of_rows), default=0)), -1)
    for row, tokens in zip(places, of_rows, strict=True):
        row[: len(tokens)] = tokens
    return places


def is_finished(row: Row, decode: Callable[[list[int]], str] | None) -> bool:
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
    return len(tokens) >= row.limit or row.answering.gives_up


def report_token(row: Row, finished: bool) -> None:
    """Tell a client that waits for each token of the row's last one."""
    progress = row.request.progress
    if progress is None or progress.take is None or progress.cancelled:
        return
    topk = (row.top_ids[-1], row.top_logprobs[-1]) if row.request.topk_sample_logprobs else None
    sequence = row.sequence
    reason = sequence.stop_reason if finished else None
    token, logprob = sequence.tokens[-1], sequence.logprobs[-1]
    progress.take(SampledToken(row.number, token, logprob, topk, reason))
