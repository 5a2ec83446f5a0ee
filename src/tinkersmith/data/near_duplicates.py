"""Texts -> the pairs among them that are nearly equal, each with its true similarity.

The similarity of two texts is the Jaccard index of their sets of character 5-grams: the shared ones
divided by all. Characters, not words, so that Chinese counts like English. MinHash (Broder 1997,
from `datasketch`) names the candidates; each is then compared exactly, so no pair is false.

About 320 bytes are kept per text. The texts themselves are asked for again when candidates are
compared, so they need not be in memory. This module does not know samples or files.
"""

import math
import unicodedata
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

THRESHOLD = 0.8
LOWEST_THRESHOLD = 0.5  # below, most texts of a language are candidates of each other
GRAM = 5  # characters
RECALL = 0.99  # of pairs at the threshold, at least

_HASHES = 128  # minima of a text, at most
_AT_ONCE = 4096  # 5-grams of a text whose hashes are in memory together (2 MB)
_BLOCK = 1024  # texts whose bands are computed together
_NEIGHBOURS = 5  # texts of a bucket that each of its texts is paired with, besides the first
_TRIES = 16  # candidates of a text that are compared, the most similar ones
_PAIRS_AT_ONCE = 1 << 16
_GRAMS_IN_MEMORY = 4_000_000  # 32 MB of 5-grams of texts that were compared last

TextOf = Callable[[int], str]  # the text that was added as the i-th


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two texts that are nearly equal, by their numbers in the order of their coming."""

    text: int
    other: int
    similarity: float  # the Jaccard index, from the threshold to 1


def comparable(text: str) -> str:
    """The text as it is compared: NFKC, without case, each run of white space as one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def similarity(text: str, other: str) -> float:
    """The Jaccard index of the 5-grams of two texts, after `comparable`; 1 if both are empty."""
    return _jaccard(_gram_set(comparable(text)), _gram_set(comparable(other)))


def near_duplicates(
    texts: Sequence[str], threshold: float = THRESHOLD, seed: int = 0
) -> list[NearPair]:
    """The near-duplicates of earlier texts; see `Signatures.pairs`."""
    signatures = Signatures(threshold, seed)
    for text in texts:
        signatures.add(text)
    return signatures.pairs(texts.__getitem__)


def bands_for(threshold: float) -> tuple[int, int]:
    """Bands and rows of the search: a pair at the threshold is a candidate with RECALL, at least.

    Two texts of similarity s share all r rows of one of b bands with probability 1 - (1 - s^r)^b
    (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4.2). The most rows are
    chosen, so that there are few candidates below the threshold.
    """
    for rows in range(16, 1, -1):
        bands = _HASHES // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return _HASHES, 1


