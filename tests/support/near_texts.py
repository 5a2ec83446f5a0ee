"""Texts of a kind of English and Chinese, and near-duplicates of them, for tests and benchmarks."""

import random
from functools import lru_cache

_SYLLABLES = [c + v for c in "bcdfghjklmnprstvw" for v in ("a", "e", "i", "o", "u", "an", "er")]
_HAN = [chr(0x4E00 + number) for number in range(0, 6000, 2)]


def words(rng: random.Random, count: int = 3000) -> list[str]:
    return ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(count)]


def han_words(rng: random.Random, count: int = 3000) -> list[str]:
    return ["".join(rng.choices(_HAN, k=rng.randint(1, 3))) for _ in range(count)]


def text(rng: random.Random, vocabulary: list[str], length: int, gap: str) -> str:
    """A text of about `length` characters in sentences; its words are as frequent as Zipf says."""
    pieces: list[str] = []
    size = 0
    while size < length:
        word = vocabulary[int(len(vocabulary) ** rng.random()) - 1]
        if rng.random() < 0.1:
            word += "。" if not gap else "."
        pieces.append(word)
        size += len(word) + len(gap)
    return gap.join(pieces)


def edited(rng: random.Random, original: str, edits: int) -> str:
    """The text with `edits` characters replaced, left out or added."""
    characters = list(original)
    for _ in range(edits):
        place = rng.randrange(len(characters))
        what = rng.randrange(3)
        if what == 0:
            characters[place] = rng.choice(characters)
        elif what == 1:
            characters.insert(place, rng.choice(characters))
        elif len(characters) > 1:
            del characters[place]
    return "".join(characters)


def jaccard(first: str, second: str) -> float:
    """The Jaccard index of two texts' sets of 5-grams, the slow way."""
    grams, others = _grams(first), _grams(second)
    return len(grams & others) / len(grams | others)


@lru_cache(maxsize=2000)
def _grams(text: str) -> frozenset[str]:
    folded = " ".join(text.casefold().split())
    return frozenset(folded[place : place + 5] for place in range(max(len(folded) - 4, 1)))
