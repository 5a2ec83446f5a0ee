"""Large JSON Lines files -> chunks of whole lines that are read one at a time, in any order.

A first pass checks every record, so that a broken line stops the run before anything is spent. It
keeps only where the chunks lie, and at most 20 bytes per sample to find duplicates and shared
questions; otherwise memory does not grow with the files. This module does not handle prompts or
tokens.
"""

import hashlib
import io
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinkersmith.data.columns import NO_COLUMNS, ColumnSearch
from tinkersmith.data.duplicates import DuplicateFinder, Duplicates, find_duplicates
from tinkersmith.data.load import load_samples, refuse_if_nothing_is_usable
from tinkersmith.data.report import (
    SHOWN,
    Tally,
    duplicate_lines,
    note_lines,
    read_lines,
    skipped_lines,
    validation_lines,
)
from tinkersmith.data.samples import Sample, Skipped, Source, overlap, question_of
from tinkersmith.data.shapes.check import check_record
from tinkersmith.data.shuffle import VALIDATION_STREAM, shuffled
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import open_regular
from tinkersmith.progress import Progress
from tinkersmith.sources.contents import (
    LONGEST_MARK,
    command_to_convert,
    compression_of,
    open_content,
)
from tinkersmith.sources.encodings import AUTO, BOM, not_in_encoding, text_codec
from tinkersmith.sources.find import look_up
from tinkersmith.sources.json_files import (
    is_blank,
    is_json_lines,
    may_repeat_fields,
    parse_line,
)
from tinkersmith.sources.packed import GZIP_MARK, PackedFile, Unpacking

STREAMED_ABOVE = 100_000_000  # bytes of all files; below, all fits into about 1 GB of memory
_WHOLE_AT_MOST = 1_000_000_000  # bytes of files that cannot be read line by line (9 GB of memory)
_BLOCK_BYTES = 2_000_000
_BEGINNING = 1 << 20  # bytes that tell the encoding
_AT_ONCE = 1 << 20  # bytes that are unpacked at a time
_UNPACKED = 5  # bytes of a text for a byte of its gzip file, roughly
_LONGEST_LINE = 100_000_000  # bytes: a longer one is no record, but a damaged file


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive whole lines of one file."""

    file: Path
    start: int  # byte
    size: int
    first_line: int
    first_record: int
    usable: int  # records that are samples
    held_out: tuple[int, ...]  # their places that are held out for validation
    digest: str  # of the bytes, and of COLUMNS
    packed: PackedFile | None = field(default=None, compare=False, repr=False)  # of a gzip file
    columns: Mapping[str, str] = field(default_factory=dict[str, str])  # how its records are read
    codec: str = "utf-8"  # of its lines

    @property
    def training(self) -> int:
        """The number of samples to train on."""
        return self.usable - len(self.held_out)

    def training_places(self) -> np.ndarray:
        """The places of the samples to train on, among the chunk's samples."""
        return np.delete(np.arange(self.usable), self.held_out)


@dataclass(frozen=True, slots=True)
class LargeFiles:
    """The result of the first pass."""

    chunks: list[Chunk]
    first: Sample  # to train on
    validation: list[Sample]
    validation_skipped: list[Skipped]
    counts: dict[str, int]  # file -> usable samples
    missing_files: list[str]
    skipped_count: int
    duplicates: list[Duplicates]  # of DATA_FILES, and of VALIDATION_FILES if there are any
    first_skipped: list[Skipped] = field(default_factory=list[Skipped])  # at most SHOWN
    shared: int = 0  # validation samples that ask what a training sample asks
    tallies: list[Tally] = field(default_factory=list[Tally])  # in the order of `duplicates`
    said: list[str] = field(default_factory=list[str])  # sentences about how the files were read

    def report(self, *, listed: bool = True) -> list[str]:
        """What was read, line by line, for the user; `listed` as in `DataSource.report`."""
        skipped = [*self.first_skipped, *self.validation_skipped]
        total = self.skipped_count + len(self.validation_skipped)
        together = Tally.together(self.tallies)
        return [
            *self.said,
            *read_lines(self.counts, self.missing_files, together.shapes),
            *note_lines(together.notes),
            *skipped_lines(skipped, total, "skipped.jsonl" if listed else "", together.reasons),
            *duplicate_lines(self.duplicates, listed=listed),
            *validation_lines(len(self.validation), self.shared),
            "The files are large: they are read as a stream, and training begins when the first "
            "samples are tokenised.",
        ]


