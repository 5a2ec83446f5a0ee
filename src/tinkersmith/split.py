"""Data files -> a training and a test file: shuffled by seed, one question only on one side.

The same records, ratio and seed give the same bytes, whatever the order of files and records.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.data.columns import NO_COLUMNS, ColumnSearch
from tinkersmith.data.duplicates import find_duplicates
from tinkersmith.data.lengths import LengthStatistics, format_length_statistics
from tinkersmith.data.load import refuse_if_nothing_is_usable
from tinkersmith.data.report import Tally, note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source, characters, question_of, record_text
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError
from tinkersmith.files import read_json_object, write_atomically, write_json
from tinkersmith.plurals import counted
from tinkersmith.progress import Say, watched
from tinkersmith.sources.encodings import AUTO
from tinkersmith.sources.find import TEST_FILE, TRAIN_FILE, look_up, refuse_inputs_as_outputs
from tinkersmith.sources.records import read_records

INPUT_FILES = ["data/word_problems.json"]
TRAIN_RATIO = 0.8
SEED = 42

_MARKER = ".split.json"  # beside the outputs: the SHA-256 of the files that we wrote
_SKIPPED_FILE = "split_skipped.jsonl"


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What was read and written."""

    train_file: Path
    test_file: Path
    counts: dict[str, int]  # input file -> usable samples
    missing_files: list[str]
    train_count: int
    test_count: int
    questions: int  # different ones
    duplicates: int  # samples equal to an earlier one in every text
    skipped: list[Skipped]
    skipped_file: Path | None
    unit: str  # of the lengths, for people
    train_lengths: LengthStatistics
    test_lengths: LengthStatistics
    tally: Tally = field(default_factory=Tally)  # how the records were read
    said: list[str] = field(default_factory=list[str])  # sentences about how the files were read


def split_dataset(
    files: Sequence[str],
    ratio: float = TRAIN_RATIO,
    seed: int = SEED,
    train_out: Path | str = TRAIN_FILE,
    test_out: Path | str = TEST_FILE,
    force: bool = False,
    say: Say = print,
    columns: Mapping[str, str] = NO_COLUMNS,
    encoding: str = AUTO,
) -> SplitResult:
    """Write about `ratio` of the samples to `train_out` and the others to `test_out`.

    Both files are written, or neither. Records keep all their fields.

    Args:
        force: overwrite files that this command did not write.
        say: prints a line about work that takes long.
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.

    Raises:
        UserError: the input is wrong, or an output exists and may not be overwritten.
    """
    if not 0 < ratio < 1:
        raise UserError(f"TRAIN_RATIO is {ratio}; it must be above 0 and below 1 (usual: 0.8).")
    train_out, test_out = Path(train_out), Path(test_out)
    found = look_up(files)
    said = list(found.notes)
    _check_outputs(found.paths, train_out, test_out, force)
    skipped_out = train_out.parent / _SKIPPED_FILE
    with watched(say) as progress:
        with progress.doing("reading the data"):
            records, samples, skipped = _read(found.paths, columns, encoding, said)
        refuse_if_nothing_is_usable(len(samples), len(skipped), skipped, said)
        with progress.doing("splitting the data"):
            groups = _groups_in_order(records, samples, seed)
            train, test = _cut(groups, ratio)
        with progress.doing("measuring the lengths"):
            unit, (train_lengths, test_lengths) = _measure(samples, (train, test))
        with progress.doing("writing the files"):
            contents = {
                train_out: _as_json([records[index] for index in train]),
                test_out: _as_json([records[index] for index in test]),
                **({skipped_out: _as_lines(skipped)} if skipped else {}),
            }
            _write_all_or_none(contents)
    if not skipped and _is_ours(skipped_out):
        skipped_out.unlink(missing_ok=True)
    in_files = Counter(sample.source.file for sample in samples)
    tally = Tally()
    for sample in samples:
        tally.add(sample)
    return SplitResult(
        train_file=train_out,
        test_file=test_out,
        counts={path.as_posix(): in_files[path.as_posix()] for path in found.paths},
        missing_files=found.missing,
        train_count=len(train),
        test_count=len(test),
        questions=len(groups),
        duplicates=len(find_duplicates(samples)),
        skipped=skipped,
        skipped_file=skipped_out if skipped else None,
        unit=unit,
        train_lengths=train_lengths,
        test_lengths=test_lengths,
        tally=tally,
        said=said,
    )


def format_split(result: SplitResult) -> str:
    """What was read, what was written, and how long the samples are."""
    lines = [*result.said]
    lines += read_lines(result.counts, result.missing_files, result.tally.shapes)
    lines += note_lines(result.tally.notes)
    total = result.train_count + result.test_count
    if repeated := total - result.questions:
        lines.append(
            f"Samples that repeat an earlier question: {repeated:,} (exact duplicates: "
            f"{result.duplicates:,}); each stays on the side of the first"
        )
    lines += skipped_lines(result.skipped, len(result.skipped), str(result.skipped_file))
    for file, count in (
        (result.train_file, result.train_count),
        (result.test_file, result.test_count),
    ):
        share = f"{100 * count / total:.1f} %"
        lines.append(f"Wrote {counted(count, 'sample')} ({share}) to {file}")
    lines += [
        "",
        f"Lengths in {result.unit}:",
        format_length_statistics(result.train_lengths, "Training"),
        "",
        format_length_statistics(result.test_lengths, "Test"),
    ]
    return "\n".join(lines)


