"""Samples -> token ids and loss weights, under a length policy.

This module does not handle batches or servers.

T: the tokens of one sequence. S: its trained parts.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tinkersmith.data.collector import fewer_collections
from tinkersmith.data.samples import Sample, Source, characters
from tinkersmith.plurals import counted
from tinkersmith.prompts.text_tokenizer import CHUNK, TextTokenizer
from tinkersmith.text.pieces import Rendered, Untrainable
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

_LISTED = 10  # samples that are listed
_CHUNK_CHARACTERS = 2_000_000  # of a chunk of samples: usual ones have less
_FIRST_CHUNK = CHUNK // 10


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """A sequence to train on, after the length policy. Most samples are one, some are several."""

    tokens: np.ndarray  # (T,) int32
    spans: np.ndarray  # (S, 2) int64: where each trained part starts and ends, ascending
    source: Source

    @property
    def weights(self) -> np.ndarray:
        """The loss weight of each token: (T,) float32, 1 on the trained parts, else 0."""
        weights = np.zeros(len(self.tokens), dtype=np.float32)
        for start, end in self.spans.tolist():
            weights[start:end] = 1
        return weights

    @property
    def prompt_length(self) -> int:
        """How many tokens stand before the first trained part."""
        return int(self.spans[0, 0]) if len(self.spans) else len(self.tokens)

    @property
    def completion_length(self) -> int:
        """How many tokens are trained on."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())


TOO_LONG, TRUNCATED, UNTRAINED = "too long", "truncated", "nothing to train on"


@dataclass(frozen=True, slots=True)
class LengthEvent:
    """A sequence that the length policy truncated (after > 0) or skipped (after = 0)."""

    source: Source
    before: int  # tokens of the whole sequence; 0 for a sample without any
    after: int
    reason: str
    kind: str  # one of the three above

    def __str__(self) -> str:
        return f"{'Truncated' if self.after else 'Skipped'} {self.source}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.source.file,
            "record": self.source.record,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class TokenizedSamples:
    """The samples that the length policy leaves, and what it did to the others."""

    samples: list[tuple[TokenizedSample, ...]] = field(
        default_factory=list[tuple[TokenizedSample, ...]]
    )
    truncated: list[LengthEvent] = field(default_factory=list[LengthEvent])
    skipped: list[LengthEvent] = field(default_factory=list[LengthEvent])
    lengths: list[int] = field(default_factory=list[int])  # of every sequence, before the policy

    @property
    def sequences(self) -> list[TokenizedSample]:
        """The sequences of all samples."""
        return list(chain.from_iterable(self.samples))


@fewer_collections()
def tokenize(
    samples: Iterable[Sample],
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    max_length: int,
    truncate: bool,
    train_on: str = "all",
) -> TokenizedSamples:
    """Encode the pieces of each sample apart, so that their joins are the same in use.

    Args:
        max_length: the most tokens of a sequence.
        truncate: whether a longer sequence is cut, at the end of an answer if one fits, else within
            the first one, whose prompt stays whole. Otherwise it is skipped.
        train_on: a value of TRAIN_ON.
    """
    data = TokenizedSamples()
    for sample, sequences in encode_samples(samples, template, tokenizer, train_on, data.skipped):
        fitting: list[TokenizedSample] = []
        for tokens, spans in sequences:
            data.lengths.append(len(tokens))
            end, event = length_policy(sample.source, spans, len(tokens), max_length, truncate)
            if event is not None:
                (data.truncated if event.after else data.skipped).append(event)
            if end:
                fitting.append(
                    TokenizedSample(tokens[:end], spans_before(spans, end), sample.source)
                )
        if fitting:
            data.samples.append(tuple(fitting))
    return data


def encode_samples(
    samples: Iterable[Sample],
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    train_on: str = "all",
    skipped: list[LengthEvent] | None = None,
) -> Iterator[tuple[Sample, list[tuple[np.ndarray, np.ndarray]]]]:
    """Yield each sample with its sequences: their tokens, (T,) int32, and spans, (S, 2).

    Args:
        skipped: gets what is said of a sample that nothing can be trained on, and that is yielded
            without a sequence.
    """
    reasons = [] if skipped is None else skipped

    def sequences_of(sample: Sample) -> tuple[Rendered, ...]:
        try:
            sequences = template.render_all(sample, train_on)
        except Untrainable as reason:
            reasons.append(untrained(sample.source, reason=str(reason)))
            return ()
        if not sequences:
            reasons.append(untrained(sample.source))
        return sequences

    # The tokenizer uses all cores without Python's lock. Meanwhile, the caller uses the chunk
    # before, and this thread renders the chunk after. A second thread begins the next chunk while
    # the first one copies its ids, which needs Python's lock.
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoding: deque[tuple[list[tuple[Sample, tuple[Rendered, ...]]], Any]] = deque()
        for chunk in _chunks(samples):
            rendered = [(sample, sequences_of(sample)) for sample in chunk]
            texts = [
                piece.text
                for _, sequences in rendered
                for sequence in sequences
                for piece in sequence.pieces
            ]
            encoding.append((rendered, pool.submit(tokenizer.ids_of, texts)))
            if len(encoding) > 2:
                yield from _joined(*encoding.popleft())
        while encoding:
            yield from _joined(*encoding.popleft())