def are_streamed(files: Sequence[Path], encoding: str = AUTO) -> bool:
    """Whether the files are large and can be read line by line.

    Args:
        encoding: a value of ENCODING.

    Raises:
        UserError: the files are very large, and one of them cannot be read line by line.
    """
    size = sum(_size_of(path) * (_UNPACKED if _is_packed(path) else 1) for path in files)
    if size <= STREAMED_ABOVE:
        return False
    whole = [path for path in files if not is_json_lines(path, encoding)]
    if whole and size > _WHOLE_AT_MOST:
        raise UserError(
            f"{whole[0]} cannot be read line by line, as data of {size / 1e9:.1f} GB must be. Write"
            f" it as JSON Lines first, with: {command_to_convert(whole[0])}"
        )
    return not whole


def scan(
    files: Sequence[str],
    validation_files: Sequence[str],
    validation_ratio: float,
    seed: int,
    progress: Progress,
    columns: Mapping[str, str] = NO_COLUMNS,
    encoding: str = AUTO,
    each: Callable[[Sample], None] = lambda sample: None,
) -> LargeFiles:
    """Check every record of `files`, and set the validation samples apart.

    Args:
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.
        each: gets every sample to train on, to count what it likes.

    Raises:
        UserError: a line is not JSON, COLUMNS does not fit, or not one record can be used.
    """
    found = look_up(files)
    separate = load_samples(validation_files, columns, encoding) if validation_files else None
    ratio = 0.0 if separate else validation_ratio
    codecs = {path: _codec_of(path, encoding) for path in found.paths}
    first_pass = _FirstPass(codecs, ratio, seed, progress, columns)
    shared = _walk(first_pass, separate.samples if separate else [], each)
    first_pass.search.refuse_unseen()
    refuse_if_nothing_is_usable(
        sum(first_pass.counts.values()), first_pass.skipped_count, first_pass.first_skipped
    )
    nothing_held_out = first_pass.ratio and not first_pass.validation
    if first_pass.first is None or nothing_held_out:
        raise UserError(
            f"VALIDATION_RATIO {validation_ratio} leaves nothing for training or for validation; "
            "give more data, or set VALIDATION_FILES."
        )
    return LargeFiles(
        chunks=first_pass.chunks,
        first=first_pass.first,
        validation=separate.samples if separate else first_pass.validation,
        validation_skipped=separate.skipped if separate else [],
        counts={**first_pass.counts, **(separate.counts if separate else {})},
        missing_files=[*found.missing, *(separate.missing_files if separate else [])],
        skipped_count=first_pass.skipped_count,
        duplicates=[
            first_pass.finder.duplicates(),
            *([find_duplicates(separate.samples)] if separate else []),
        ],
        first_skipped=first_pass.first_skipped,
        shared=shared,
        tallies=[first_pass.tally, *([separate.tally] if separate else [])],
        said=[*found.notes, *(separate.said if separate else [])],
    )


def _walk(
    first_pass: "_FirstPass", separate: Sequence[Sample], each: Callable[[Sample], None]
) -> int:
    """Read everything; how many validation samples ask what a training sample asks."""
    training = _each(first_pass.training_samples(), each)
    if separate:
        return len(overlap(training, separate))
    if not first_pass.ratio:
        deque(training, maxlen=0)
        return 0
    # Which samples are held out is known only at the end of the walk.
    asked = array("q", (hash(question_of(sample)) for sample in training))
    held_out = [hash(question_of(sample)) for sample in first_pass.validation]
    return int(np.isin(held_out, np.frombuffer(asked, dtype=np.int64)).sum())


def _each(samples: Iterator[Sample], each: Callable[[Sample], None]) -> Iterator[Sample]:
    for sample in samples:
        each(sample)
        yield sample


