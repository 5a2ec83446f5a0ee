"""Choices of a multiple-choice question."""

import pytest

from tinkersmith.grading.choices import announced_choices, choice_of


@pytest.mark.parametrize(
    ("text", "letters", "beside"),
    [
        ("B", "B", ""),
        ("Ｂ．", "B", ""),
        ("(b)", "B", ""),
        ("**(B)**", "B", ""),
        ("\\text{(B)}", "B", ""),
        ("B) Lima", "B", "Lima"),
        ("B、光合作用", "B", "光合作用"),
        ("B, because 3 < 4", "B", ""),
        ("Option B is correct", "B", ""),
        ("选项B", "B", ""),
        ("B 选项", "B", ""),
        ("A, B and D", "ABD", ""),
        ("A、C", "AC", ""),
        ("AC", "AC", ""),
    ],
)
def test_a_text_that_is_a_choice(text: str, letters: str, beside: str):
    choice = choice_of(text)
    assert choice is not None
    assert (choice.letters, choice.text) == (frozenset(letters), beside)


@pytest.mark.parametrize(
    "text",
    ["", "B or C", "B或C", "not B", "B is incorrect", "Because", "A cat", "C++", "C#", "x", "BEAD",
     "K", "A) 1\nB) 2", "A: 3, B: 4", "vitamin C", "It's A", "DC", "e", "B/C", "B5"],
)  # fmt: skip
def test_a_text_that_chooses_nothing(text: str):
    assert choice_of(text) is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("故选B。", ["B"]),
        ("不选B，选C", ["C"]),
        ("选项D说法错误", []),
        ("A错误，B正确，故选B", ["B", "B"]),
        ("(A) is the right answer", ["(A)"]),
        ("I would go with C.", ["C"]),
        ("Whether A is correct or B is correct", []),
        ("选A或B", []),
        ("A is correct or B", []),
    ],
)
def test_choices_that_a_text_announces(text: str, letters: list[str]):
    assert [found[2] for found in announced_choices(text)] == letters
