"""(expected, produced) -> whether the produced text gives the expected answer, and by which rules.

Here both texts are known, so a produced text without a marker is read in the light of the expected
answer: the last number counts only where a quantity is expected, the first word where yes or no is.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from tinkersmith.grading.choices import choice_of
from tinkersmith.grading.compare import answer_kind, same_answer
from tinkersmith.grading.comparison import Comparison
from tinkersmith.grading.conclusions import (
    before_apposition,
    conclusion,
    is_prose,
    last_formula,
    last_number,
    last_sentence,
    main_clause,
    predicate,
    right_side,
    rounded_value,
    spelled_number,
    stating_part,
    subject,
    winner,
    without_tail,
)
from tinkersmith.grading.dates import date_of, dates_in, only_year, time_of, times_in, year_of
from tinkersmith.grading.final_answer import (
    FinalAnswer,
    announced_answer,
    final_answer,
    normalise,
    own_words,
)
from tinkersmith.grading.quantities import quantity_of
from tinkersmith.grading.texts import LONGEST_ANSWER, unwrapped
from tinkersmith.grading.yes_no import stated, yes_or_no

_TAIL = 2000  # characters at the end of a text that conclusions are looked for in


_REASON_BEHIND = re.compile(r"[.。]\s*(?=因为|由于|Because\b)|[,，]\s*(?=because\b|因为)")
_PERCENT = re.compile(r"\\?[%％]|\bper ?cent\b|百分之?", re.IGNORECASE)
_OPTION = re.compile(r"\W*[A-J][.:)、．：）]")


@dataclass(frozen=True, slots=True)
class Grade:
    """The outcome of grading one produced text.

    Attributes:
        expected_answer: None if the sample has none.
        expected_rule: which rule found it; "answer field" if the field is the bare answer.
        final_answer: None if the produced text has none.
        rule: which rule found it; "" if there is none.
        kind: what the expected answer is (see `Comparison`).
        by: "ours" or "math-verify".
    """

    correct: bool
    expected_answer: str | None
    expected_rule: str
    final_answer: str | None
    rule: str
    kind: str
    by: str = "ours"


def grade(
    expected: str, produced: str, answer: object | None = None, *, cut: bool = False
) -> Grade:
    """Whether `produced` gives the expected answer.

    Args:
        expected: the whole expected text.
        answer: the sample's own field "answer": a string, a number, true or false, or a list of
            acceptable answers. It is read by the same rules as any text. None, NaN and
            infinities are missing.
        cut: whether `produced` ends at the token limit.
    """
    wanted = expected_answers(expected, answer)
    text = own_words(produced)
    if not wanted:
        given = final_answer(produced, cut=cut)
        return Grade(
            False, None, "", given.text if given else None, given.rule if given else "", "text"
        )
    if text and not cut and answer is None and text == own_words(expected):
        given = final_answer(produced) or FinalAnswer(text, "whole text")
        return Grade(
            True,
            wanted[0].text,
            wanted[0].rule,
            given.text,
            given.rule,
            answer_kind(wanted[0].text),
        )
    best: Grade | None = None
    for gold in wanted:
        # One second opinion an answer: it may take as long as its time limit.
        result = _graded(gold, text, cut, second_opinion=best is None)
        if result.correct and _percent_out_of_place(result, expected):
            result = replace(result, correct=False)
        if result.correct:
            return result
        if best is None or (best.final_answer is None and result.final_answer is not None):
            best = result
    assert best is not None
    return best


def _percent_out_of_place(result: Grade, expected: str) -> bool:
    """Whether 15 % was taken for 15 although the expected solution speaks of no percentage."""
    wanted, given = result.expected_answer or "", result.final_answer or ""
    if not _PERCENT.search(given) or _PERCENT.search(expected) or _PERCENT.search(wanted):
        return False
    alone = len(own_words(expected)) <= len(wanted) + len("#### ")  # no solution that could tell
    return not alone and same_answer(wanted, _PERCENT.sub("", given), second_opinion=False).equal


def expected_answers(expected: str, answer: object | None = None) -> list[FinalAnswer]:
    """The answers that are accepted: those of the field, else those of the expected text."""
    named = _field_texts(answer)
    if not named:
        return _read(expected, "whole text")
    return [found for text in named for found in _read(text, "answer field")]


def _field_texts(answer: object) -> list[str]:
    """The texts of a field of any JSON type; none where it is missing."""
    if isinstance(answer, bool):
        return ["true" if answer else "false"]
    if isinstance(answer, int):
        return [str(answer)]
    if isinstance(answer, float):
        if not math.isfinite(answer):
            return []
        return [str(int(answer)) if answer.is_integer() and abs(answer) < 1e15 else repr(answer)]
    if isinstance(answer, str):
        return [answer] if answer.strip() else []
    if isinstance(answer, list):
        items = cast("list[object]", answer)
        return [text for item in items for text in _field_texts(item)]
    return []


def _read(text: str, bare_rule: str) -> list[FinalAnswer]:
    """The expected answers in a text: what it announces, else all of it and what it concludes."""
    text = own_words(text) or normalise(text)
    if not text:
        return []
    announced = announced_answer(text)
    if announced is not None:
        return [announced]
    answers = [FinalAnswer(unwrapped(text) or text, bare_rule)]
    concluded = conclusion(text)
    if concluded is not None and concluded != answers[0].text:
        answers.append(FinalAnswer(concluded, "conclusion"))
    return answers


# ---- one expected answer


def _graded(gold: FinalAnswer, text: str, cut: bool, *, second_opinion: bool) -> Grade:
    kind = answer_kind(gold.text)
    first: tuple[FinalAnswer, Comparison] | None = None
    for given in _given_answers(gold.text, text, cut):
        asked = second_opinion and first is None
        compared = same_answer(gold.text, given.text, second_opinion=asked)
        if compared.equal:
            return Grade(True, gold.text, gold.rule, given.text, given.rule, kind, compared.by)
        if first is None:
            first = given, compared
    if first is None:
        return Grade(False, gold.text, gold.rule, None, "", kind)
    given, compared = first
    return Grade(False, gold.text, gold.rule, given.text, given.rule, kind, compared.by)


def _given_answers(gold: str, text: str, cut: bool) -> Iterator[FinalAnswer]:
    """What a produced text may be giving as its answer, in the order in which it is compared."""
    if not text:
        return
    announced = announced_answer(text, cut=cut)
    if cut:
        if announced is not None:
            yield announced
        return
    if announced is not None:
        yield announced
        yield from _inside(gold, announced)
        if len(text) <= LONGEST_ANSWER and normalise(gold) == text:
            yield FinalAnswer(text, "whole text")
        return
    if len(text) <= min(LONGEST_ANSWER, 2 * len(gold) + 300):
        bare = re.sub(r"^(?:So|Thus|Hence|Therefore),?\s+(?=\$)", "", text)
        one_sentence = text.startswith(last_sentence(text))
        yield FinalAnswer(unwrapped(bare if one_sentence else text) or text, "whole text")
    yield from _without_marker(gold, text)


def _inside(gold: str, announced: FinalAnswer) -> Iterator[FinalAnswer]:
    """What an announced clause says in a sentence: "Answer: Tom has 5 apples"."""
    clause = announced.text
    if quantity_of(gold) is not None and quantity_of(clause) is None and is_prose(clause):
        first = next(
            (part for part in re.split(r"[,，;；]\s", clause) if re.search(r"\d", part)), ""
        )
        number = last_number(gold, first, only=True)
        if number is not None:
            yield FinalAnswer(number, announced.rule)
    elif re.search(r"\d!$", clause) and "!" not in gold:
        yield FinalAnswer(clause[:-1], announced.rule)  # "The answer is 12!" is a cry
    elif date_of(gold) or time_of(gold) is not None:
        yield from _only_date_or_time(gold, clause, announced.rule)
    elif yes_or_no(gold) is not None and (said := stated(clause)) is not None:
        yield FinalAnswer("yes" if said else "no", announced.rule)
    elif "=" in clause and "=" not in gold:
        left, _, right = clause.rpartition("=")
        if re.fullmatch(r"[\s\d+\-*/×÷().,^=$\\a-z{}]*", left) and quantity_of(right):
            yield FinalAnswer(unwrapped(right), announced.rule)
    elif said_of_it := predicate(clause):
        yield FinalAnswer(said_of_it, announced.rule)
    elif shorter := before_apposition(clause):
        yield FinalAnswer(shorter, announced.rule)


def _without_marker(gold: str, text: str) -> Iterator[FinalAnswer]:
    """What a text without a marker concludes, by the kind of answer that is expected."""
    lines = [line for line in text[:_TAIL].splitlines() if line.strip()]
    if len(text) > _TAIL:
        lines += [line for line in text[-_TAIL:].splitlines() if line.strip()]
    first, last = lines[0], lines[-1]
    if choice_of(gold) is not None:
        if sum(_OPTION.match(line) is not None for line in lines) > 1:
            return  # the options, restated
        if choice_of(first) is not None:
            yield FinalAnswer(unwrapped(first), "first line")
        elif len(lines) > 1 and choice_of(last) is not None:
            yield FinalAnswer(unwrapped(last), "last line")
        return
    if yes_or_no(gold) is not None:
        yield from _polarity(first, last)
        return
    if date_of(gold) is not None or time_of(gold) is not None:
        sentence = main_clause(last_sentence(without_tail(text)))
        yield from _only_date_or_time(gold, sentence, "the only date")
    elif quantity_of(gold) is not None:
        if quantity_of(unwrapped(text)) is not None:
            return  # another quantity
        if len(lines) > 1 and quantity_of(unwrapped(first)) is not None:
            yield FinalAnswer(unwrapped(first), "first line")
            return
        part = stating_part(text)
        if year_of(gold) is not None and (year := only_year(last_sentence(part))) is not None:
            yield FinalAnswer(year, "the only date")
            return
        if (spelled := spelled_number(last_sentence(part))) is not None:
            yield FinalAnswer(spelled, "conclusion")
            return
        if (ending := last_formula(part)) is not None:
            yield from _formula(gold, ending)
        elif (number := last_number(gold, part)) is not None:
            yield FinalAnswer(number, "last number")
        if (rounded := rounded_value(text)) is not None:
            yield FinalAnswer(rounded, "last number")
        return
    elif (
        re.search(r"[=<>≤≥+*/^()\[\]{}:,\\]", gold)
        and (ending := last_formula(stating_part(text))) is not None
    ):
        yield from _formula(gold, ending)
    if reason := _REASON_BEHIND.search(text, 0, 60):
        yield FinalAnswer(unwrapped(text[: reason.start()]), "first line")
    if len(lines) > 1:
        yield FinalAnswer(unwrapped(last), "last line")
        if len(unwrapped(first)) < 60:
            yield FinalAnswer(unwrapped(first), "first line")
    sentence = last_sentence(without_tail(text))
    if said_of_it := predicate(sentence):
        yield FinalAnswer(said_of_it, "conclusion")
        if shorter := before_apposition(said_of_it):
            yield FinalAnswer(shorter, "conclusion")
    if named := winner(sentence) or subject(text):
        yield FinalAnswer(named, "conclusion")


def _formula(gold: str, ending: str) -> Iterator[FinalAnswer]:
    """A formula at the end of a text, and its right side where a value is expected."""
    yield FinalAnswer(ending, "last formula")
    if "=" not in gold and (right := right_side(ending)) is not None:
        yield FinalAnswer(right, "last formula")


def _polarity(first: str, last: str) -> Iterator[FinalAnswer]:
    """Yes or no: the first word, what the last line says of the statement, or its last word."""
    begin = yes_or_no(first)
    end = stated(last)
    if end is None:
        end = yes_or_no(last)
    if end is None and (
        match := re.search(r"[,，:：]\s*(?:so|thus|hence|所以|因此)?\s*([^,，:：]{1,12})$", last)
    ):
        end = yes_or_no(match[1])
    if begin is not None and (end is None or end == begin):
        yield FinalAnswer("yes" if begin else "no", "first word")
    elif begin is None and end is not None:
        yield FinalAnswer("yes" if end else "no", "conclusion")


def _only_date_or_time(gold: str, sentence: str, rule: str) -> Iterator[FinalAnswer]:
    """The date or time of a sentence that has one only, and does not deny it."""
    moments = dates_in(sentence) if date_of(gold) is not None else times_in(sentence)
    if len(moments) == 1 and not re.search(
        r"\bnot\b|n['’]t\b|\bnever\b|不|没|未|\bbefore\b|\bafter\b|之前|以前|之后|以后", sentence
    ):
        yield FinalAnswer(moments[0][1], rule)
