"""Near-duplicates are found as by comparing every text with every other."""

import random

import pytest

from tests.support.near_texts import edited, han_words, jaccard, text, words
from tinkersmith.data.near_duplicates import (
    GRAM,
    RECALL,
    NearPair,
    Signatures,
    bands_for,
    clusters,
    near_duplicates,
    similarity,
    without_near_duplicates,
)


def some_texts(rng: random.Random, count: int) -> list[str]:
    """Texts in two languages, of which some come again with few and with many changes."""
    english, chinese = words(rng), han_words(rng)
    texts: list[str] = []
    while len(texts) < count:
        is_chinese = rng.random() < 0.5
        length = rng.randint(30, 600)
        original = text(rng, chinese if is_chinese else english, length, "" if is_chinese else " ")
        texts.append(original)
        for _ in range(rng.randint(0, 3)):
            source = rng.choice([original, texts[-1]])  # in a star, or in a chain
            texts.append(edited(rng, source, rng.randint(0, max(1, len(source) // 25))))
    rng.shuffle(texts)
    return texts[:count]


@pytest.mark.parametrize("seed", range(3))
def test_pairs_clusters_and_similarities_are_those_of_the_slow_way(seed: int) -> None:
    texts = some_texts(random.Random(seed), 240)
    slow = {
        (later, earlier): value
        for later in range(len(texts))
        for earlier in range(later)
        if (value := jaccard(texts[later], texts[earlier])) >= 0.8
    }
    pairs = near_duplicates(texts, 0.8, seed)
    for pair in pairs:
        assert slow[pair.text, pair.other] == pytest.approx(pair.similarity)
    all_pairs = [NearPair(*places, value) for places, value in slow.items()]
    expected = clusters(len(texts), all_pairs)
    assert len(expected) > 20
    assert clusters(len(texts), pairs) == expected
    left_out = without_near_duplicates(pairs)
    stay = [number for number in range(len(texts)) if number not in left_out]
    assert not [pair for pair in slow if not left_out.intersection(pair)]
    for number in left_out:  # and nothing is left out without need
        assert any((number, other) in slow for other in stay)


@pytest.mark.parametrize("seed", range(3))
def test_texts_near_those_of_another_list_are_those_of_the_slow_way(seed: int) -> None:
    rng = random.Random(100 + seed)
    texts = some_texts(rng, 300)
    these, those = texts[:120], texts[120:]
    slow = {
        number: max(jaccard(mine, theirs) for theirs in those) for number, mine in enumerate(these)
    }
    expected = {number: value for number, value in slow.items() if value >= 0.8}
    mine, theirs = Signatures(0.8, seed), Signatures(0.8, seed)
    for one in these:
        mine.add(one)
    for one in those:
        theirs.add(one)
    pairs = mine.pairs_with(theirs, these.__getitem__, those.__getitem__)
    assert len(expected) > 20
    assert {pair.text: pytest.approx(pair.similarity) for pair in pairs} == expected
    for pair in pairs:
        assert pair.similarity == pytest.approx(jaccard(these[pair.text], those[pair.other]))


def test_texts_that_differ_in_case_width_and_white_space_are_twins() -> None:
    texts = ["What is ２＋２?", "what  is 2+2?\n", "什么是　人工智能", "什么是 人工智能", "other"]
    assert near_duplicates(texts) == [NearPair(1, 0, 1.0), NearPair(3, 2, 1.0)]


def test_texts_shorter_than_a_gram_are_near_only_if_equal() -> None:
    texts = ["", "a", "ab", "abc", "是", "不是", "ab", "", "A"]
    assert near_duplicates(texts) == [NearPair(6, 2, 1.0), NearPair(7, 0, 1.0), NearPair(8, 1, 1.0)]


def test_every_one_of_many_twins_is_found_among_many_texts_of_one_pattern() -> None:
    rng = random.Random(5)
    frame = text(rng, words(rng), 700, " ")
    texts = [
        f"{frame} number {rng.randrange(10**9)} and {rng.randrange(10**9)}" for _ in range(600)
    ]
    texts += texts[:100]
    pairs = near_duplicates(texts)
    twins = {pair.text for pair in pairs if pair.similarity == 1.0}
    assert set(range(600, 700)) <= twins
    assert len(clusters(len(texts), pairs)) == 1
    left_out = without_near_duplicates(pairs)
    stay = [texts[number] for number in range(len(texts)) if number not in left_out]
    slow = [
        (first, second)
        for place, first in enumerate(stay)
        for second in stay[:place]
        if jaccard(first, second) >= 0.8
    ]
    assert not slow


def test_a_chain_loses_only_texts_that_have_a_near_duplicate_that_stays() -> None:
    pairs = [NearPair(1, 0, 0.9), NearPair(2, 1, 0.9), NearPair(3, 2, 0.9)]
    assert clusters(5, pairs) == [[0, 1, 2, 3]]
    assert without_near_duplicates(pairs) == {1, 3}


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= RECALL


def test_the_threshold_decides() -> None:
    rng = random.Random(7)
    original = text(rng, words(rng), 400, " ")
    other = edited(rng, original, 12)
    value = similarity(original, other)
    assert 0.6 < value < 0.95
    assert near_duplicates([original, other], value - 1e-9)
    assert not near_duplicates([original, other], value + 0.01)
    with pytest.raises(ValueError, match="threshold"):
        Signatures(0.4)


def test_long_texts_need_little_memory_for_each() -> None:
    rng = random.Random(3)
    original = text(rng, words(rng), 60_000, " ")
    texts = [original, edited(rng, original, 100), text(rng, words(rng), 60_000, " ")]
    (pair,) = near_duplicates(texts)
    assert (pair.text, pair.other) == (1, 0)
    assert pair.similarity == pytest.approx(jaccard(texts[1], texts[0]))
    assert GRAM == 5
