"""Texts -> sketches that tell how alike two texts are, without the texts.

A sketch holds the smallest hashes of a text's character 5-grams, at most SIZE of them (bottom-k
sketches: Cohen & Kaplan, Summarizing Data using Bottom-k Sketches, 2007). Of two texts, the hashes
that both sketches must have are a random sample of all their 5-grams. The share of them that is in
both estimates the Jaccard index; for texts of up to SIZE 5-grams it is exact. The standard
deviation at 0.8 is at most 0.05. Hashes do not depend on the process or the machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinkersmith.data.near_duplicates import GRAM, POWERS, comparable, mixed

SIZE = 64  # hashes of a sketch, at most: 256 bytes
AT_ONCE = 256  # texts that are sketched together
_SEPARATOR = 0x110000  # no code point: stands between two texts
_COMMON_SHARE = (
    0.1  # of the texts; a 5-gram of more is the form of the questions, not their content
)
_COMMON_COUNT = 8  # texts; a 5-gram of fewer is never taken for the form
_SMALLEST_SAMPLE = 6  # hashes: two texts with fewer to compare are not compared
_LOOKED_UP = 16  # hashes of a text by which candidates are found
_CANDIDATES = 32  # texts that are compared with each text, the most promising ones


@dataclass(frozen=True, slots=True)
class Sketches:
    """The sketches of N texts, end to end."""

    hashes: np.ndarray  # uint32, ascending within each text
    ends: np.ndarray  # (N,) int64: where each text's hashes end

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def of(self, text: int) -> np.ndarray:
        """The hashes of one text."""
        start = int(self.ends[text - 1]) if text else 0
        return self.hashes[start : int(self.ends[text])]

    def taken(self, mask: np.ndarray) -> "Sketches":
        """The sketches where the mask, (N,), is true."""
        sizes = np.diff(self.ends, prepend=0)
        return Sketches(self.hashes[np.repeat(mask, sizes)], np.cumsum(sizes[mask]))


@dataclass(frozen=True, slots=True)
class Likeness:
    """A text, the text among others that is most like it, and the estimate of how alike."""

    text: int
    other: int
    similarity: float


def sketches_of(texts: Sequence[str]) -> Sketches:
    """The sketches of texts, which are made `comparable` first."""
    parts = [
        _sketched([comparable(text) for text in texts[start : start + AT_ONCE]])
        for start in range(0, len(texts), AT_ONCE)
    ]
    return end_to_end(parts)


def end_to_end(parts: Sequence[Sketches]) -> Sketches:
    """Sketches one after another, as one object."""
    if not parts:
        return Sketches(np.zeros(0, np.uint32), np.zeros(0, np.int64))
    sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
    return Sketches(np.concatenate([part.hashes for part in parts]), np.cumsum(sizes))


def _sketched(texts: Sequence[str]) -> Sketches:
    """The sketches of some texts, computed together."""
    code_points: list[np.ndarray] = []
    for text in texts:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        # A text shorter than a gram is filled up, so that it is one gram.
        filled = np.zeros(max(len(points), GRAM if len(points) else 0) + 1, np.uint64)
        filled[: len(points)] = points
        filled[-1] = _SEPARATOR
        code_points.append(filled)
    every = np.concatenate(code_points)
    lengths = np.array([len(points) for points in code_points])
    count = max(len(every) - GRAM + 1, 0)
    hashes = np.zeros(count, np.uint64)
    whole = np.ones(count, bool)
    for place in range(GRAM):
        window = every[place : place + count]
        hashes += window * POWERS[place]
        whole &= window != _SEPARATOR
    texts_of = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)[:count][whole]
    upper = mixed(hashes[whole]) >> np.uint64(32)
    ordered = np.sort((texts_of << np.uint64(32)) | upper)
    ordered = ordered[np.diff(ordered, prepend=~ordered[:1]) != 0]  # np.unique is 30 times slower
    owners = (ordered >> np.uint64(32)).astype(np.int64)
    firsts = np.searchsorted(owners, np.arange(len(texts)))
    ranks = np.arange(len(ordered)) - firsts[owners]
    ordered, owners = ordered[ranks < SIZE], owners[ranks < SIZE]
    sizes = np.bincount(owners, minlength=len(texts))
    return Sketches(ordered.astype(np.uint32), np.cumsum(sizes))


def most_alike(these: Sketches, those: Sketches, threshold: float) -> Iterator[Likeness]:
    """For each of `these` that is like one of `those`: the pair with the most similar one.

    What a tenth of `those` have in common is left out on both sides: instructions that are the
    same in many questions do not make two questions alike.
    """
    if not len(those):
        return
    common = _common(those)
    owners = np.repeat(np.arange(len(those)), np.diff(those.ends, prepend=0))
    content = ~np.isin(those.hashes, common)
    order = np.argsort(those.hashes[content], kind="stable")
    keys, owners = those.hashes[content][order], owners[content][order]
    for text in range(len(these)):
        hashes = these.of(text)
        looked_up = hashes[~np.isin(hashes, common)][:_LOOKED_UP]
        begins = np.searchsorted(keys, looked_up)
        ends = np.searchsorted(keys, looked_up, side="right")
        found = [owners[begin:end] for begin, end in zip(begins, ends, strict=True)]
        if not found:
            continue
        candidates, counts = np.unique(np.concatenate(found), return_counts=True)
        best = candidates[np.argsort(-counts, kind="stable")][:_CANDIDATES]
        pairs = [
            Likeness(text, other, estimated(hashes, those.of(other), common))
            for other in best.tolist()
        ]
        nearest = max(pairs, key=lambda pair: (pair.similarity, -pair.other), default=None)
        if nearest is not None and nearest.similarity >= threshold:
            yield nearest


def estimated(hashes: np.ndarray, others: np.ndarray, common: np.ndarray) -> float:
    """The Jaccard index of two texts by their sketches, without `common` hashes; 0 if too few."""
    # Above its largest hash, a full sketch does not say which grams its text has.
    full = [sketch[-1] for sketch in (hashes, others) if len(sketch) == SIZE]
    if full:
        limit = min(full)
        hashes, others = hashes[hashes <= limit], others[others <= limit]
    hashes = hashes[~np.isin(hashes, common)]
    others = others[~np.isin(others, common)]
    shared = len(np.intersect1d(hashes, others, assume_unique=True))
    union = len(hashes) + len(others) - shared
    return shared / union if union >= _SMALLEST_SAMPLE else 0.0


def _common(sketches: Sketches) -> np.ndarray:
    values, counts = np.unique(sketches.hashes, return_counts=True)
    return values[counts > max(_COMMON_COUNT, _COMMON_SHARE * len(sketches))]
