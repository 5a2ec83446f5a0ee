"""Large JSON Lines files -> chunks of whole lines that are read one at a time, in any order.

A first pass checks every record, so that a broken line stops the run before anything is spent; it
keeps only where the chunks lie, and at most 20 bytes a sample to find copies and shared questions
by: otherwise memory does not grow with the files. No prompts or tokens here.
"""

import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinkersmith.data.copies import COPIES_FILE, Copies, CopyFinder, find_copies
from tinkersmith.data.samples import (
    BOM,
    Sample,
    Skipped,
    Source,
    check_record,
    find_files,
    is_plain_json_lines,
    load_samples,
    overlap,
    parse_line,
    question_of,
    refuse_if_nothing_is_usable,
)
from tinkersmith.data.shuffle import VALIDATION_STREAM, shuffled
from tinkersmith.errors import UserError
from tinkersmith.settings import Settings

STREAMED_ABOVE = 100_000_000  # bytes of all files; below, all fits into about 1 GB of memory
_WHOLE_AT_MOST = 1_000_000_000  # bytes of files that cannot be read line by line (9 GB of memory)
_BLOCK_BYTES = 2_000_000
_SAID_EVERY = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole lines of one file."""

    file: Path
    start: int  # byte
    size: int
    first_line: int
    first_record: int
    usable: int  # records that are samples
    held_out: tuple[int, ...]  # places among them that are kept for validation
    digest: str  # of the bytes

    @property
    def training(self) -> int:
        """How many samples are trained on."""
        return self.usable - len(self.held_out)

    def training_places(self) -> np.ndarray:
        return np.delete(np.arange(self.usable), self.held_out)


@dataclass(frozen=True, slots=True)
class LargeFiles:
    """What the first pass found."""

    chunks: list[Chunk]
    first: Sample  # to train on
    validation: list[Sample]
    validation_skipped: list[Skipped]
    counts: dict[str, int]  # file -> usable samples
    missing_files: list[str]
    skipped_count: int
    copies: list[Copies]  # of DATA_FILES, and of VALIDATION_FILES if there are any
    first_skipped: list[Skipped] = field(default_factory=list)  # at most 10
    shared: int = 0  # validation samples that ask what a training sample asks

    def report(self) -> list[str]:
        """What was read, line by line, for the user."""
        lines = [f"  {count:,} samples from {file}" for file, count in self.counts.items()]
        lines += [
            f"  Warning: {file} does not exist; going on without it." for file in self.missing_files
        ]
        skipped = [*self.first_skipped, *self.validation_skipped][:10]
        lines += [f"  Skipped {one}" for one in skipped]
        more = self.skipped_count + len(self.validation_skipped) - len(skipped)
        if more:
            lines.append(f"  ... and {more:,} more; all of them are in skipped.jsonl.")
        lines += [f"  {one}; all of them are in {COPIES_FILE}." for one in self.copies if one]
        if self.validation:
            lines.append(f"  {len(self.validation):,} of them are kept for validation.")
        if self.shared:
            lines.append(
                f"  Warning: {self.shared:,} validation samples ask what a training sample asks; "
                "the validation loss will look too good."
            )
        lines.append(
            "  The files are large: they are read as a stream, and training begins with the first "
            "part."
        )
        return lines


def are_streamed(files: Sequence[Path]) -> bool:
    """Whether the files are large, and can be read line by line.

    Raises:
        UserError: they are very large, and one cannot.
    """
    size = sum(path.stat().st_size for path in files if path.is_file())
    if size <= STREAMED_ABOVE:
        return False
    whole = [path for path in files if not is_plain_json_lines(path)]
    if whole and size > _WHOLE_AT_MOST:
        raise UserError(
            f"{whole[0]} is no plain JSON Lines file, and data of {size / 1e9:.1f} GB can only be "
            "read line by line. Unpack it if it is gzip-ed; write one record per line, for "
            f"example with: jq -c '.[]' {whole[0]} > {whole[0].with_suffix('.jsonl')}"
        )
    return not whole


def scan(settings: Settings, say: Callable[[str], None]) -> LargeFiles:
    """Check every record of DATA_FILES, and set the validation samples apart.

    Raises:
        UserError: a line is no JSON, or not one record can be used.
    """
    found, missing = find_files(settings.data_files)
    validation, validation_skipped, ratio = [], [], settings.validation_ratio
    validation_counts: dict[str, int] = {}
    copies: list[Copies] = []
    if settings.validation_files:
        loaded = load_samples(settings.validation_files)
        validation, validation_skipped, ratio = loaded.samples, loaded.skipped, 0.0
        validation_counts, missing = loaded.counts, [*missing, *loaded.missing_files]
        copies.append(find_copies(validation))
    passed = _Pass(found, ratio, settings.seed, say)
    training = passed.training_samples()
    shared = 0
    if validation:
        shared = len(overlap(training, validation))
    elif ratio:  # what is held out is known when the walk has ended
        asked = array("q", (hash(question_of(one)) for one in training))
        held_out = [hash(question_of(one)) for one in passed.validation]
        shared = int(np.isin(held_out, np.frombuffer(asked, dtype=np.int64)).sum())
    else:
        deque(training, maxlen=0)
    refuse_if_nothing_is_usable(sum(passed.counts.values()), passed.first_skipped)
    if passed.first is None or (ratio and not passed.validation):
        raise UserError(
            f"VALIDATION_RATIO {ratio} leaves nothing for training or for validation; "
            "give more data, or set VALIDATION_FILES."
        )
    return LargeFiles(
        chunks=passed.chunks,
        first=passed.first,
        validation=validation or passed.validation,
        validation_skipped=validation_skipped,
        counts={**passed.counts, **validation_counts},
        missing_files=missing,
        skipped_count=passed.skipped_count,
        copies=[passed.copies.found(), *copies],
        first_skipped=passed.first_skipped,
        shared=shared,
    )


def read_chunk(chunk: Chunk) -> tuple[list[Sample], list[Skipped]]:
    """The samples of a chunk, and the records that are none.

    Raises:
        UserError: the file has changed since the first pass.
    """
    with chunk.file.open("rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.size)
    if hashlib.sha256(data).hexdigest() != chunk.digest:
        raise UserError(f"{chunk.file} has changed while it was trained on. Start a new run.")
    samples, skipped = [], []
    for checked in _checked(chunk.file, data, chunk.start, chunk.first_line, chunk.first_record):
        (samples if isinstance(checked, Sample) else skipped).append(checked)
    return samples, skipped


def iterate_samples(files: Sequence[str]) -> Iterator[Sample]:
    """The usable samples of `files`, large ones without holding them all.

    Raises:
        UserError: as `load_samples` does.
    """
    found, _ = find_files(files)
    if not are_streamed(found):
        yield from load_samples(files).samples
        return
    for path in found:
        for block in _blocks_of(path):
            yield from (one for one in block.checked if isinstance(one, Sample))


class _Pass:
    """One walk through all files; what it found is complete when the walk has ended."""

    def __init__(
        self, files: Sequence[Path], ratio: float, seed: int, say: Callable[[str], None]
    ) -> None:
        self.files, self.ratio, self.seed, self.say = files, ratio, seed, say
        self.chunks: list[Chunk] = []
        self.first: Sample | None = None
        self.validation: list[Sample] = []
        self.counts: dict[str, int] = {}
        self.first_skipped: list[Skipped] = []  # at most 10
        self.skipped_count = 0
        self.copies = CopyFinder()

    def training_samples(self) -> Iterator[Sample]:
        whole = sum(path.stat().st_size for path in self.files)
        said, seen, usable = time.monotonic(), 0, 0
        for path in self.files:
            before = usable
            for block in _blocks_of(path):
                samples = [one for one in block.checked if isinstance(one, Sample)]
                for sample in samples:
                    self.copies.add(sample)
                held_out = self._held_out(usable, len(samples))
                self._keep(path, block, len(samples), held_out)
                self.validation += [samples[place] for place in held_out]
                training = set(range(len(samples))).difference(held_out)
                for place in sorted(training):
                    self.first = self.first or samples[place]
                    yield samples[place]
                usable += len(samples)
                seen += len(block.data)
                if time.monotonic() - said > _SAID_EVERY:
                    said = time.monotonic()
                    self.say(f"  Checked {seen / 1e9:.1f} of {whole / 1e9:.1f} GB")
            self.counts[path.as_posix()] = usable - before

    def _keep(self, path: Path, block: "_Block", usable: int, held_out: list[int]) -> None:
        if not block.checked:  # blank lines alone
            return
        skipped = [one for one in block.checked if isinstance(one, Skipped)]
        self.skipped_count += len(skipped)
        self.first_skipped += skipped[: 10 - len(self.first_skipped)]
        self.chunks.append(
            Chunk(
                file=path,
                start=block.start,
                size=len(block.data),
                first_line=block.first_line,
                first_record=block.first_record,
                usable=usable,
                held_out=tuple(held_out),
                digest=hashlib.sha256(block.data).hexdigest(),
            )
        )

    def _held_out(self, before: int, count: int) -> list[int]:
        """Places of this block's samples that are kept for validation: its part of the ratio."""
        part = round((before + count) * self.ratio) - round(before * self.ratio)
        order = shuffled(count, self.seed, VALIDATION_STREAM, len(self.chunks))
        return sorted(order[:part].tolist())


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of whole lines."""

    start: int  # byte
    data: bytes
    first_line: int
    first_record: int
    checked: list[Sample | Skipped]


def _blocks_of(path: Path) -> Iterator[_Block]:
    start, line, record = 0, 1, 1
    with path.open("rb") as file:
        while data := file.read(_BLOCK_BYTES) + file.readline():
            checked = list(_checked(path, data, start, line, record))
            yield _Block(start, data, line, record, checked)
            start += len(data)
            line += data.count(b"\n")
            record += len(checked)


def _checked(
    path: Path, data: bytes, start: int, first_line: int, first_record: int
) -> Iterator[Sample | Skipped]:
    name, record = path.as_posix(), first_record
    if start == 0:
        data = data.removeprefix(BOM)
    for number, line in enumerate(data.split(b"\n"), start=first_line):
        if not line or line.isspace():
            continue
        yield check_record(parse_line(path, line, number), Source(name, record))
        record += 1
