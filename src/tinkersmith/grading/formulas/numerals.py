"""Numbers in words -> values: 三百二十一, 1.2万, 三分之二, 百分之五十, twenty-one, two thirds."""

import re
from fractions import Fraction

from tinkersmith.grading.formulas.numbers import literal

_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {
    "〇": 0, "○": 0, "两": 2, "俩": 2, "壹": 1, "贰": 2, "叁": 3, "肆": 4, "伍": 5, "陆": 6,
    "柒": 7,
    "捌": 8, "玖": 9, "兩": 2, "貳": 2, "參": 3, "陸": 6,
}  # fmt: skip
_PLACES = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8, "萬": 10**4, "億": 10**8, "兆": 10**12}
_LETTERS = "".join([*_DIGITS, *_PLACES, *_MYRIADS])
_CHINESE = re.compile(rf"(负|-)?([{_LETTERS}]+)")
_CHINESE_DECIMAL = re.compile(
    rf"(负|-)?([{''.join([*_DIGITS, *_PLACES])}]+)点([{''.join(_DIGITS)}]+)([{''.join(_MYRIADS)}]?)"
)
_WITH_DIGITS = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?) ?((?:十|百|千)?(?:万|亿|万亿)?)(?!分)")
_FRACTION = re.compile(
    rf"(负)?(?:([{_LETTERS}]+|\d+)又)?([{_LETTERS}]+|\d+)分之([{_LETTERS}]+(?:点[{_LETTERS}]+)?|\d+(?:\.\d+)?)"
)
_HALVES = {"一半": Fraction(1, 2), "半": Fraction(1, 2)}


def leading_chinese_number(text: str) -> tuple[Fraction, int, bool] | None:
    """The number at the beginning of a text: its value, its length, whether it is a percentage."""
    if fraction := _FRACTION.match(text):
        value = _chinese_fraction(fraction)
        if value is not None:
            return value, fraction.end(), fraction[3] in ("百", "100")
    for half, value in _HALVES.items():
        if text == half:
            return value, len(half), False
    if match := _CHINESE_DECIMAL.match(text):
        return _chinese_decimal(match), match.end(), False
    if match := _CHINESE.match(text):
        for length in range(len(match[2]), 0, -1):
            value = chinese_whole_number(match[2][:length])
            if value is not None:
                signed = Fraction(-value if match[1] else value)
                return signed, match.start(2) + length, False
        return None
    return _digits_and_letters(text)


def _chinese_decimal(match: re.Match[str]) -> Fraction:
    """三点一四, 负零点五, 三点五万."""
    decimals = "".join(str(_DIGITS[digit]) for digit in match[3])
    value = chinese_whole_number(match[2]) or 0
    total = (value + Fraction(int(decimals), 10 ** len(decimals))) * _scale(match[4])
    return -total if match[1] else total


def _digits_and_letters(text: str) -> tuple[Fraction, int, bool] | None:
    """Digits with 万 or 亿 behind them, several times: 1.2万, 3亿2000万, 2万5千."""
    sign = -1 if text.startswith(("-", "负")) else 1
    place = 1 if sign < 0 else 0
    total, last = Fraction(0), None
    while match := _WITH_DIGITS.match(text, place):
        value = literal(match[1])
        scale = _scale(match[2])
        if value is None or (last is not None and scale * 10 > last * 10 - 1):
            return None
        if last is None and scale == 1:
            return None  # plain digits are no matter of this module
        total += value * scale
        place, last = match.end(), scale
    return None if last is None else (sign * total, place, False)


def _scale(letters: str) -> int:
    scale = 1
    for letter in letters:
        scale *= _PLACES.get(letter) or _MYRIADS[letter]
    return scale


def _chinese_fraction(match: re.Match[str]) -> Fraction | None:
    def value(text: str) -> Fraction | None:
        whole, point, decimals = text.partition("点")
        if point:
            digits = "".join(str(_DIGITS.get(digit, "x")) for digit in decimals)
            before = chinese_whole_number(whole)
            if before is None or not digits.isdigit():
                return None
            return before + Fraction(int(digits), 10 ** len(digits))
        if text in _PLACES or text in _MYRIADS:
            return Fraction(_scale(text))  # 百分之, 千分之
        return literal(text) if text[0].isdigit() else _as_fraction(chinese_whole_number(text))

    below, above = value(match[3]), value(match[4])
    whole = value(match[2]) if match[2] else Fraction(0)
    if below is None or above is None or whole is None or not below:
        return None
    total = whole + above / below
    return -total if match[1] else total


def _as_fraction(value: int | None) -> Fraction | None:
    return None if value is None else Fraction(value)


