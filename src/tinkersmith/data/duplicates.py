"""Samples -> the exact duplicates among them. They are counted and listed, and still trained on.

A few bytes are kept per sample, so files of any size can be searched.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinkersmith.data.samples import Sample, Source

DUPLICATES_FILE = "duplicates.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """Pairs of a duplicate and the first sample that it equals, in the order of the duplicates.

    D: the number of duplicates. The second axis is (duplicate, first sample).
    """

    files: list[str]
    places: np.ndarray  # (D, 2), indices of `files`
    records: np.ndarray  # (D, 2)
    numbers: np.ndarray  # (D, 2), among all samples in their order

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[Source, Source]]:
        for places, records in zip(self.places, self.records, strict=True):
            duplicate, first = (
                Source(self.files[int(place)], int(record))
                for place, record in zip(places, records, strict=True)
            )
            yield duplicate, first

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of duplicates.jsonl."""
        for duplicate, first in self:
            original = {"file": first.file, "record": first.record}
            yield {"file": duplicate.file, "record": duplicate.record, "copy_of": original}


class DuplicateFinder:
    """Finds the duplicates among samples that come file by file.

    It keeps 12 bytes per sample; `duplicates` takes 20 more while it runs. Two samples count as
    equal if Python's 64-bit hashes of their texts are. A false pair among 25 million samples
    happens by chance once in 60,000 such data sets.
    """

    def __init__(self) -> None:
        self._hashes, self._records = array("q"), array("I")
        self._files: list[str] = []
        self._starts: list[int] = []  # the first sample of each file

    def add(self, sample: Sample) -> None:
        """Take the next sample. All samples of a file come one after another."""
        if not self._files or self._files[-1] != sample.source.file:
            self._files.append(sample.source.file)
            self._starts.append(len(self._records))
        turns = tuple(
            (turn.role, turn.text, turn.input, turn.thought, repr(turn.tool_calls))
            for turn in sample.turns
        )
        self._hashes.append(hash(turns))
        self._records.append(sample.source.record)

    def duplicates(self) -> Duplicates:
        """All duplicates among the samples so far."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)  # (N,) for N samples
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        repeats = 1 + np.flatnonzero(ordered[1:] == ordered[:-1])  # (D,)
        firsts = np.searchsorted(ordered, ordered[repeats])
        pairs = np.stack([order[repeats], order[firsts]], axis=1)  # (D, 2)
        pairs = pairs[np.argsort(pairs[:, 0])]
        places = np.searchsorted(self._starts, pairs, side="right") - 1
        records = np.frombuffer(self._records, dtype=np.uint32)
        return Duplicates(self._files, places, records[pairs], pairs)


def find_duplicates(samples: Iterable[Sample]) -> Duplicates:
    """The duplicates among `samples`, which come file by file."""
    finder = DuplicateFinder()
    for sample in samples:
        finder.add(sample)
    return finder.duplicates()
