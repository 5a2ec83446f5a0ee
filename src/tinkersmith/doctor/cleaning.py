"""Data files -> a JSON Lines file without the records that are named."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.data.samples import Source, record_text
from tinkersmith.errors import UserError
from tinkersmith.files import write_atomically
from tinkersmith.plurals import counted


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of every record that was read."""

    path: Path
    written: int
    left_out: dict[str, int]  # kind -> records; each counts once, for the first kind that names it
    unusable: int

    def lines(self) -> list[str]:
        left_out = sum(self.left_out.values())
        read = self.written + left_out + self.unusable
        lines = [
            f"Wrote {counted(self.written, 'record')} to {self.path}: of {read:,} read, "
            f"{left_out:,} left out and {self.unusable:,} that cannot be used"
        ]
        lines += [f"  {kind}: {count:,}" for kind, count in self.left_out.items()]
        if len(self.left_out) > 1:
            lines.append("  (a record of several kinds counts for the first of them)")
        return lines


def check_output(path: Path, force: bool) -> None:
    """Refuse an output that must not be written.

    Raises:
        UserError: it is a folder, or exists and `force` is false.
    """
    if path.suffix not in (".jsonl", ".ndjson"):
        raise UserError(f"{path} would hold JSON Lines; give it a name that ends in .jsonl.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists. Name another file, or add --force to overwrite it.")


def write_cleaned(
    path: Path,
    records: Iterable[tuple[Source, Any, bool]],
    left_out: Mapping[str, AbstractSet[Source]],
    kinds: Sequence[str],
) -> Cleaned:
    """Write the records that no kind names, in their order and with all their fields.

    Args:
        records: where each comes from, the record, and whether it can be used.
        left_out: the samples of each kind that are left out.
        kinds: those that count here.

    Raises:
        UserError: the file cannot be written, or nothing is left; an old one is then unchanged.
    """
    counts: Counter[str] = Counter(dict.fromkeys(kinds, 0))
    unusable = written = 0

    def lines() -> Iterator[bytes]:
        nonlocal unusable, written
        for source, record, usable in records:
            kind = next((kind for kind in kinds if source in left_out[kind]), None)
            if not usable:
                unusable += 1
            elif kind is not None:
                counts[kind] += 1
            else:
                written += 1
                yield (record_text(record) + "\n").encode()
        if not written:
            raise UserError(f"{path} would hold no record. Name fewer kinds with --drop.")

    try:
        write_atomically(path, lines())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Nothing was changed. Free some "
            "space or name another place."
        ) from None
    return Cleaned(path, written, dict(counts), unusable)
