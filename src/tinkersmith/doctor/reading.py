"""Data files -> their samples one after another, and what became of every record."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tinkersmith.data.large_files import are_streamed, iterate_samples
from tinkersmith.data.load import load_samples, refuse_if_nothing_is_usable
from tinkersmith.data.report import SHOWN
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes import check_record
from tinkersmith.sources.find import find_files
from tinkersmith.sources.json_files import read_records


class Reading:
    """One walk through some files. Its counts are complete when the walk has ended."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self.paths, self.missing_files = find_files(files)
        self.counts: dict[str, int] = {path.as_posix(): 0 for path in self.paths}
        self.first_skipped: list[Skipped] = []  # at most SHOWN
        self.skipped: Counter[str] = Counter()  # file -> unusable records

    def samples(self) -> Iterator[Sample]:
        """The usable samples, file by file.

        Raises:
            UserError: a file cannot be read, or not one record can be used.
        """
        for checked in self._checked():
            if isinstance(checked, Sample):
                self.counts[checked.source.file] += 1
                yield checked
            else:
                self.skipped[checked.source.file] += 1
                if len(self.first_skipped) < SHOWN:
                    self.first_skipped.append(checked)
        refuse_if_nothing_is_usable(
            sum(self.counts.values()), self.skipped.total(), self.first_skipped
        )

    def again(self) -> Iterator[Sample]:
        """The samples of a walk that has ended, once more."""
        return (checked for checked in self._checked() if isinstance(checked, Sample))

    def records(self) -> Iterator[tuple[Source, Any, bool]]:
        """Every record as its file has it, with its place, and whether it is a sample."""
        for path in self.paths:
            # Python's own parser: orjson rounds whole numbers over 64 bits.
            raw = read_records(path, parse=lambda data: json.loads(data.decode("utf-8")))
            for number, record in enumerate(raw, start=1):
                source = Source(path.as_posix(), number)
                yield source, record, isinstance(check_record(record, source), Sample)

    def _checked(self) -> Iterator[Sample | Skipped]:
        if are_streamed(self.paths):
            yield from iterate_samples(self.files)
            return
        loaded = load_samples(self.files)
        yield from loaded.skipped
        yield from loaded.samples
