"""Data files of any kind -> their samples one after another, and what became of every record."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinkersmith.data.columns import NO_COLUMNS, ColumnSearch
from tinkersmith.data.load import refuse_if_nothing_is_usable
from tinkersmith.data.report import SHOWN, Tally, note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.check import check_record
from tinkersmith.sources.encodings import AUTO
from tinkersmith.sources.find import look_up
from tinkersmith.sources.records import iterate_records, read_records

_WHOLE_AT_MOST = 50_000_000  # bytes of a file: a smaller one is read whole, which knows encodings


class Reading:
    """Some files, as often as they are needed; memory does not grow with them.

    What is counted is complete when `samples` has ended.

    Args:
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.
    """

    def __init__(
        self,
        files: Sequence[str],
        columns: Mapping[str, str] = NO_COLUMNS,
        encoding: str = AUTO,
    ) -> None:
        self._columns, self._encoding = columns, encoding
        found = look_up(files)
        self.paths, self.missing_files = found.paths, found.missing
        self.said = list(found.notes)  # sentences about how the files were read
        self.counts: dict[str, int] = {path.as_posix(): 0 for path in self.paths}
        self.tally = Tally()
        self.first_skipped: list[Skipped] = []  # at most SHOWN
        self.skipped_count = 0

    def samples(self) -> Iterator[Sample]:
        """The usable samples, file by file.

        Raises:
            UserError: a file cannot be read, COLUMNS does not fit, or not one record can be used.
        """
        search = ColumnSearch(self._columns)
        for record, checked in self._checked(self.said):
            search.add(record)
            self.tally.add(checked)
            if isinstance(checked, Sample):
                self.counts[checked.source.file] += 1
                yield checked
                continue
            self.skipped_count += 1
            if len(self.first_skipped) < SHOWN:
                self.first_skipped.append(checked)
        search.refuse_unseen()
        refuse_if_nothing_is_usable(
            sum(self.counts.values()), self.skipped_count, self.first_skipped, self.said
        )

    def again(self) -> Iterator[Sample]:
        """All samples once more, without counting them."""
        return (checked for _, checked in self._checked([]) if isinstance(checked, Sample))

    def records(self) -> Iterator[tuple[Source, Any, bool]]:
        """Every record as its file has it, with its place, and whether it is a sample."""
        for record, checked in self._checked([], exact_numbers=True):
            yield checked.source, record, isinstance(checked, Sample)

    def lines(self) -> list[str]:
        """What was read, line by line, for the user."""
        return [
            *self.said,
            *read_lines(self.counts, self.missing_files, self.tally.shapes),
            *note_lines(self.tally.notes),
            *skipped_lines(self.first_skipped, self.skipped_count, reasons=self.tally.reasons),
        ]

    def _checked(
        self, said: list[str], *, exact_numbers: bool = False
    ) -> Iterator[tuple[Any, Sample | Skipped]]:
        for path in self.paths:
            name = path.as_posix()
            records = self._records_of(path, said, exact_numbers)
            for number, record in enumerate(records, start=1):
                yield record, check_record(record, Source(name, number), self._columns)

    def _records_of(self, path: Path, said: list[str], exact_numbers: bool) -> Iterable[Any]:
        """The records; `exact_numbers` as in `read_records`, for those that are written again."""
        try:
            is_small = path.stat().st_size <= _WHOLE_AT_MOST
        except OSError:  # a data set of a hub, or a file that has just gone: reading it says so
            is_small = False
        if not is_small:
            return iterate_records(path, self._encoding, self._columns, said)
        read = read_records(path, self._encoding, self._columns, exact_numbers=exact_numbers)
        said += read.notes
        return read.records
