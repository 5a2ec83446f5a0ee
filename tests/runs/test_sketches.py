"""Sketches of texts: how near their estimates are, and what they find."""

import random
import subprocess
import sys

import numpy as np

from tinkersmith.data.near_duplicates import comparable, similarity
from tinkersmith.runs.sketches import SIZE, end_to_end, estimated, most_alike, sketches_of

NONE = np.zeros(0, np.uint32)
WORDS = [
    "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=2 + number % 8))
    for number in range(3000)
]


def text(seed: int, words: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(original: str, seed: int, count: int) -> str:
    rng, words = random.Random(seed), original.split()
    for _ in range(count):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def test_the_estimate_is_exact_for_short_texts_and_unbiased_for_long_ones():
    errors: list[float] = []
    for seed in range(400):
        words = 5 if seed % 2 else 60
        first = text(seed, words)
        second = changed(first, seed, seed % 4)
        one, two = (sketches_of([value]).of(0) for value in (first, second))
        error = estimated(one, two, NONE) - similarity(first, second)
        if max(len(comparable(value)) for value in (first, second)) < SIZE:
            assert abs(error) < 1e-9
        else:
            errors.append(error)
    assert len(errors) > 150
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.05


def test_near_duplicates_are_found_and_others_are_not():
    those = [text(seed) for seed in range(2000)]
    these = [changed(those[seed], seed, 1) for seed in range(200)]
    strangers = [text(seed) for seed in range(10_000, 10_200)]
    found = {
        pair.text: pair
        for pair in most_alike(sketches_of([*these, *strangers]), sketches_of(those), 0.8)
    }
    near = [number for number in range(200) if similarity(these[number], those[number]) >= 0.88]
    assert len(near) > 80
    assert all(found[number].other == number for number in near)
    assert not [number for number in found if number >= 200]


def test_an_instruction_that_all_share_does_not_make_questions_alike():
    instruction = "Answer the following question step by step, and give the result at the end. "
    those = [instruction + text(seed, 4) for seed in range(300)]
    these = [instruction + text(seed, 4) for seed in range(5000, 5050)]
    assert similarity(these[0], those[0]) > 0.5
    copies = [f"{those[7]}!"]
    pairs = list(most_alike(sketches_of([*these, *copies]), sketches_of(those), 0.8))
    assert [(pair.text, pair.other) for pair in pairs] == [(50, 7)]


def test_empty_and_tiny_texts_are_like_nothing():
    those = sketches_of(["", "a", "ab", "你好", "the whole question is here"])
    assert [len(those.of(number)) for number in range(4)] == [0, 1, 1, 1]
    assert list(most_alike(sketches_of(["", "a", "你好"]), those, 0.8)) == []
    assert list(most_alike(sketches_of(["a"]), sketches_of([]), 0.8)) == []


def test_texts_are_sketched_alike_alone_and_together():
    texts = [text(seed, 1 + seed % 50) for seed in range(600)] + ["", "x", "中文" * 100]
    together, alone = sketches_of(texts), end_to_end([sketches_of([value]) for value in texts])
    assert np.array_equal(together.hashes, alone.hashes)
    assert np.array_equal(together.ends, alone.ends)
    mask = np.arange(len(texts)) % 3 == 0
    some = together.taken(mask)
    assert len(some) == mask.sum() and np.array_equal(some.of(5), together.of(15))


def test_hashes_do_not_depend_on_the_process():
    program = (
        "from tinkersmith.runs.sketches import sketches_of\n"
        "print(sketches_of(['What is 12 + 30?', '一共有多少个苹果？']).hashes.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert outputs == {
        f"{sketches_of(['What is 12 + 30?', '一共有多少个苹果？']).hashes.tolist()}\n"
    }
