r"""(expected text, produced text) -> a score from 0 to 1, by comparing texts and final answers."""

import re
from collections.abc import Callable
from fractions import Fraction

from tinkersmith.grading.choices import choice_of
from tinkersmith.grading.final_answer import normalise
from tinkersmith.grading.formulas.second_opinion import one_answer
from tinkersmith.grading.grade import Grade, expected_answers, grade
from tinkersmith.grading.plain_text import plain
from tinkersmith.grading.quantities import Quantity, equal_quantities, quantity_of
from tinkersmith.grading.texts import LONGEST_ANSWER, comparable_words
from tinkersmith.grading.yes_no import yes_or_no

Metric = Callable[[str, str], float]

_LONGEST_SEARCHED = 20_000  # characters at each end of a text


def exact_match(expected: str, produced: str) -> float:
    """1 if both texts are equal after `normalise`, else 0."""
    return float(normalise(expected) == normalise(produced))


def final_answer_match(expected: str, produced: str) -> float:
    """1 if the final answers of both texts are the same (see `grade`), else 0."""
    return float(grade(expected, produced).correct)


def contains_answer(expected: str, produced: str) -> float:
    """1 if the produced text contains the expected final answer anywhere, else 0."""
    return score(expected, produced)["contains_answer"]


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "final_answer": final_answer_match,
    "contains_answer": contains_answer,
}


def score(
    expected: str, produced: str, answer: object | None = None, *, cut: bool = False
) -> dict[str, float]:
    """The value of each metric.

    Args:
        answer: the sample's own field "answer", if it has one (see `grade`).
        cut: whether `produced` ends at the token limit.
    """
    return score_and_grade(expected, produced, answer, cut=cut)[0]


@one_answer()
def score_and_grade(
    expected: str, produced: str, answer: object | None = None, *, cut: bool = False
) -> tuple[dict[str, float], Grade]:
    """The value of each metric, and how the final answer was found and compared."""
    outcome = grade(expected, produced, answer, cut=cut)
    contained = outcome.correct or any(
        answer_contained(accepted.text, produced) for accepted in expected_answers(expected, answer)
    )
    scores = {
        "exact_match": exact_match(expected, produced),
        "final_answer": float(outcome.correct),
        "contains_answer": float(contained),
    }
    return scores, outcome


# ---- an answer somewhere in a text

_LETTER_BEFORE = re.compile(
    r"(?:vitamin|hepatitis|figure|appendix|type|class|group|point|angle|side|team|person|grade|°)\s*$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:\b(?:not|no|never|non)\s+(?:a\s+|an\s+|the\s+)?|n't\s+|[不没非未无]是?)$")


def answer_contained(answer: str, produced: str) -> bool:
    """Whether a text contains an answer: a number's value, an option's letter, or whole words."""
    if len(answer) > LONGEST_ANSWER:
        return answer in produced
    text = produced
    if len(text) > 2 * _LONGEST_SEARCHED:
        text = f"{text[:_LONGEST_SEARCHED]}\n{text[-_LONGEST_SEARCHED:]}"
    if (choice := choice_of(answer)) is not None:
        if len(choice.letters) == 1:
            return _letter_contained(min(choice.letters), plain(text))
        return False
    if (wanted := yes_or_no(answer)) is not None:
        sentences = re.split(r"(?<=[.!?])\s+|[。！？\n]", text)
        return any(yes_or_no(sentence) == wanted for sentence in sentences)
    quantity = quantity_of(answer)
    if quantity is not None and quantity.values:
        return _quantity_contained(quantity, plain(text))
    if re.fullmatch(r"[^a-zA-Z\u4e00-\u9fff]*[a-z]?[^a-zA-Z\u4e00-\u9fff]*", answer):
        return _formula_contained(plain(answer), plain(text))
    return _words_contained(comparable_words(answer), comparable_words(text))


def _letter_contained(letter: str, text: str) -> bool:
    for match in re.finditer(rf"(?<![A-Za-z0-9'’_]){letter}(?![A-Za-z0-9'’_+#])", text):
        bracketed = text[match.start() - 1 : match.start()] == "("
        before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() :]
        article = letter in "AI" and re.match(r"\s+[a-z]", after)
        if bracketed or not (article or _LETTER_BEFORE.search(before)):
            return True
    return False


def _quantity_contained(quantity: Quantity, text: str) -> bool:
    for match in _NUMBER.finditer(text):
        if _number(match) not in quantity.values:
            continue
        if quantity.is_bare:
            return True
        unit = _UNIT_BEHIND.match(text, match.end())
        given = quantity_of(match[0] + unit[0]) if unit else None
        if given is None or equal_quantities(quantity, given):
            return True
    return False


def _formula_contained(formula: str, text: str) -> bool:
    pieces = [re.escape(piece) for piece in formula.split()]
    if not pieces:
        return False
    before = r"(?<![\w.])" if formula[0].isalnum() else r"(?<!\w)" if formula[0] in "([{" else ""
    after = r"(?![\w^]|\.\d)" if formula[-1].isalnum() else ""
    return re.search(before + r"\s*".join(pieces) + after, text) is not None


def _words_contained(words: str, text: str) -> bool:
    if not words:
        return False
    before = r"(?<![a-z0-9])" if words[0].isascii() and words[0].isalnum() else ""
    after = r"(?![a-z0-9+#])" if words[-1].isascii() and words[-1].isalnum() else ""
    return any(
        not _DENIED.search(text, max(0, match.start() - 12), match.start())
        for match in re.finditer(before + re.escape(words) + after, text)
    )


# A sign belongs to the number only where no number or name stands before it: 10-5 is 10 and 5.
_NUMBER = re.compile(
    r"(?<![a-zA-Z0-9_.])(?!(?<=\d,)\d{3}(?!\d))"
    r"(?:(?<![\d)\]}a-zA-Z%])[-+] ?)?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?<=\d)(?!\d)(?!\.\d)"
    r"(?:[eE][-+]?\d+(?![\da-zA-Z]))?"
    r"(?: ?/ ?\d+(?![\d/]|\.\d)| \d+/\d+(?![\d/]))?"
    r"(?: ?%)?"
)
_UNIT_BEHIND = re.compile(r" ?[a-zA-Z°]+(?:/[a-zA-Z]+)?(?:\^-?\d)?| ?[\u4e00-\u9fff]{1,3}")


def _number(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`; percent as hundredths."""
    text = match.group().replace(",", "").replace("- ", "-").replace("+ ", "+")
    percent = text.endswith("%")
    text = re.sub(r" ?/ ?", "/", text.rstrip("% "))
    whole, space, fraction = text.partition(" ")
    try:
        value = _fraction(whole)
        if space:
            value += _fraction(fraction) * (-1 if whole.startswith("-") else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def _fraction(text: str) -> Fraction:
    above, slash, below = text.partition("/")
    mantissa, _, exponent = above.lower().partition("e")
    if len(exponent) > 5 or len(text) > 1000:
        raise ValueError("too large to be meant as a number")
    value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
    return value / Fraction(below) if slash else value