class Signatures:
    """What is kept of texts to find near-duplicates among them.

    Args:
        threshold: from LOWEST_THRESHOLD to 1.
        seed: decides the hash functions; signatures of different seeds cannot be compared.
    """

    def __init__(self, threshold: float = THRESHOLD, seed: int = 0) -> None:
        if not LOWEST_THRESHOLD <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold}, not {LOWEST_THRESHOLD} to 1")
        self.threshold = threshold
        self.bands, self.rows = bands_for(threshold)
        self._minhash: Any = _new_minhash(self.bands * self.rows, seed)
        self._factors = np.random.default_rng(seed).integers(
            1, 2**63, self.rows, dtype=np.uint64
        ) * np.uint64(2) + np.uint64(1)
        self._waiting: list[np.ndarray] = []
        self._keys = bytearray()
        self._sketches = bytearray()
        self._texts = array("q")  # hashes of the whole texts

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Take the next text."""
        text = comparable(text)
        self._texts.append(hash(text))
        grams = _gram_hashes(text)
        self._minhash.clear()
        for start in range(0, len(grams), _AT_ONCE):
            # The upper half of a mixed 64-bit hash; MinHash takes 32 bits.
            upper = (mixed(grams[start : start + _AT_ONCE]) >> np.uint64(32)).tolist()
            self._minhash.update_batch(upper)
        self._waiting.append(self._minhash.hashvalues)
        if len(self._waiting) == _BLOCK:
            self._flush()

    def pairs(self, text_of: TextOf) -> list[NearPair]:
        """Pairs of a text and an earlier one, in the order of the texts, the nearest first.

        Every text that has a near-duplicate before it is in a pair, and texts that are joined by
        near-duplicates are joined by pairs. These are not all pairs: thousands of texts of one
        pattern would have millions. They suffice for `clusters` and `without_near_duplicates`.
        """
        firsts = self._firsts()
        different = np.flatnonzero(firsts == np.arange(len(firsts)))
        grams = _GramCache(text_of)
        pairs = self._joining_pairs(different, grams)
        pairs += self._pairs_with_staying_texts(_in_order(pairs), grams)
        return _in_order([*pairs, *_pairs_of_equal_texts(firsts, pairs)])

    def _joining_pairs(self, texts: np.ndarray, grams: "_GramCache") -> list[NearPair]:
        """For each of `texts`, the nearest earlier one, and those of other clusters."""
        keys, sketches = self._arrays()
        candidates = _Candidates(sketches, sketches, self._cutoff())
        for band in range(self.bands):
            next_band = keys[texts, (band + 1) % self.bands]
            candidates.take(texts[_neighbours(keys[texts, band], next_band)])
        joined = _Joined(len(self))
        pairs: list[NearPair] = []
        for text, others in candidates.by_text():
            for other in others:
                if not joined.same(text, other):
                    value = self._similarity(grams, text, grams, other)
                    if value >= self.threshold:
                        pairs.append(NearPair(text, other, value))
                        joined.join(text, other)
        return pairs

    def _pairs_with_staying_texts(
        self, pairs: Sequence[NearPair], grams: "_GramCache"
    ) -> list[NearPair]:
        """Pairs of the texts in `pairs` with some that `without_near_duplicates` keeps.

        With them, no two of the texts that it keeps are near-duplicates.
        """
        keys, sketches = self._arrays()
        near: dict[int, set[int]] = {}
        for pair in pairs:
            near.setdefault(pair.text, set()).add(pair.other)
        staying: list[dict[int, list[int]]] = [{} for _ in range(self.bands)]
        left_out: set[int] = set()
        further: list[NearPair] = []
        for text in sorted({number for pair in pairs for number in (pair.text, pair.other)}):
            known = near.get(text, set())
            if not known <= left_out:
                left_out.add(text)
                continue
            buckets = [
                in_band.setdefault(key, [])
                for in_band, key in zip(staying, keys[text].tolist(), strict=True)
            ]
            others = {other for bucket in buckets for other in bucket} - known
            candidates = _Candidates(sketches, sketches, self._cutoff())
            candidates.take(np.array([(text, other) for other in others]).reshape(-1, 2))
            for _, best in candidates.by_text():
                for other in best:
                    value = self._similarity(grams, text, grams, other)
                    if value >= self.threshold:
                        further.append(NearPair(text, other, value))
                        left_out.add(text)
                        break
            if text not in left_out:
                for bucket in buckets:
                    if len(bucket) < _TRIES:
                        bucket.append(text)
        return further

    def pairs_with(
        self, those: "Signatures", text_of: TextOf, other_text_of: TextOf
    ) -> list[NearPair]:
        """For each text with a near-duplicate in `those`, the pair with the most similar one."""
        keys, sketches = self._arrays()
        their_keys, their_sketches = those._arrays()
        candidates = _Candidates(sketches, their_sketches, self._cutoff())
        candidates.take(_equal(self._text_hashes(), those._text_hashes()))
        for band in range(self.bands):
            candidates.take(_equal(keys[:, band], their_keys[:, band]))
        grams, their_grams = _GramCache(text_of), _GramCache(other_text_of)
        pairs: list[NearPair] = []
        for text, others in candidates.by_text():
            nearest = max(
                (
                    NearPair(text, other, self._similarity(grams, text, their_grams, other))
                    for other in others
                ),
                key=lambda pair: (pair.similarity, -pair.other),
            )
            if nearest.similarity >= self.threshold:
                pairs.append(nearest)
        return pairs

    def _similarity(
        self, grams: "_GramCache", text: int, other_grams: "_GramCache", other: int
    ) -> float:
        mine, theirs = grams.of(text), other_grams.of(other)
        if min(len(mine), len(theirs)) < self.threshold * max(len(mine), len(theirs)):
            return 0.0  # it cannot reach the threshold
        return _jaccard(mine, theirs)

    def _cutoff(self) -> int:
        """How many equal minima a candidate has at least: 3.3 deviations below the threshold."""
        count = self.bands * self.rows
        deviation = math.sqrt(self.threshold * (1 - self.threshold) / count)
        return math.ceil(count * max(self.threshold - 3.3 * deviation, 0))

    def _firsts(self) -> np.ndarray:
        """The first text that each text equals, itself included: (N,)."""
        _, first, inverse = np.unique(self._text_hashes(), return_index=True, return_inverse=True)
        return first[inverse]

    def _text_hashes(self) -> np.ndarray:
        return np.frombuffer(self._texts, dtype=np.int64)

    def _flush(self) -> None:
        if not self._waiting:
            return
        minima = np.stack(self._waiting)  # (N, bands * rows)
        self._waiting = []
        in_bands = minima.astype(np.uint64).reshape(len(minima), self.bands, self.rows)
        self._keys += mixed((mixed(in_bands) * self._factors).sum(axis=2)).tobytes()
        # Eight bits of a minimum estimate as well as all (Li & Koenig 2010, b-bit minwise hashing).
        self._sketches += minima.astype(np.uint8).tobytes()

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The bands' keys, (N, bands), and the sketches, (N, bands * rows)."""
        self._flush()
        keys = np.frombuffer(self._keys, dtype=np.uint64).reshape(len(self), self.bands)
        sketches = np.frombuffer(self._sketches, dtype=np.uint8)
        return keys, sketches.reshape(len(self), self.bands * self.rows)


