"""Samples that equal an earlier one in every text: counted and named, and trained on as they are.

Of every sample a few bytes are kept, so that files of any size can be searched.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinkersmith.data.samples import Sample, Source

COPIES_FILE = "duplicates.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Pairs of a copy and the first sample that it equals, in the order of the copies."""

    files: list[str]
    places: np.ndarray  # (N, 2), indices of `files`
    records: np.ndarray  # (N, 2)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[Source, Source]]:
        for places, records in zip(self.places, self.records, strict=True):
            copy, first = (
                Source(self.files[place], record)
                for place, record in zip(places.tolist(), records.tolist(), strict=True)
            )
            yield copy, first

    def __str__(self) -> str:
        """How many there are, and one of them."""
        copy, first = next(iter(self))
        return (
            f"{len(self):,} samples are exact copies of earlier ones (the first: {copy}, equals "
            f"{first})"
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """Those of duplicates.jsonl."""
        for copy, first in self:
            of = {"file": first.file, "record": first.record}
            yield {"file": copy.file, "record": copy.record, "copy_of": of}


class CopyFinder:
    """Finds them among samples that come file by file; 12 bytes of each are kept, and
    `found` takes 20 more for a moment.

    Samples count as equal if Python's hashes of their texts are, which have 64 bits: by chance, one
    pair among 25 million samples in 60,000 such files.
    """

    def __init__(self) -> None:
        self._hashes, self._records = array("q"), array("I")
        self._files: list[str] = []
        self._starts: list[int] = []  # the first sample of each

    def add(self, sample: Sample) -> None:
        if not self._files or self._files[-1] != sample.source.file:
            self._files.append(sample.source.file)
            self._starts.append(len(self._records))
        texts = (sample.instruction, sample.input, sample.output, sample.system, sample.history)
        self._hashes.append(hash(texts))
        self._records.append(sample.source.record)

    def found(self) -> Copies:
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        repeats = 1 + np.flatnonzero(ordered[1:] == ordered[:-1])
        firsts = np.searchsorted(ordered, ordered[repeats])
        pairs = np.stack([order[repeats], order[firsts]], axis=1)
        pairs = pairs[np.argsort(pairs[:, 0])]
        places = np.searchsorted(self._starts, pairs, side="right") - 1
        records = np.frombuffer(self._records, dtype=np.uint32)
        return Copies(self._files, places, records[pairs])


def find_copies(samples: Iterable[Sample]) -> Copies:
    finder = CopyFinder()
    for sample in samples:
        finder.add(sample)
    return finder.found()
