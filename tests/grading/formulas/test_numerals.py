"""Numbers in words: every numeral that we write is read back as its value."""

from fractions import Fraction

import pytest

from tinkersmith.grading.formulas.numerals import (
    chinese_whole_number,
    leading_chinese_number,
    leading_english_number,
)

DIGITS = "零一二三四五六七八九"


def in_chinese(value: int) -> str:
    """A numeral as it is taught in school, for values below 10^12."""
    if value == 0:
        return "零"
    text, gap = "", False
    for place, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        section, value = divmod(value, place)
        if section == 0:
            gap = bool(text)
            continue
        if gap or (text and section < 1000):
            text += "零"
        text += section_in_chinese(section) + name
        gap = False
    return text.removeprefix("一") if text.startswith("一十") else text


def section_in_chinese(section: int) -> str:
    text, gap = "", False
    for place, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, section = divmod(section, place)
        if digit == 0:
            gap = bool(text)
            continue
        text += ("零" if gap else "") + DIGITS[digit] + name
        gap = False
    return text


def test_every_chinese_numeral_is_read_as_its_value() -> None:
    values = [*range(2000), *range(9000, 120_000, 37), *(7**power for power in range(4, 14))]
    values += [10**8, 10**8 + 5, 3 * 10**8 + 2 * 10**7, 10**11 + 10**4]
    assert {value: chinese_whole_number(in_chinese(value)) for value in values} == {
        value: value for value in values
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("两千零五", 2005),
        ("一百二", 120),
        ("三万五", 35000),
        ("一百零二", 102),
        ("二〇二四", 2024),
        ("一万亿", 10**12),
        ("贰佰伍拾", 250),
        ("十", 10),
    ],
)
def test_numerals_as_people_write_them(text: str, value: int) -> None:
    assert chinese_whole_number(text) == value


@pytest.mark.parametrize("text", ["", "百", "十百", "一二三千", "万", "一千万千", "两两"])
def test_letters_that_are_no_numeral(text: str) -> None:
    assert chinese_whole_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("三分之二", Fraction(2, 3)),
        ("百分之五十", Fraction(1, 2)),
        ("百分之十二点五", Fraction(1, 8)),
        ("四又二分之一", Fraction(9, 2)),
        ("负三分之一", Fraction(-1, 3)),
        ("三点一四", Fraction(314, 100)),
        ("三点五万", 35_000),
        ("1.2万", 12_000),
        ("3亿2000万", 320_000_000),
        ("2万5千", 25_000),
    ],
)
def test_fractions_decimals_and_digits_with_places(text: str, value: Fraction | int) -> None:
    reading = leading_chinese_number(text)
    assert reading is not None
    assert reading[:2] == (value, len(text))


@pytest.mark.parametrize(
    ("words", "value", "count"),
    [
        ("twenty-one", 21, 2),
        ("one hundred and five", 105, 4),
        ("three million two hundred thousand and one", 3_200_001, 7),
        ("two thirds", Fraction(2, 3), 2),
        ("one half", Fraction(1, 2), 2),
        ("two and a half hours", Fraction(5, 2), 4),
        ("three point one four", Fraction(314, 100), 4),
        ("minus seven", -7, 2),
        ("a dozen eggs", 12, 2),
    ],
)
def test_english_numbers(words: str, value: Fraction | int, count: int) -> None:
    assert leading_english_number(words.replace("-", " ").split()) == (value, count)


@pytest.mark.parametrize("words", ["", "none", "and five", "hundred", "a cat"])
def test_english_words_that_are_no_number(words: str) -> None:
    assert leading_english_number(words.split()) is None
