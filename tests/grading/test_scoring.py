"""Scores on texts as models really write them."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tinkersmith.grading.scoring import (
    METRICS,
    contains_answer,
    exact_match,
    final_answer_match,
    score,
)

LONGEST = 2.0  # seconds for any answer
PAIRS = ROOT / "tests" / "grading" / "pairs"


@pytest.mark.parametrize(
    ("answer", "produced", "expected"),
    [
        ("12", "there are 12 of them", 1),
        ("12", "there are 112 of them", 0),
        ("12", "12.5", 0),
        ("12", "1,312", 0),
        ("234", "1,234", 0),
        ("1234", "1,234 in all", 1),
        ("12", "12km", 1),
        ("3.0", "it is 3.", 1),
        ("3", "the list 1,2,3", 1),
        ("3", "3/4", 0),
        ("1/2", "\\frac{1}{2} of it", 1),
        ("5", "10-5", 1),
        ("5", "-5", 0),
        ("-5", "10-5=5", 0),
        ("2", "x2 and v1.2.3", 0),
        ("50%", "about 50 percent", 1),
        ("7", "**7**", 1),
        ("7", "", 0),
        ("12", "一共有12个苹果", 1),
        ("12", "一共有１２个苹果", 1),
        ("Paris", "It is PARIS.", 1),
        ("art", "the party", 0),
        ("A", "a train", 0),
        ("A", "I choose A.", 1),
        ("北京", "首都是北京。", 1),
    ],
)
def test_an_answer_is_contained_only_as_a_whole(answer: str, produced: str, expected: int):
    assert contains_answer(f"Answer: {answer}", produced) == expected
    assert contains_answer(f"答案：{answer}", produced) == expected


def test_an_exact_match_forgives_line_ends_and_unicode_forms_only():
    assert exact_match("a\r\nb  \n", "a\nb") == 1
    assert exact_match("caf\u00e9", "cafe\u0301") == 1
    assert exact_match("a b", "a  b") == 0
    assert exact_match("A", "a") == 0


def test_a_wrong_solution_that_mentions_the_answer_contains_it_and_does_not_match():
    expected = "3 * 4 = 12\nAnswer: 12"
    produced = "12 is too much, so 11.\nAnswer: 11"
    assert score(expected, produced) == {
        "exact_match": 0.0,
        "final_answer": 0.0,
        "contains_answer": 1.0,
    }


def test_the_answer_that_a_sample_names_itself_goes_before_that_of_its_output():
    scores = score("We met in 1999 at noon.", "Answer: Rome", answer="Rome")
    assert scores == {"exact_match": 0.0, "final_answer": 1.0, "contains_answer": 1.0}
    assert final_answer_match("We met in 1999 at noon.", "Answer: Rome") == 0


def test_every_text_agrees_with_itself():
    rng = random.Random(7)
    pieces = [
        "Answer: ",
        "答案：",
        "\\boxed{",
        "}",
        "{",
        "$",
        "1,2",
        "12",
        "3/4",
        "\n",
        " ",
        "x",
        "。",
    ]
    pieces += ["\\frac{1}{2}", "#### ", "-", "%", "½", "²", "é", "\\", "=", "(", "km", ".", "*"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        for name, metric in METRICS.items():
            assert 0 <= metric(text, text) <= 1
            if name == "exact_match":
                assert metric(text, text) == 1, repr(text)


HOSTILE = {
    "boxes": "\\boxed{" * 100_000,
    "nested boxes": "\\boxed{" * 100_000 + "}" * 100_000,
    "braces": "{" * 100_000 + "}" * 100_000,
    "fractions": "\\frac{" * 100_000 + "}" * 200_000,
    "brackets": "(" * 100_000 + ")" * 100_000,
    "a long word": "a" * 1_000_000,
    "a long number": "1" * 1_000_000,
    "many numbers": "1 " * 500_000,
    "commas": "1," * 500_000,
    "slashes": "1/" * 500_000,
    "markers": "the answer is " * 20_000,
    "lines of markers": "Answer: 3\n" * 100_000,
    "Chinese markers": "答案：" * 100_000,
    "spaces": " " * 1_000_000 + "x",
    "line ends": "x" + "\n" * 500_000 + "x",
    "dollars": "$" * 500_000,
    "stars": "*" * 1_000_000,
    "fences": "```" * 100_000,
    "options": "A. x\n" * 100_000,
    "letters": "A, " * 200_000,
    "dates": "2024-07-09 " * 50_000,
    "powers": "2^" * 100_000 + "2",
    "a tower": "9^9^9^9^9^9",
    "an exponent": "1e999999999",
    "a factorial": "99999999!",
    "numerals": "万亿" * 200_000,
    "words": "is " * 300_000,
    "a question": "the answer of the " + "x " * 500_000,
    "tags": "<answer>" * 50_000,
    "thoughts": "<think>" * 100_000,
    "hashes": "#### 1\n" * 100_000,
    "JSON": '{"answer": "' * 50_000,
    "questions": "\nQuestion: 5" * 50_000,
    "signs": "-" * 500_000 + "1",
    "sums": "(1+" * 100_000 + "1" + ")" * 100_000,
    "accents": "e" + "\u0301" * 300_000,
    "surrogates": "\ud800" * 1000,
    "backslashes": "\\" * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_answer_takes_long_whatever_it_contains(name: str):
    texts = [("24", HOSTILE[name])]
    texts += [(expected, "The answer is " + HOSTILE[name][:1900]) for expected in ("B", "5 km")]
    for expected, produced in texts:
        start = time.process_time()
        scores = score(expected, produced, expected)
        assert time.process_time() - start < LONGEST
        assert scores["exact_match"] == 0
    start = time.process_time()
    score(HOSTILE[name][:50_000], HOSTILE[name][:50_000])
    assert time.process_time() - start < LONGEST


TEXTS = (
    "Answer:|答案：|the answer is |\\boxed{|}|{|$|####| |\n|1,2|12|3/4|x|。|\\frac{|\\sqrt|-|%|½|²"
    "|(|)|[|=|^|km|.|*|<think>|</think>|<answer>|B|or|not|是|不|选|2024-07-09|14:45|&|!|_|万|yes|no|:|`"
    '|\\begin{pmatrix}|"|\0'
)
FRAGMENTS = st.sampled_from(TEXTS.split("|"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(FRAGMENTS | st.text(max_size=6), max_size=30), st.lists(FRAGMENTS, max_size=8))
def test_any_two_texts_can_be_compared(produced: list[str], expected: list[str]):
    start = time.process_time()
    scores = score("".join(expected), "".join(produced), "".join(expected))
    assert time.process_time() - start < LONGEST
    assert all(value in (0.0, 1.0) for value in scores.values())


def test_answers_of_usual_length_are_scored_in_a_few_milliseconds():
    pairs = [
        pair
        for file in sorted(PAIRS.glob("*.json"))
        for pair in json.loads(file.read_text(encoding="utf-8"))
    ][::6]
    rng = random.Random(1)
    text = "the sum of 3 crates is \\frac{1}{2} then 4 + 5 = 9, so B or 所以 we get (2, 5) x = 3"
    words = text.split()
    start = time.process_time()
    for pair in pairs:
        filler = " ".join(rng.choices(words, k=450))[:1900]
        score(pair["expected"], f"{filler}.\n{pair['produced']}", pair.get("answer"))
    # 10,000 in 60 s of two cores are 12 ms each; a busy core takes longer for the same.
    assert (time.process_time() - start) / len(pairs) < 0.03