def _read(
    files: Sequence[Path], columns: Mapping[str, str], encoding: str, said: list[str]
) -> tuple[list[Any], list[Sample], list[Skipped]]:
    """The usable records, their samples, and the unusable records."""
    search = ColumnSearch(columns)
    records: list[Any] = []
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for path in files:
        read = read_records(path, encoding, columns, exact_numbers=True)
        said += read.notes
        for number, record in enumerate(read.records, start=1):
            search.add(record)
            checked = check_record(record, Source(path.as_posix(), number), columns)
            if isinstance(checked, Skipped):
                skipped.append(checked)
                continue
            records.append(record)
            samples.append(checked)
    search.refuse_unseen()
    return records, samples, skipped


def _groups_in_order(
    records: Sequence[Any], samples: Sequence[Sample], seed: int
) -> list[list[int]]:
    """The indices of the records of each question. The questions are shuffled by `seed`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        question = record_text([seed, question_of(sample)])
        groups[hashlib.sha256(question.encode()).hexdigest()].append(index)
    # Sorting by hash is a shuffle that no version of any library changes.
    return [
        sorted(group, key=lambda index: record_text(records[index]))
        for _, group in sorted(groups.items())
    ]


def _cut(groups: list[list[int]], ratio: float) -> tuple[list[int], list[int]]:
    """Cut between two questions, so that the first side is nearest to `ratio` of all samples."""
    if len(groups) < 2:
        raise UserError(
            "All records ask the same question, so there is nothing to test on. Add others."
        )
    total = sum(len(group) for group in groups)
    best, distance, reached = 1, float("inf"), 0
    for place, group in enumerate(groups[:-1], start=1):
        reached += len(group)
        if abs(reached - ratio * total) < distance:
            best, distance = place, abs(reached - ratio * total)
    first = [index for group in groups[:best] for index in group]
    return first, [index for group in groups[best:] for index in group]


def _measure(
    samples: Sequence[Sample], indices: Sequence[Sequence[int]]
) -> tuple[str, list[LengthStatistics]]:
    """The unit and each side's lengths: tokens of the bundled model, or characters without it."""
    from tinkersmith.bundled import BUNDLED_MODELS

    sides = [[samples[index] for index in side] for side in indices]
    name, folder = next(iter(BUNDLED_MODELS.items()))
    if not (folder / "tokenizer.json").is_file():
        lengths = [[characters(sample) for sample in side] for side in sides]
        return "characters", [LengthStatistics.of(side, "characters") for side in lengths]

    from tinkersmith.text.tokenize import token_lengths

    lengths = [token_lengths(side, folder, name, "instruction") for side in sides]
    unit = f"tokens of {name} (other models count differently)"
    return unit, [LengthStatistics.of(side) for side in lengths]


def _check_outputs(inputs: Sequence[Path], train_out: Path, test_out: Path, force: bool) -> None:
    if train_out.resolve() == test_out.resolve():
        raise UserError(f"{train_out} is named for both outputs. Name two files.")
    refuse_inputs_as_outputs((train_out, test_out, train_out.parent / _SKIPPED_FILE), inputs)
    for path in (train_out, test_out):
        if path.suffix != ".json":
            raise UserError(f"{path} would hold a JSON array; give it a name that ends in .json.")
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name a file.")
        if path.exists() and not force and not _is_ours(path):
            raise UserError(
                f"{path} exists and was not written by this command, or was changed since. Move it "
                "away, name another output, or add --force to overwrite it."
            )


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    return _digest(path.read_bytes()) in _marks(path.parent).get(path.name, [])


def _marks(folder: Path) -> dict[str, list[str]]:
    """The hashes of the files that we wrote into a folder, by name; what is damaged is none."""
    try:
        marks = read_json_object(folder / _MARKER)
    except (OSError, ValueError):
        return {}
    return {name: hashes for name, hashes in marks.items() if isinstance(hashes, list)}


def _write_all_or_none(contents: dict[Path, bytes]) -> None:
    """Write everything to temporary files first, so that a full disk leaves the old files whole."""
    temporary = {path: path.with_name(f".{path.name}.new") for path in contents}
    renamed: list[tuple[Path, bytes | None]] = []
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            write_atomically(temporary[path], content)
        for path, content in contents.items():
            _mark(path, content)
        for path in contents:
            old = path.read_bytes() if path.exists() else None
            os.replace(temporary[path], path)
            renamed.append((path, old))
    except BaseException as error:
        for done, old in renamed:
            if old is None:
                done.unlink()
            else:
                write_atomically(done, old)
        if isinstance(error, OSError):
            raise UserError(
                f"{path} cannot be written: {error.strerror}. Nothing was changed. Free some "
                "space or choose another folder."
            ) from None
        raise
    finally:
        for file in temporary.values():
            with suppress(OSError):  # already renamed, or its folder was not made
                file.unlink()


def _mark(path: Path, content: bytes) -> None:
    """Note the hash of what we are about to write, and of the old file in case we are stopped."""
    present = [_digest(path.read_bytes())] if _is_ours(path) else []
    marks = _marks(path.parent)
    marks[path.name] = [*present, _digest(content)]
    write_json(path.parent / _MARKER, marks)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_lines(skipped: Sequence[Skipped]) -> bytes:
    return "".join(record_text(record.to_json()) + "\n" for record in skipped).encode()


def _as_json(records: list[Any]) -> bytes:
    text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    return text.encode("utf-8", "backslashreplace")
