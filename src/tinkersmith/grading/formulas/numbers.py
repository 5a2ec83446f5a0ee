"""Digits -> exact values: thousands, decimals, fractions, mixed numbers, powers of ten, percent.

This module does not read words, Chinese numerals or units.
"""

import re
from fractions import Fraction

MOST_DIGITS = 4000  # Python refuses to read integers of more than 4300 digits
LARGEST_EXPONENT = 5000

# A number inside a sentence. A sign belongs to it only where no number or name stands before the
# sign: 10-5 is 10 and 5.
NUMBER = re.compile(
    r"(?<![a-zA-Z0-9_.])(?!(?<=\d,)\d{3}(?!\d))"
    r"(?:(?<![\d)\]}a-zA-Z%])[-+] ?)?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?<=\d)(?!\d)(?!\.\d)"
    r"(?:[eE][-+]?\d+(?![\da-zA-Z]))?"
    r"(?: ?/ ?\d+(?![\d/]|\.\d)| \d+/\d+(?![\d/]))?"
    r"(?: ?%)?"
)
_LITERAL = re.compile(r"(\d+|\d{1,3}(?:,\d{3})+)?(?:\.(\d+)?)?(?:[eE]([-+]?\d+))?")
_REPEATING = re.compile(
    r"(\d*)\.(\d*?)(?:\\overline ?\{(\d+)\}|\\bar ?\{(\d+)\}|\\bar (\d)|\((\d+)\)|(\d)循环)"
)
_DOTTED = re.compile(r"(\d*)\.(\d*)\\dot ?\{?(\d)\}?(?:(\d*)\\dot ?\{?(\d)\}?)?")
_GOING_ON = re.compile(r"(\d*)\.(\d+)…")


def number_value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `NUMBER`; percent as hundredths. None if it is no such number."""
    text = match.group().replace(",", "").replace("- ", "-").replace("+ ", "+")
    percent = text.endswith("%")
    text = re.sub(r" ?/ ?", "/", text.rstrip("% "))
    whole, space, fraction = text.partition(" ")
    value = _fraction(whole)
    if space and value is not None:
        rest = _fraction(fraction)
        if rest is None:
            return None
        value += -rest if whole.startswith("-") else rest
    return value / 100 if percent and value is not None else value


def _fraction(text: str) -> Fraction | None:
    above, slash, below = text.partition("/")
    sign = -1 if above.startswith("-") else 1
    value = literal(above.lstrip("+-"))
    if not slash or value is None:
        return None if value is None else sign * value
    divisor = literal(below)
    return sign * value / divisor if divisor else None


def literal(text: str) -> Fraction | None:
    """The value of an unsigned literal such as 1,234.5 or 1.5e3; None if it is none."""
    match = _LITERAL.fullmatch(text)
    if match is None or len(text) > MOST_DIGITS:
        return None
    whole, decimals, exponent = match.groups()
    if whole is None and decimals is None:
        return None
    digits = (whole or "").replace(",", "") + (decimals or "")
    power = int(exponent) if exponent and len(exponent) < 7 else 0 if not exponent else 10**6
    if abs(power) > LARGEST_EXPONENT:
        return None
    return int(digits) * Fraction(10) ** (power - len(decimals or ""))


def repeating_decimal(text: str) -> Fraction | None:
    r"""The value of a decimal that says what repeats: 0.\overline{3}, 0.1(6), 0.\dot{3}, 0.333…

    Digits with "…" count if the period is seen at least twice: 3.14159… has no known value.
    """
    match = _REPEATING.fullmatch(text)
    if match:
        period = next(group for group in match.groups()[2:] if group)
        return _repeated(match[1], match[2], period)
    match = _DOTTED.fullmatch(text)
    if match:
        return _repeated(match[1], match[2], match[3] + (match[4] or "") + (match[5] or ""))
    match = _GOING_ON.fullmatch(text)
    if match is None or len(match[2]) > 60:
        return None
    decimals = match[2]
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        times = 3 if length == 1 else 2  # 0.33… may be a rounded 0.3281, 0.333… is meant as 1/3
        if decimals.endswith(period * times):
            before = decimals
            while before.endswith(period):
                before = before[: -len(period)]
            return _repeated(match[1], before, period)
    return None


def _repeated(whole: str, before: str, period: str) -> Fraction:
    value = Fraction(int((whole or "0") + before), 10 ** len(before))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
