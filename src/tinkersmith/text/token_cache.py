"""Chunks of a large file -> their tokens, made once and then read from the output folder.

The name of a cache file depends on what decides its content: the chunk's bytes, the tokenizer and
the prompt template. You may delete it at any time. The length policy is not part of it.

R: the sequences of a chunk. T: the tokens of one sequence. S: its trained parts.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from tinkersmith.data.large_files import Chunk, read_chunk
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.files import write_atomically
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.tokenize import (
    LengthEvent,
    TokenizedSample,
    encode_samples,
    length_policy,
    spans_before,
    untrained,
)

FOLDER = "token-cache"
_FORM = 5  # of the files


@dataclass(frozen=True, slots=True)
class ChunkTokens:
    """The sequences of a chunk's samples, before the length policy."""

    tokens: np.ndarray  # (sum of all T,)
    ends: np.ndarray  # (R,) where each sequence's tokens end
    spans: np.ndarray  # (sum of all S, 2) the trained parts, counted from the sequence's start
    span_ends: np.ndarray  # (R,) where each sequence's trained parts end
    firsts: np.ndarray  # (samples + 1,) the first sequence of each sample, and R
    records: np.ndarray  # (samples,) record numbers, counted from 0 at the chunk's first
    skipped: list[dict[str, Any]]  # from Skipped.to_json, "record" counted likewise
    untrained: list[dict[str, Any]]  # reasons why, "record" counted likewise

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each sequence: (R,)."""
        return np.diff(self.ends, prepend=0)

    @property
    def trained_tokens(self) -> np.ndarray:
        """The number of tokens of each sequence that are trained on: (R,)."""
        lengths = self.spans[:, 1] - self.spans[:, 0]
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        return np.diff(before[self.span_ends], prepend=0)

    def acted_on(self, limit: int) -> np.ndarray:
        """Whether the length policy cuts or skips a sequence of a sample: (samples,) bool."""
        is_whole = (self.lengths <= limit) & (self.trained_tokens > 0)
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(is_whole)])
        wholes = before[self.firsts[1:]] - before[self.firsts[:-1]]
        sequences = np.diff(self.firsts)
        return (wholes < sequences) | (sequences == 0)

    def sequences_of(self, places: np.ndarray) -> np.ndarray:
        """The sequences of the samples at some places, in order."""
        firsts: list[int] = self.firsts.tolist()
        wanted: list[int] = places.tolist()
        rows = [row for place in wanted for row in range(firsts[place], firsts[place + 1])]
        return np.array(rows, dtype=np.int64)

    def samples(
        self, chunk: Chunk, place: int, limit: int, truncate: bool
    ) -> Iterator[tuple[TokenizedSample | None, LengthEvent | None]]:
        """What the length policy leaves of each sequence of a sample, and what is said about it."""
        source = self.source(chunk, place)
        if self.firsts[place] == self.firsts[place + 1]:
            yield None, self._untrained(source, place)
        for sequence in range(int(self.firsts[place]), int(self.firsts[place + 1])):
            start = int(self.ends[sequence - 1]) if sequence else 0
            length = int(self.ends[sequence]) - start
            first = int(self.span_ends[sequence - 1]) if sequence else 0
            spans = self.spans[first : int(self.span_ends[sequence])]
            end, event = length_policy(source, spans, length, limit, truncate)
            if not end:
                yield None, event
                continue
            tokens = self.tokens[start : start + end].astype(np.int32)
            yield TokenizedSample(tokens, spans_before(spans, end), source), event

    def source(self, chunk: Chunk, place: int) -> Source:
        """Where a sample comes from."""
        return Source(chunk.file.as_posix(), chunk.first_record + int(self.records[place]))

    def _untrained(self, source: Source, place: int) -> LengthEvent:
        """What is said of a sample that nothing can be trained on."""
        record = int(self.records[place])
        reasons = (event["reason"] for event in self.untrained if event["record"] == record)
        return untrained(source, reason=next(reasons))

    def bad_records(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The chunk's unusable records, like `Skipped.to_json`."""
        return [
            {
                **record,
                "file": chunk.file.as_posix(),
                "record": chunk.first_record + record["record"],
            }
            for record in self.skipped
        ]


