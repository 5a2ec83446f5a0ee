"""Samples -> token ids and loss weights, under a length policy.

This module does not handle batches or servers.

T: the tokens of one sample, prompt then completion.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinkersmith.data.samples import Sample, Source
from tinkersmith.plurals import counted
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import CHUNK, TextTokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """A sample as tokens, after the length policy."""

    tokens: np.ndarray  # (T,) int32: prompt then completion
    prompt_length: int
    source: Source

    @property
    def weights(self) -> np.ndarray:
        """The loss weight of each token: (T,) float32, 0 on the prompt, 1 on the completion."""
        weights = np.ones(len(self.tokens), dtype=np.float32)
        weights[: self.prompt_length] = 0
        return weights

    @property
    def completion_length(self) -> int:
        """How many tokens are trained on."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class LengthEvent:
    """A sample that the length policy truncated (after > 0) or skipped (after = 0)."""

    source: Source
    before: int  # tokens of the whole sample
    after: int
    reason: str

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

    samples: list[TokenizedSample] = field(default_factory=list[TokenizedSample])
    truncated: list[LengthEvent] = field(default_factory=list[LengthEvent])
    skipped: list[LengthEvent] = field(default_factory=list[LengthEvent])
    lengths: list[int] = field(default_factory=list[int])  # of every sample, before the policy


def tokenize(
    samples: Iterable[Sample],
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    max_length: int,
    truncate: bool,
) -> TokenizedSamples:
    """Encode prompt and completion apart, so that their join is the same in training and use.

    Args:
        max_length: the most tokens of a sample.
        truncate: whether a longer sample keeps its whole prompt and loses the end of its
            completion, end token included. Otherwise it is skipped.
    """
    data = TokenizedSamples()
    for sample, tokens, prompt_length in encode_samples(samples, template, tokenizer):
        length = len(tokens)
        data.lengths.append(length)
        event = length_event(sample.source, prompt_length, length, max_length, truncate)
        if event is not None:
            (data.truncated if event.after else data.skipped).append(event)
        if event is None or event.after:
            data.samples.append(TokenizedSample(tokens[:max_length], prompt_length, sample.source))
    return data


def encode_samples(
    samples: Iterable[Sample], template: PromptTemplate, tokenizer: TextTokenizer
) -> Iterator[tuple[Sample, np.ndarray, int]]:
    """Yield each sample with all its tokens, (T,) int32, and the number of its prompt's tokens."""
    # The tokenizer uses all cores without Python's lock. Meanwhile, the caller uses the chunk
    # before, and this thread renders the chunk after.
    with ThreadPoolExecutor(max_workers=1) as pool:
        encoding: deque[tuple[list[Sample], Future[list[list[int]]]]] = deque()
        for chunk in _chunks(samples):
            pairs = [template.render(sample) for sample in chunk]
            texts = [text for pair in pairs for text in (pair.prompt, pair.completion)]
            encoding.append((chunk, pool.submit(tokenizer.ids_of, texts)))
            if len(encoding) > 2:
                yield from _joined(*encoding.popleft())
        while encoding:
            yield from _joined(*encoding.popleft())


def _joined(
    samples: list[Sample], ids: "Future[list[list[int]]]"
) -> Iterator[tuple[Sample, np.ndarray, int]]:
    rows = ids.result()
    for sample, prompt, completion in zip(samples, rows[::2], rows[1::2], strict=True):
        yield sample, np.array(prompt + completion, dtype=np.int32), len(prompt)


def length_event(
    source: Source, prompt_length: int, length: int, limit: int, truncate: bool
) -> LengthEvent | None:
    """What the length policy does to a sample; None if it stays whole."""
    if length <= limit:
        return None
    if prompt_length >= limit:
        reason = (
            f"its prompt alone has {counted(prompt_length, 'token')}, and {limit:,} is the most"
        )
        return LengthEvent(source, length, 0, reason)
    if not truncate:
        return LengthEvent(source, length, 0, f"{length:,} tokens are more than {limit:,}")
    return LengthEvent(source, length, limit, f"{length:,} -> {limit:,} tokens")


def token_lengths(
    samples: Iterable[Sample], folder: Path, base_model: str, template: str
) -> list[int]:
    """The number of tokens of each whole sample.

    Args:
        folder: a model folder, whose tokenizer counts.
        base_model: its name, which decides what the template "auto" means.
        template: a value of PROMPT_TEMPLATE.
    """
    tokenizer = load_tokenizer(folder)
    chosen = choose_template(template, tokenizer, base_model)
    return tokenize(samples, chosen, tokenizer, sys.maxsize, truncate=False).lengths


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk
