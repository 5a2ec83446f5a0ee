"""Data files that fit into memory -> their samples, and what became of every record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tinkersmith.data.collector import fewer_collections
from tinkersmith.data.columns import NO_COLUMNS, ColumnSearch
from tinkersmith.data.report import Tally
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.sources.find import look_up
from tinkersmith.sources.records import read_records

_SHOWN_SENTENCES = 3  # about how files were read, where not one record can be used


@dataclass(frozen=True, slots=True)
class LoadedSamples:
    """All records of some files."""

    samples: list[Sample]
    skipped: list[Skipped]
    missing_files: list[str]
    counts: dict[str, int]  # file -> usable samples
    tally: Tally = field(default_factory=Tally)
    said: list[str] = field(default_factory=list[str])  # sentences about how the files were read

    @property
    def shapes(self) -> dict[str, Counter[str]]:
        """The number of samples of each shape, for each file."""
        return self.tally.shapes

    @property
    def notes(self) -> dict[str, tuple[int, Source]]:
        """What was left out or changed: in how many samples, and in which one first."""
        return self.tally.notes


@fewer_collections()
def load_samples(
    files: Sequence[str], columns: Mapping[str, str] = NO_COLUMNS, encoding: str = "auto"
) -> LoadedSamples:
    """Read and check all records of `files`.

    Args:
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.

    Raises:
        UserError: no file exists, a file cannot be read, COLUMNS does not fit, or not one record
            can be used.
    """
    search = ColumnSearch(columns)
    found = look_up(files)
    said = list(found.notes)
    tally = Tally()
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    counts: dict[str, int] = {}
    for path in found.paths:
        before, file = len(samples), path.as_posix()
        read = read_records(path, encoding, columns)
        said += read.notes
        for number, record in enumerate(read.records, start=1):
            search.add(record)
            checked = check_record(record, Source(file, number), columns)
            tally.add(checked)
            if isinstance(checked, Sample):
                samples.append(checked)
            else:
                skipped.append(checked)
        counts[file] = len(samples) - before
    search.refuse_unseen()
    refuse_if_nothing_is_usable(len(samples), len(skipped), skipped, said)
    return LoadedSamples(samples, skipped, found.missing, counts, tally, said)


def refuse_if_nothing_is_usable(
    usable: int, skipped: int, first: Sequence[Skipped], said: Sequence[str] = ()
) -> None:
    """Raise UserError if all records are skipped.

    Args:
        first: the first of them.
        said: sentences about how the files were read, such as the name of a workbook's sheet.
    """
    if not usable:
        if not first:
            raise UserError("The data files hold no record at all. Add records.")
        seen = f" The record: {first[0].shown_record()}" if first[0].unclear else ""
        how_read = "".join(f" {sentence}" for sentence in said[:_SHOWN_SENTENCES])
        raise UserError(
            f"Not one of {counted(skipped, 'record')} can be used. The first: {first[0]}{seen}"
            f"{how_read}"
        )