def read_chunk(chunk: Chunk) -> tuple[list[Sample], list[Skipped]]:
    """The samples of a chunk, and its unusable records.

    Raises:
        UserError: the file has changed since the first pass.
    """
    try:
        if chunk.packed is not None:
            data = chunk.packed.read(chunk.start, chunk.size)
        else:
            with open_regular(chunk.file) as file:
                file.seek(chunk.start)
                data = file.read(chunk.size)
    except OSError as error:
        raise unreadable(chunk.file, error) from None
    with suppress(UnicodeDecodeError):
        data = _in_utf8(data, chunk.codec)
    if _digest(data, chunk.columns) != chunk.digest:
        raise UserError(f"{chunk.file} has changed while it was trained on. Start a new run.")
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    numbers = (chunk.start, chunk.first_line, chunk.first_record)
    for _, checked in _checked(chunk.file, data, *numbers, chunk.columns):
        if isinstance(checked, Sample):
            samples.append(checked)
        else:
            skipped.append(checked)
    return samples, skipped


def iterate_samples(
    files: Sequence[str], columns: Mapping[str, str] = NO_COLUMNS, encoding: str = AUTO
) -> Iterator[Sample]:
    """The usable samples of `files`; large files are not held in memory.

    Args:
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.

    Raises:
        UserError: see `load_samples`.
    """
    paths = look_up(files).paths
    if not are_streamed(paths, encoding):
        yield from load_samples(files, columns, encoding).samples
        return
    for path in paths:
        for block in _blocks_of(path, _codec_of(path, encoding), columns):
            yield from block.samples


class _FirstPass:
    """One walk through all files. Its attributes are complete when the walk has ended."""

    def __init__(
        self,
        codecs: Mapping[Path, str],
        ratio: float,
        seed: int,
        progress: Progress,
        columns: Mapping[str, str],
    ) -> None:
        self.codecs, self.ratio, self.seed, self.progress = codecs, ratio, seed, progress
        self.columns, self.search, self.tally = columns, ColumnSearch(columns), Tally()
        self.chunks: list[Chunk] = []
        self.first: Sample | None = None
        self.validation: list[Sample] = []
        self.counts: dict[str, int] = {}
        self.first_skipped: list[Skipped] = []  # at most SHOWN
        self.skipped_count = 0
        self.finder = DuplicateFinder()

    def training_samples(self) -> Iterator[Sample]:
        size = sum(map(_size_of, self.codecs))
        seen = usable = 0
        with self.progress.doing("checking the data") as task:
            for path, codec in self.codecs.items():
                before = usable
                for block in _blocks_of(path, codec, self.columns, self.search):
                    samples = block.samples
                    for sample in samples:
                        self.finder.add(sample)
                    for checked in block.checked:
                        self.tally.add(checked)
                    held_out = self._held_out(usable, len(samples))
                    self._add_chunk(path, block, len(samples), held_out)
                    self.validation += [samples[place] for place in held_out]
                    for place in sorted(set(range(len(samples))).difference(held_out)):
                        self.first = self.first or samples[place]
                        yield samples[place]
                    usable += len(samples)
                    done = seen + block.on_disk
                    state = f"Checked {done / 1e9:.1f} of {size / 1e9:.1f} GB"
                    self.progress.reached(task, state, min(done / max(size, 1), 1.0))
                seen += _size_of(path)
                self.counts[path.as_posix()] = usable - before

    def _add_chunk(self, path: Path, block: "_Block", usable: int, held_out: list[int]) -> None:
        if not block.checked:  # blank lines alone
            return
        skipped = [record for record in block.checked if isinstance(record, Skipped)]
        self.skipped_count += len(skipped)
        self.first_skipped += skipped[: SHOWN - len(self.first_skipped)]
        self.chunks.append(
            Chunk(
                file=path,
                start=block.start,
                size=block.size,
                first_line=block.first_line,
                first_record=block.first_record,
                usable=usable,
                held_out=tuple(held_out),
                digest=_digest(block.text, self.columns),
                packed=block.packed,
                columns=self.columns,
                codec=self.codecs[path],
            )
        )

    def _held_out(self, before: int, count: int) -> list[int]:
        """The places of a block's samples that are held out for validation."""
        share = round((before + count) * self.ratio) - round(before * self.ratio)
        order = shuffled(count, self.seed, VALIDATION_STREAM, len(self.chunks))
        return sorted(order[:share].tolist())


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive whole lines."""

    start: int  # byte, of the unpacked file
    size: int
    text: bytes  # in UTF-8, whatever the file is in
    first_line: int
    first_record: int
    checked: list[Sample | Skipped]
    on_disk: int  # bytes of the file up to the block's end, packed as they are
    packed: PackedFile | None  # of a gzip file

    @property
    def samples(self) -> list[Sample]:
        return [record for record in self.checked if isinstance(record, Sample)]


def _size_of(path: Path) -> int:
    """The file's bytes; 0 if it is no file, or has just gone: reading it says so."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _is_packed(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return bool(compression_of(file.read(LONGEST_MARK)))
    except OSError:
        return False