def _joined(
    rendered: list[tuple[Sample, tuple[Rendered, ...]]], ids: "Future[list[np.ndarray]]"
) -> Iterator[tuple[Sample, list[tuple[np.ndarray, np.ndarray]]]]:
    rows = iter(ids.result())
    for sample, sequences in rendered:
        yield sample, [_sequence(sequence, rows) for sequence in sequences]


def _sequence(rendered: Rendered, rows: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens, (T,), and spans, (S, 2), of the pieces whose tokens come next in `rows`."""
    tokens: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    end = 0
    for piece in rendered.pieces:
        row = next(rows)
        tokens.append(row)
        start, end = end, end + len(row)
        if piece.trained and end > start:
            if piece.joined and spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, end))
    whole = np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int32)
    return whole, np.array(spans, dtype=np.int64).reshape(-1, 2)


def length_policy(
    source: Source, spans: np.ndarray, length: int, limit: int, truncate: bool
) -> tuple[int, LengthEvent | None]:
    """How many tokens of a sequence are kept, and what is said about it if not all are.

    A cut keeps whole trained parts where one fits; else it cuts the first one. A part is an answer,
    or with TRAIN_ON "all_text" an answer with all since the one before.

    Args:
        spans: (S, 2) of the sequence's trained parts.
    """
    begins_trained = len(spans) > 0 and spans[0, 0] < spans[0, 1]  # most do, and this is cheap
    if not begins_trained and not np.any(spans[:, 0] < spans[:, 1]):
        return 0, untrained(source, length)
    if length <= limit:
        return length, None
    spans = spans[spans[:, 0] < spans[:, 1]]
    first = int(spans[0, 0])
    if first >= limit:
        reason = f"its prompt alone has {counted(first, 'token')}, and {limit:,} is the most"
        return 0, LengthEvent(source, length, 0, reason, TOO_LONG)
    if not truncate:
        reason = f"{length:,} tokens are more than {limit:,}"
        return 0, LengthEvent(source, length, 0, reason, TOO_LONG)
    whole = spans[spans[:, 1] <= limit, 1]
    end = int(whole[-1]) if len(whole) and len(spans) > 1 else limit
    reason = f"{length:,} -> {end:,} tokens"
    if len(spans) > 1 and len(whole):
        reason += f", the first {len(whole)} of {counted(len(spans), 'trained part')}"
    return end, LengthEvent(source, length, end, reason, TRUNCATED)


def untrained(
    source: Source, length: int = 0, reason: str = "nothing of it is trained on"
) -> LengthEvent:
    """The event of a sequence in which no token is trained on, or of a sample without sequences."""
    return LengthEvent(source, length, 0, reason, UNTRAINED)


def untrained_lines(events: Sequence[LengthEvent]) -> list[str]:
    """What is said of samples that nothing can be trained on: how many, and some with reasons."""
    if not events:
        return []
    lines = [f"{counted(len(events), 'sample')} will be skipped, with nothing to train on:"]
    lines += [f"  {event.source}: {event.reason}" for event in events[:_LISTED]]
    if len(events) > _LISTED:
        lines.append(f"  ... and {len(events) - _LISTED:,} more")
    return lines


def spans_before(spans: np.ndarray, end: int) -> np.ndarray:
    """The spans within the first `end` tokens; the last one may be cut: (S, 2)."""
    if len(spans) and spans[-1, 1] <= end:
        return spans
    return np.minimum(spans[spans[:, 0] < end], end)


def token_lengths(
    samples: Iterable[Sample],
    folder: Path,
    base_model: str,
    template: str,
    skipped: list[LengthEvent] | None = None,
) -> list[int]:
    """The number of tokens of each whole sequence of the samples.

    Args:
        folder: a model folder, whose tokenizer counts.
        base_model: its name, which decides what the template "auto" means.
        template: a value of PROMPT_TEMPLATE.
        skipped: gets what is said of samples that nothing can be trained on.
    """
    tokenizer = load_tokenizer(folder)
    chosen = choose_template(template, tokenizer, base_model)
    # The tokens are not kept: the samples may be more than fit into memory.
    encoded = encode_samples(samples, chosen, tokenizer, skipped=skipped)
    return [len(tokens) for _, sequences in encoded for tokens, _ in sequences]


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """CHUNK samples at a time, or fewer if they are long: a token takes 36 bytes at first.

    The first chunk is short, because the tokenizer waits for it.
    """
    chunk: list[Sample] = []
    size, most = 0, _FIRST_CHUNK
    for sample in samples:
        chunk.append(sample)
        size += characters(sample)
        if len(chunk) == most or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size, most = [], 0, CHUNK
    if chunk:
        yield chunk
