"""Short texts: the same words or not."""

import pytest

from tinkersmith.grading.texts import same_text, unwrapped


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The Eiffel Tower", "eiffel tower."),
        ("caf\u00e9", "cafe\u0301"),
        ("U.S.A.", "USA"),
        ("don’t", "don't"),
        ("北京", " “北京”。"),
        ("《红楼梦》", "红楼梦"),
        ("ＡＢＣ公司", "ABC公司"),
        ("red, green, and blue", "red, green and blue"),
        ("苹果、梨和桃", "苹果、梨、桃"),
        ("H₂O", "$H_2O$"),
        ("\\text{Paris}", "**Paris**"),
        ("C++", "c++"),
        ("0.333...", "0.333..."),
        ("?", "?"),
    ],
)
def test_the_same_words(first: str, second: str):
    assert same_text(first, second)
    assert same_text(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("guilty", "not guilty"),
        ("John Smith", "Smith John"),
        ("Paris", "Paris, France"),
        ("C", "C++"),
        ("C#", "C++"),
        ("后", "後"),
        ("中国", "中國"),
        ("x²", "x2"),
        ("3.5", "35"),
        ("7:3", "73"),
        ("1,2", "12"),
        ("-5", "5"),
        ("5!", "5"),
        ("A minor", "minor"),
        ("Co", "CO"),
        ("+", "-"),
        ("!", "?"),
        ("", ""),
    ],
)
def test_different_words(first: str, second: str):
    assert not same_text(first, second)
    assert not same_text(second, first)


def test_marks_around_an_answer_are_taken_off_and_those_of_the_answer_stay():
    assert unwrapped("**$42$.**") == "42"
    assert unwrapped("```\n42\n```") == "42"
    assert unwrapped("5!") == "5!"
    assert unwrapped("[0, 2)") == "[0, 2)"
    assert unwrapped("0.333...") == "0.333..."
