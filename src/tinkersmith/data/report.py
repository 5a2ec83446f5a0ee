"""What was read from data files -> the lines that tell the user."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from tinkersmith.data.duplicates import DUPLICATES_FILE, Duplicates
from tinkersmith.data.samples import Skipped, Source
from tinkersmith.data.shapes import SHAPES
from tinkersmith.plurals import counted
from tinkersmith.sources.find import does_not_exist

NO_SHAPES: Mapping[str, Counter[str]] = MappingProxyType({})

SHOWN = 10  # skipped records that are printed; the others are in a file


def read_lines(
    counts: Mapping[str, int],
    missing_files: Iterable[str],
    shapes: Mapping[str, Counter[str]] = NO_SHAPES,
) -> list[str]:
    """How many samples came from each file, and a warning for each file that is missing.

    Args:
        shapes: the number of samples of each shape, for each file.
    """
    lines = [
        f"Read {counted(count, 'sample')} from {file}{_as(shapes.get(file))}"
        for file, count in counts.items()
    ]
    lines += [f"Warning: {does_not_exist([file])}; going on without it." for file in missing_files]
    return lines


def note_lines(notes: Mapping[str, tuple[int, Source]]) -> list[str]:
    """What was left out or changed in samples that are used: how often, and where first."""
    return [
        f"In {counted(count, 'sample')}: {note} (the first: {first})."
        for note, (count, first) in sorted(notes.items(), key=lambda item: -item[1][0])
    ]


def _as(shapes: Counter[str] | None) -> str:
    """How a file's records were read, as the end of a sentence."""
    if not shapes:
        return ""
    if len(shapes) == 1:
        return f" as {SHAPES[next(iter(shapes))]}"
    counts = [f"{count:,} as {SHAPES[shape]}" for shape, count in shapes.most_common()]
    return ": " + ", ".join(counts)


def skipped_lines(skipped: Sequence[Skipped], total: int, listed_in: str = "") -> list[str]:
    """The skipped records with their reasons: the first ones, if a file lists all of them.

    Args:
        skipped: at least the first SHOWN records.
        total: how many were skipped.
        listed_in: the file that lists all of them, if there is one.
    """
    if not total:
        return []
    where = f", listed in {listed_in}" if listed_in else ""
    lines = [f"Skipped {counted(total, 'record')}{where}:"]
    shown = skipped[:SHOWN] if listed_in else skipped
    lines += [f"  {record}" for record in shown]
    if total > len(shown):
        lines.append(f"  ... and {total - len(shown):,} more")
    return lines


def duplicate_lines(per_set: Iterable[Duplicates], *, listed: bool) -> list[str]:
    """How many duplicates there are, with the first pair; `listed` if the run lists them all."""
    lines: list[str] = []
    for duplicates in per_set:
        for duplicate, first in duplicates:
            where = f", listed in {DUPLICATES_FILE}" if listed else ""
            lines.append(
                f"Found {counted(len(duplicates), 'exact duplicate')}{where}. The first: "
                f"{duplicate}, equals {first}."
            )
            break
    return lines


def validation_lines(held_out: int, shared: int) -> list[str]:
    """How many samples validate, and a warning if the training data asks the same questions."""
    lines: list[str] = []
    if held_out:
        lines.append(f"Kept for validation: {counted(held_out, 'sample')}.")
    if shared:
        who = counted(shared, "validation sample asks", "validation samples ask")
        lines.append(
            f"Warning: {who} what a training sample asks; the validation loss will look too good."
        )
    return lines