class TokenCache:
    """The cache files of one output folder, for one tokenizer and prompt template.

    Any thread may use it. Two threads that need the same chunk at once both tokenise it.
    """

    def __init__(
        self,
        output_dir: Path | str,
        template: PromptTemplate,
        tokenizer: TextTokenizer,
        train_on: str,
    ) -> None:
        self.folder = Path(output_dir) / FOLDER
        self.template = template
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        made_with = template.to_json()
        if "strftime_now" not in made_with.get("chat_template", ""):
            made_with.pop("date", None)  # the day of training decides nothing
        self.digest = _digest(
            str(_FORM), tokenizer.digest, train_on, json.dumps(made_with, sort_keys=True)
        )

    def tokens_of(self, chunk: Chunk) -> ChunkTokens:
        """The tokens of all samples of the chunk, from the cache if it holds them."""
        path = self.folder / f"{_digest(self.digest, chunk.digest)}.safetensors"
        stored = _read(path)
        if stored is None:
            if path.is_dir():
                raise UserError(
                    f"{path} is a folder, where a file of the cache belongs. Delete it."
                )
            stored = self._make(chunk)
            _write(path, stored)
        return stored

    def _make(self, chunk: Chunk) -> ChunkTokens:
        samples, skipped = read_chunk(chunk)
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        firsts, records = [0], array("q")
        events: list[LengthEvent] = []
        for sample, sequences in encode_samples(
            samples, self.template, self.tokenizer, self.train_on, events
        ):
            rows += sequences
            firsts.append(len(rows))
            records.append(sample.source.record - chunk.first_record)
        nothing, no_span = np.zeros(0, dtype=np.int32), np.zeros((0, 2), dtype=np.int64)
        return ChunkTokens(
            tokens=np.concatenate([nothing, *(tokens for tokens, _ in rows)]).astype(self.dtype),
            ends=np.cumsum([len(tokens) for tokens, _ in rows], dtype=np.int64),
            spans=np.concatenate([no_span, *(spans for _, spans in rows)]),
            span_ends=np.cumsum([len(spans) for _, spans in rows], dtype=np.int64),
            firsts=np.array(firsts, dtype=np.int64),
            records=np.array(records, dtype=np.int64),
            skipped=[
                {**record.to_json(), "record": record.source.record - chunk.first_record}
                for record in skipped
            ],
            untrained=[
                {"record": event.source.record - chunk.first_record, "reason": event.reason}
                for event in events
            ],
        )


_ARRAYS = ("tokens", "ends", "spans", "span_ends", "firsts", "records")


class _TensorFile(Protocol):
    """What we use of safetensors' `safe_open`, which has no types."""

    def __enter__(self) -> "_TensorFile": ...
    def __exit__(self, *error: object) -> None: ...
    def get_tensor(self, name: str) -> np.ndarray: ...
    def metadata(self) -> dict[str, str] | None: ...


def _read(path: Path) -> ChunkTokens | None:
    """The stored tokens; None if the file does not exist or is damaged, be it by one bit."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with cast("_TensorFile", safe_open(path, "np")) as file:
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            stored = file.metadata() or {}
        texts = stored.get("skipped", ""), stored.get("untrained", "")
        if stored.get("digest") != _content_digest(arrays, *texts):
            return None
        skipped, reasons = map(json.loads, texts)
        return ChunkTokens(**arrays, skipped=skipped, untrained=reasons)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, chunk: ChunkTokens) -> None:
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {name: getattr(chunk, name) for name in _ARRAYS}
    skipped, reasons = (json.dumps(value) for value in (chunk.skipped, chunk.untrained))
    digest = _content_digest(arrays, skipped, reasons)
    stored = {"skipped": skipped, "untrained": reasons, "digest": digest}
    write_atomically(path, save(arrays, stored))


def _content_digest(arrays: Mapping[str, np.ndarray], skipped: str, reasons: str) -> str:
    digest = hashlib.sha256(f"{skipped}\n{reasons}".encode())
    for name in _ARRAYS:
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
