"""What was read from data files -> the lines that tell the user."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tinkersmith.data.duplicates import DUPLICATES_FILE, Duplicates
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.layout import SHAPES
from tinkersmith.plurals import counted
from tinkersmith.sources.find import does_not_exist

NO_SHAPES: Mapping[str, Counter[str]] = MappingProxyType({})

SHOWN = 10  # skipped records that are printed, or reasons if they are more
_SHOWN_FILES = 20


_MOST_REASONS = 1000  # that are counted apart: a reason can name a value, so each can be another


@dataclass(frozen=True, slots=True)
class Tally:
    """How the records of some files were read. Its size does not grow with the files."""

    shapes: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    notes: dict[str, tuple[int, Source]] = field(default_factory=dict[str, tuple[int, Source]])
    reasons: dict[str, tuple[int, Skipped]] = field(
        default_factory=dict[str, tuple[int, Skipped]]
    )  # why records were skipped

    def add(self, checked: Sample | Skipped) -> None:
        """Count the next record: its shape and its notes, or the reason why it is skipped."""
        if isinstance(checked, Skipped):
            self._add_reason(checked.reason, 1, checked)
            return
        file = checked.source.file
        if file not in self.shapes:
            self.shapes[file] = Counter()
        self.shapes[file][checked.shape] += 1
        for note in checked.notes:
            count, first = self.notes.get(note, (0, checked.source))
            self.notes[note] = (count + 1, first)

    def _add_reason(self, reason: str, count: int, skipped: Skipped) -> None:
        if reason not in self.reasons and len(self.reasons) >= _MOST_REASONS:
            reason = next(reversed(self.reasons))
        before, first = self.reasons.get(reason, (0, skipped))
        self.reasons[reason] = (before + count, first)

    @classmethod
    def together(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The counts of all `tallies`."""
        whole = cls()
        for tally in tallies:
            for file, shapes in tally.shapes.items():
                whole.shapes.setdefault(file, Counter()).update(shapes)
            for note, (count, first) in tally.notes.items():
                before, earlier = whole.notes.get(note, (0, first))
                whole.notes[note] = (before + count, earlier)
            for reason, (count, skipped) in tally.reasons.items():
                whole._add_reason(reason, count, skipped)
        return whole


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
        for file, count in list(counts.items())[:_SHOWN_FILES]
    ]
    if more := list(counts)[_SHOWN_FILES:]:
        together = sum((shapes.get(file, Counter()) for file in more), Counter[str]())
        samples = counted(sum(counts[file] for file in more), "sample")
        lines.append(f"Read {samples} from {counted(len(more), 'more file')}{_as(together)}")
    lines += [f"Warning: {does_not_exist([file])}; going on without it." for file in missing_files]
    return lines


def note_lines(notes: Mapping[str, tuple[int, Source]]) -> list[str]:
    """What was left out or changed in samples that are used: how often, and where first."""
    ordered = sorted(notes.items(), key=lambda item: -item[1][0])
    lines = [
        f"In {counted(count, 'sample')}: {note} (the first: {first})."
        for note, (count, first) in ordered[:SHOWN]
    ]
    if more := ordered[SHOWN:]:
        lines.append(f"... and {counted(len(more), 'note')} of other kinds.")
    return lines


def _as(shapes: Counter[str] | None) -> str:
    """How a file's records were read, as the end of a sentence."""
    if not shapes:
        return ""
    if len(shapes) == 1:
        return f" as {SHAPES[next(iter(shapes))]}"
    counts = [f"{count:,} as {SHAPES[shape]}" for shape, count in shapes.most_common()]
    return ": " + ", ".join(counts)


def skipped_lines(
    skipped: Sequence[Skipped],
    total: int,
    listed_in: str = "",
    reasons: Mapping[str, tuple[int, Skipped]] | None = None,
) -> list[str]:
    """The skipped records with their reasons; if they are many, the first one of each reason.

    Args:
        skipped: at least the first SHOWN records.
        total: how many were skipped.
        listed_in: the file that lists all of them, if there is one.
        reasons: how often each reason is given, and where first; None to count them in `skipped`.
    """
    if not total:
        return []
    where = f", listed in {listed_in}" if listed_in else ""
    lines = [f"Skipped {counted(total, 'record')}{where}:"]
    if total <= SHOWN:
        groups = [(1, record) for record in skipped]
    else:
        if reasons is None:
            tally = Tally()
            for record in skipped:
                tally.add(record)
            reasons = tally.reasons
        groups = sorted(reasons.values(), key=lambda group: -group[0])
    for count, record in groups[:SHOWN]:
        also = f" ({counted(count, 'record')})" if count > 1 else ""
        lines.append(f"  {record}{also}")
    first = next((record for _, record in groups[:SHOWN] if record.unclear), None)
    if first is not None:
        lines.append(f"  The record of {first.source}: {first.shown_record()}")
    if others := groups[SHOWN:]:
        number = sum(count for count, _ in others)
        lines.append(
            f"  ... and {counted(number, 'record')} for {counted(len(others), 'other reason')}"
        )
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
    if lines and listed:
        lines.append("  tinkersmith check also finds near-duplicates, and what else may be wrong.")
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
