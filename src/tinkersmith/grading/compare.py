"""Two answers -> whether they mean the same, and what kind of answer is expected.

The kinds are asked in order: choice, yes/no, date, time, mathematics, text. The first that
recognises both answers decides. A kind that recognises one of them only decides that they differ,
unless they are the same words.
"""

import re
from functools import lru_cache

from tinkersmith.grading.choices import ChosenOptions, choice_of, same_choice
from tinkersmith.grading.comparison import Comparison
from tinkersmith.grading.dates import (
    date_in_digits,
    date_of,
    same_date,
    time_of,
    written_with_a_colon_only,
    year_of,
)
from tinkersmith.grading.mathematics import compare_mathematics
from tinkersmith.grading.texts import LONGEST_ANSWER, same_text
from tinkersmith.grading.yes_no import yes_or_no


def same_answer(expected: str, given: str, *, second_opinion: bool = True) -> Comparison:
    """Compare a given answer with the expected one.

    Args:
        second_opinion: whether `math-verify` may be asked about mathematics.
    """
    if not expected.strip() or not given.strip():
        return Comparison(False, "text")
    if max(len(expected), len(given)) > LONGEST_ANSWER:
        return Comparison(same_text(expected, given), "text")
    for compared in (_choices(expected, given), _polarities(expected, given)):
        if compared is not None:
            return compared
    for compared in (_dates(expected, given), _times(expected, given)):
        if compared is not None:
            return compared
    compared = compare_mathematics(expected, given, second_opinion=second_opinion)
    if compared is not None:
        return compared
    return Comparison(same_text(expected, given), "text")


@lru_cache(maxsize=4096)
def answer_kind(answer: str) -> str:
    """The kind of an expected answer."""
    return same_answer(answer, answer, second_opinion=False).kind


def _choices(expected: str, given: str) -> Comparison | None:
    choice = choice_of(expected)
    if choice is None:
        return None
    chosen = choice_of(given)
    if chosen is None and re.fullmatch(r"[A-J]{2,}", given.strip()):
        return Comparison(frozenset(given.strip()) == choice.letters, "choice")  # CA for "A, C"
    if chosen is None:
        # The option's text alone will do, where the expected answer has it.
        same = same_answer(choice.text, given).equal if choice.text else same_text(expected, given)
        return Comparison(same, "choice")
    return Comparison(same_choice(choice, chosen) and _same_beside(choice, chosen), "choice")


def _same_beside(choice: ChosenOptions, chosen: ChosenOptions) -> bool:
    """Whether the texts beside the letters agree, if both have one: (B) 42 is not (B) 43."""
    return not choice.text or not chosen.text or same_answer(choice.text, chosen.text).equal


def _polarities(expected: str, given: str) -> Comparison | None:
    wanted = yes_or_no(expected)
    if wanted is None:
        return None
    answered = yes_or_no(given)
    if answered is None:
        return Comparison(same_text(expected, given), "yes/no")
    return Comparison(wanted == answered, "yes/no")


def _dates(expected: str, given: str) -> Comparison | None:
    date, given_date = date_of(expected), date_of(given)
    if date is not None and given_date is None:
        given_date = date_in_digits(given)
    if date is None and given_date is None:
        return None
    if date is not None and given_date is not None:
        return Comparison(same_date(date, given_date), "date")
    known, other = (date, given) if date is not None else (given_date, expected)
    if known is None or year_of(other) is None:
        return Comparison(same_text(expected, given), "date" if date else answer_kind(expected))
    only_year = known.month is None and not known.decade  # 1969年 is 1969
    return Comparison(only_year and known.year == year_of(other), "date" if date else "number")


def _times(expected: str, given: str) -> Comparison | None:
    time, given_time = time_of(expected), time_of(given)
    if time is not None and given_time is not None:
        return Comparison(time == given_time, "time")
    if time is None or written_with_a_colon_only(expected):
        return None  # 10:25 may be a ratio
    return Comparison(same_text(expected, given), "time")
