"""Data files that fit into memory -> their samples, and what became of every record."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes import check_record
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.sources.find import find_files
from tinkersmith.sources.json_files import read_records


@dataclass(frozen=True, slots=True)
class LoadedSamples:
    """All records of some files."""

    samples: list[Sample]
    skipped: list[Skipped]
    missing_files: list[str]
    counts: dict[str, int]  # file -> usable samples


def load_samples(files: Sequence[str]) -> LoadedSamples:
    """Read and check all records of `files`.

    Raises:
        UserError: no file exists, a file is not JSON, or not one record can be used.
    """
    paths, missing = find_files(files)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    counts: dict[str, int] = {}
    for path in paths:
        before = len(samples)
        for number, record in enumerate(read_records(path), start=1):
            checked = check_record(record, Source(path.as_posix(), number))
            if isinstance(checked, Sample):
                samples.append(checked)
            else:
                skipped.append(checked)
        counts[path.as_posix()] = len(samples) - before
    refuse_if_nothing_is_usable(len(samples), len(skipped), skipped)
    return LoadedSamples(samples, skipped, missing, counts)


def refuse_if_nothing_is_usable(usable: int, skipped: int, first: Sequence[Skipped]) -> None:
    """Raise UserError if all records are skipped; `first` holds the first of them."""
    if not usable:
        if not first:
            raise UserError("The data files hold no record at all. Add records.")
        raise UserError(
            f"Not one of {counted(skipped, 'record')} can be used. The first: {first[0]}"
        )
