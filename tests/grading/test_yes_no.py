"""Yes and no in both languages."""

import pytest

from tinkersmith.grading.yes_no import stated, yes_or_no


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", True),
        ("yes, because it is even", True),
        ("TRUE.", True),
        ("是的。", True),
        ("没错", True),
        ("√", True),
        ("Y", True),
        ("No.", False),
        ("not correct", False),
        ("没有，因为判别式小于零", False),
        ("✗", False),
        ("No it isn't", False),
        ("$\\text{No}$", False),
        ("", None),
        ("No idea", None),
        ("No solution", None),
        ("Not necessarily", None),
        ("None", None),
        ("Nobody", None),
        ("yes and no", None),
        ("yes/no", None),
        ("是不是", None),
        ("有时候", None),
        ("对面", None),
        ("yes, but no", None),
        ("0", None),
        ("right", None),  # a direction, too
    ],
)
def test_a_text_says_yes_or_no_or_neither(text: str, expected: bool | None):
    assert yes_or_no(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the statement is true.", True),
        ("The claim is not true.", False),
        ("It is not false.", True),
        ("这个说法是错误的。", False),
        ("该命题不成立。", False),
        ("这个结论正确", True),
        ("It is a true story.", None),
        ("It is not.", None),
    ],
)
def test_what_a_text_says_of_a_statement(text: str, expected: bool | None):
    assert stated(text) is expected