def chinese_whole_number(text: str) -> int | None:
    """The value of 三百二十一, 一万零五, 二〇二四 or 一百二; None if the letters are no number."""
    if not text or len(text) > 40:
        return None
    if all(letter in _DIGITS for letter in text):
        if len(text) > 1 and text[0] == "两":
            return None
        return int("".join(str(_DIGITS[letter]) for letter in text))
    total = 0  # finished groups of 亿 and 万
    section = 0  # below 万
    digit: int | None = None
    last_place = 0  # of the section: 1000, 100, 10; 0 at its beginning
    largest = 10**20
    after_zero = False
    for letter in text:
        if letter in _DIGITS:
            if digit is not None:
                return None
            if _DIGITS[letter] == 0:
                after_zero = True
            else:
                digit = _DIGITS[letter]
        elif letter in _PLACES:
            place = _PLACES[letter]
            if last_place and place >= last_place:
                return None
            if digit is None and (place != 10 or (section and not after_zero)):
                return None
            section += (1 if digit is None else digit) * place
            digit, last_place, after_zero = None, place, False
        else:
            myriad = _MYRIADS[letter]
            section += digit or 0
            if section == 0 and total == 0:
                return None
            if myriad >= largest:
                total = (total + section) * myriad  # 万亿
            elif myriad > 10**4 and 0 < total < myriad:
                total = (total + section) * myriad
            else:
                total += section * myriad
            largest = myriad
            section, digit, last_place, after_zero = 0, None, 0, False
    if digit is not None:
        # 一百二 is 120 and 三万五 is 35000, but 一百零二 is 102
        before = last_place or (largest if total else 0)
        short = before > 10 and not after_zero and text[-2] not in _DIGITS
        section += digit * (before // 10 if short else 1)
    return total + section


# ---- English

_SMALL = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4,
    "fourths": 4, "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "seventh": 7, "sevenths": 7,
    "eighth": 8, "eighths": 8, "ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10,
}  # fmt: skip


def leading_english_number(words: list[str]) -> tuple[Fraction, int] | None:
    """The number at the beginning of lower-case words, and how many words it takes."""
    if not words:
        return None
    negative = words[0] in ("minus", "negative")
    start = 1 if negative else 0
    following = words[start + 1] if len(words) > start + 1 else ""
    if words[start : start + 1] == ["a"] and following in SCALES:
        words = [*words[:start], "one", *words[start + 1 :]]  # a hundred
    if words[start : start + 2] == ["half", "a"] and words[start + 2 : start + 3]:
        scale = SCALES.get(words[start + 2], 12 if words[start + 2] == "dozen" else 0)
        if scale:
            value = Fraction(scale, 2)
            return (-value if negative else value), start + 3
    whole = _english_whole(words[start:])
    place = start + (whole[1] if whole else 0)
    value = Fraction(whole[0]) if whole else None
    if value is None:
        if words[start : start + 1] in (["half"], ["a"]) and words[start:] in (
            ["half"], ["a", "half"], ["a", "third"], ["a", "quarter"], ["a", "fifth"],
            ["a", "tenth"],
        ):  # fmt: skip
            value, place = Fraction(1, _PARTS[words[-1]]), len(words)
        elif words[start : start + 2] == ["a", "dozen"]:
            value, place = Fraction(12), start + 2
        else:
            return None
    elif words[place : place + 1] and words[place] in _PARTS:
        value, place = value / _PARTS[words[place]], place + 1
    elif words[place : place + 1] == ["and"] and len(words) > place + 2:
        above = {"a": 1} | _SMALL
        if words[place + 1] in above and words[place + 2] in _PARTS:
            value += Fraction(above[words[place + 1]], _PARTS[words[place + 2]])
            place += 3
    elif words[place : place + 1] == ["point"]:
        digits = ""
        place += 1
        while place < len(words) and _SMALL.get(words[place], 10) < 10:
            digits += str(_SMALL[words[place]])
            place += 1
        if not digits:
            return None
        value += Fraction(int(digits), 10 ** len(digits))
    elif words[place : place + 1] == ["dozen"]:
        value, place = value * 12, place + 1
    return (-value if negative else value), place


def _english_whole(words: list[str]) -> tuple[int, int] | None:
    total = group = 0
    place = 0
    last = "start"  # what came last: "small", "tens", "hundred", "scale"
    while place < len(words):
        word = words[place]
        if word == "and" and last in ("hundred", "scale"):
            if place + 1 >= len(words) or words[place + 1] not in _SMALL | _TENS:
                break
            if words[place + 2 : place + 3] and words[place + 2] in _PARTS:
                break
        elif word in _SMALL and (last in ("start", "hundred", "scale") or
                                 (last == "tens" and 0 < _SMALL[word] < 10)):  # fmt: skip
            group += _SMALL[word]
            last = "small"
        elif word in _TENS and last in ("start", "hundred", "scale"):
            group += _TENS[word]
            last = "tens"
        elif word == "hundred" and last in ("small", "tens"):
            group *= 100
            last = "hundred"
        elif word in SCALES and word != "hundred" and last in ("small", "tens", "hundred"):
            total += group * SCALES[word]
            group = 0
            last = "scale"
        else:
            break
        place += 1
    return (total + group, place) if last != "start" else None