def _digest(data: bytes, columns: Mapping[str, str]) -> str:
    """The hash of what decides a chunk's samples."""
    digest = hashlib.sha256(data)
    if columns:
        digest.update(repr(sorted(columns.items())).encode())
    return digest.hexdigest()


def _codec_of(path: Path, encoding: str) -> str:
    """Python's name of the encoding of a file that is read line by line.

    Raises:
        UserError: see `text_codec`.
    """
    with open_content(path) as file:
        return text_codec(path, file.read(_BEGINNING), encoding)


def _in_utf8(data: bytes, codec: str) -> bytes:
    return data if codec == "utf-8" else data.decode(codec).encode()


def _blocks_of(
    path: Path, codec: str, columns: Mapping[str, str], search: ColumnSearch | None = None
) -> Iterator[_Block]:
    start, line, record = 0, 1, 1
    packed: PackedFile | None = None
    try:
        with open_regular(path) as file:
            lines: io.BufferedIOBase | BinaryIO = file
            unpacking: Unpacking | None = None
            if file.read(2) == GZIP_MARK:
                packed = PackedFile(path)
                unpacking = packed.unpacking(file)
                lines = io.BufferedReader(unpacking, _AT_ONCE)
            else:
                file.seek(0)
            while data := lines.read(_BLOCK_BYTES):
                data += lines.readline(_LONGEST_LINE)
                if len(data) >= _LONGEST_LINE:
                    newlines = data.count(b"\n")
                    raise UserError(
                        f"{path}, line {line + newlines} has more than {_LONGEST_LINE:,} bytes. "
                        "Write one record per line."
                    )
                try:
                    text = _in_utf8(data, codec)
                except UnicodeDecodeError:
                    raise not_in_encoding(path, data, codec, line) from None
                checked: list[Sample | Skipped] = []
                for raw, result in _checked(path, text, start, line, record, columns):
                    if search is not None:
                        search.add(raw)
                    checked.append(result)
                start += len(data)
                on_disk = unpacking.packed_bytes if unpacking else start
                yield _Block(
                    start - len(data), len(data), text, line, record, checked, on_disk, packed
                )
                line += data.count(b"\n")
                record += len(checked)
    except OSError as error:
        raise unreadable(path, error) from None


def _checked(
    path: Path,
    data: bytes,
    start: int,
    first_line: int,
    first_record: int,
    columns: Mapping[str, str],
) -> Iterator[tuple[Any, Sample | Skipped]]:
    """Each record, and what it is."""
    name = path.as_posix()
    if start == 0:
        data = data.removeprefix(BOM)
    lines = [
        (number, line)
        for number, line in enumerate(data.split(b"\n"), start=first_line)
        if not is_blank(line)
    ]
    records = [parse_line(path, line, number) for number, line in lines]
    if may_repeat_fields(data, records):
        records = [parse_line(path, line, number, mark_repeated=True) for number, line in lines]
    for number, record in enumerate(records, start=first_record):
        yield record, check_record(record, Source(name, number), columns)
