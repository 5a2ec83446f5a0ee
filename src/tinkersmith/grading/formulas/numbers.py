"""Digits -> exact values: thousands, decimals, powers of ten, repeating decimals.

This module does not read signs, fractions, words, Chinese numerals or units.
"""

import re
from fractions import Fraction

MOST_DIGITS = 4000  # Python refuses to read integers of more than 4300 digits
LARGEST_EXPONENT = 5000

_LITERAL = re.compile(r"(\d+|\d{1,3}(?:,\d{3})+)?(?:\.(\d+)?)?(?:[eE]([-+]?\d+))?")
_REPEATING = re.compile(
    r"(\d*)\.(\d*?)(?:\\overline ?\{(\d+)\}|\\bar ?\{(\d+)\}|\\bar (\d)|\((\d+)\)|(\d)循环)"
)
_DOTTED = re.compile(r"(\d*)\.(\d*)\\dot ?\{?(\d)\}?(?:(\d*)\\dot ?\{?(\d)\}?)?")
_GOING_ON = re.compile(r"(\d*)\.(\d+)…")


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