class _Candidates:
    """Pairs of texts whose sketches are alike, each once."""

    def __init__(self, sketches: np.ndarray, others: np.ndarray, cutoff: int) -> None:
        self._sketches, self._others, self._cutoff = sketches, others, cutoff
        self._codes = np.empty(0, dtype=np.int64)  # text * number of others + other, ascending

    def take(self, pairs: np.ndarray) -> None:
        """Add the pairs that are alike: (P, 2)."""
        new: list[np.ndarray] = []
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            some = some[self._equal_minima(some) >= self._cutoff]
            new.append(some[:, 0].astype(np.int64) * len(self._others) + some[:, 1])
        if new:
            self._codes = np.union1d(self._codes, np.concatenate(new))

    def by_text(self) -> Iterator[tuple[int, list[int]]]:
        """Each text with its best candidates, the most similar first."""
        starts = np.flatnonzero(np.diff(self._codes // max(len(self._others), 1), prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(self._codes)), strict=False):
            text = int(self._codes[start] // len(self._others))
            others = self._codes[start:end] % len(self._others)
            if len(others) > 1:
                pairs = np.stack([np.full(len(others), text), others], axis=1)
                others = others[np.argsort(-self._equal_minima(pairs), kind="stable")]
            yield text, others[:_TRIES].tolist()

    def _equal_minima(self, pairs: np.ndarray) -> np.ndarray:
        equal = self._sketches[pairs[:, 0]] == self._others[pairs[:, 1]]
        return np.count_nonzero(equal, axis=1)


class _GramCache:
    """The 5-grams of the texts that were compared last."""

    def __init__(self, text_of: TextOf) -> None:
        self._text_of = text_of
        self._sets: OrderedDict[int, np.ndarray] = OrderedDict()
        self._size = 0

    def of(self, text: int) -> np.ndarray:
        if text in self._sets:
            self._sets.move_to_end(text)
            return self._sets[text]
        grams = _gram_set(comparable(self._text_of(text)))
        self._sets[text] = grams
        self._size += len(grams)
        while self._size > _GRAMS_IN_MEMORY and len(self._sets) > 1:
            _, oldest = self._sets.popitem(last=False)
            self._size -= len(oldest)
        return grams


class _Joined:
    """Which texts are joined by pairs (union-find, the earliest text first)."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)

    def first(self, text: int) -> int:
        """The earliest text that `text` is joined with."""
        root = text
        while self._parents[root] != root:
            root = int(self._parents[root])
        while self._parents[text] != root:
            text, self._parents[text] = int(self._parents[text]), root
        return root

    def same(self, text: int, other: int) -> bool:
        return self.first(text) == self.first(other)

    def join(self, text: int, other: int) -> None:
        roots = self.first(text), self.first(other)
        self._parents[max(roots)] = min(roots)


def clusters(count: int, pairs: Iterable[NearPair]) -> list[list[int]]:
    """The texts that pairs join, in ascending order, for `count` texts."""
    joined = _Joined(count)
    for pair in pairs:
        joined.join(pair.text, pair.other)
    members: dict[int, list[int]] = {}
    for text in sorted({number for pair in pairs for number in (pair.text, pair.other)}):
        members.setdefault(joined.first(text), []).append(text)
    return list(members.values())


def without_near_duplicates(pairs: Iterable[NearPair]) -> set[int]:
    """The texts to leave out so that no pair is left whole: each has a near-duplicate that stays.

    The first text of a cluster stays. `pairs` are in the order of their texts.
    """
    left_out: set[int] = set()
    for pair in pairs:
        if pair.other not in left_out:
            left_out.add(pair.text)
    return left_out


def _new_minhash(count: int, seed: int) -> Any:
    # With scipy, which takes a second.
    from datasketch import MinHash  # pyright: ignore[reportMissingTypeStubs]

    return MinHash(num_perm=count, seed=seed, hashfunc=index)


def _pairs_of_equal_texts(firsts: np.ndarray, pairs: Sequence[NearPair]) -> Iterator[NearPair]:
    """The pairs of the texts that equal an earlier one: with that one, and those it is in."""
    by_text: dict[int, list[NearPair]] = {}
    for pair in pairs:
        by_text.setdefault(pair.text, []).append(pair)
    for text in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
        first = int(firsts[text])
        yield NearPair(text, first, 1.0)
        for pair in by_text.get(first, []):
            yield NearPair(text, pair.other, pair.similarity)


def _neighbours(keys: np.ndarray, next_keys: np.ndarray) -> np.ndarray:
    """Pairs (later, earlier) of places with equal keys: (P, 2).

    Each place is paired with the first of its bucket and with those before it. In a large bucket,
    those that share the next band as well come one after another.
    """
    order = np.lexsort((next_keys, keys))
    ordered = keys[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint64(1)) != 0)
    sizes = np.diff(begins, append=len(ordered))
    places = np.arange(len(ordered))
    first = np.repeat(begins, sizes)
    far = places - first > _NEIGHBOURS
    pairs = [np.stack([order[places[far]], order[first[far]]], axis=1)]
    for step in range(1, _NEIGHBOURS + 1):
        near = places[places - first >= step]
        if not len(near):
            break
        pairs.append(np.stack([order[near], order[near - step]], axis=1))
    joined = np.concatenate(pairs)
    return np.stack([joined.max(axis=1), joined.min(axis=1)], axis=1)


def _in_order(pairs: Iterable[NearPair]) -> list[NearPair]:
    return sorted(pairs, key=lambda pair: (pair.text, -pair.similarity, pair.other))


def _equal(keys: np.ndarray, other_keys: np.ndarray) -> np.ndarray:
    """Pairs of a key's place and the place of an equal other key, some for each: (P, 2)."""
    order = np.argsort(other_keys, kind="stable")
    ordered = other_keys[order]
    begins = np.searchsorted(ordered, keys)
    ends = np.searchsorted(ordered, keys, side="right")
    places = np.arange(len(keys))
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for step in range(_TRIES):
        inside = begins + step < ends
        if not inside.any():
            break
        pairs.append(np.stack([places[inside], order[begins[inside] + step]], axis=1))
    return np.concatenate(pairs)


POWERS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(GRAM)], np.uint64)


def _gram_hashes(text: str) -> np.ndarray:
    """A 64-bit hash of each 5-gram of a text; a shorter text is one gram: (G,) uint64."""
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    code_points = code_points.astype(np.uint64)
    count = max(len(code_points) - GRAM + 1, min(len(code_points), 1))
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(min(GRAM, len(code_points))):
        hashes += code_points[place : place + count] * POWERS[place]
    return hashes


def _gram_set(text: str) -> np.ndarray:
    return np.unique(_gram_hashes(text))


def _jaccard(grams: np.ndarray, others: np.ndarray) -> float:
    shared = len(np.intersect1d(grams, others, assume_unique=True))
    union = len(grams) + len(others) - shared
    return shared / union if union else 1.0


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014): every bit depends on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
