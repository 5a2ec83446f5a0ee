"""Two answers mean the same or not, and the kind that decides."""

import pytest

from tinkersmith.grading.compare import answer_kind, same_answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("B", "choice"),
        ("(B) 42", "choice"),
        ("A, C", "choice"),
        ("True", "yes/no"),
        ("没有", "yes/no"),
        ("2024-07-09", "date"),
        ("公元前221年", "date"),
        ("14:45", "time"),
        ("下午3点半", "time"),
        ("7:3", "ratio"),
        ("24", "number"),
        ("5 km", "quantity"),
        ("x + 4", "expression"),
        ("(2, 5)", "tuple"),
        ("x > 3", "inequality"),
        ("Apollo 13", "text"),
        ("not guilty", "text"),
        ("A minor", "text"),
        ("J. K. Rowling", "choice"),  # an initial looks like an option: both letter and text count
    ],
)
def test_the_kind_of_an_answer(answer: str, kind: str):
    assert answer_kind(answer) == kind
    assert same_answer(answer, answer).equal


@pytest.mark.parametrize(
    ("expected", "given", "equal"),
    [
        ("J. K. Rowling", "J. R. R. Tolkien", False),
        ("J. K. Rowling", "J. K. Rowling", True),
        ("A, C", "CA", True),
        ("A, C", "A", False),
        ("12:16", "3:4", True),  # a ratio, because 3:4 is no time
        ("2:15", "14:15", False),
        ("10:20", "15:30", False),
        ("1969", "1969年", True),
        ("1969年", "1969", True),
        ("1969", "1969 BC", False),
        ("2024-07-09", "20240709", True),
        ("2024-07-09", "20240710", False),
        ("", "", False),
        (" ", "5", False),
        ("x" * 3000, "x" * 3000, True),
        ("x" * 3000, "x" * 3001, False),
        ("no", "0", False),
        ("B", "8", False),
        ("Co", "CO", False),
        ("co", "CO", True),
    ],
)
def test_kinds_do_not_mix(expected: str, given: str, equal: bool):
    assert same_answer(expected, given).equal == equal
