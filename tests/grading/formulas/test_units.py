"""Units are read with powers, prefixes and divisions; names have only the meanings they have."""

from fractions import Fraction

import pytest

from tinkersmith.grading.formulas.units import read_unit


def factors(text: str) -> set[tuple[Fraction, tuple[tuple[str, int], ...]]]:
    return {(unit.factor, unit.base) for unit in read_unit(text)}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("km", "kilometres"),
        ("km/h", "kilometers per hour"),
        ("km/h", "千米每小时"),
        ("m²", "square meters"),
        ("m^2", "平方米"),
        ("cm^3", "立方厘米"),
        ("m/s^2", "m/s/s"),
        ("m s^-2", "m/s^2"),
        ("N·m", "J"),
        ("kg·m/s²", "N"),
        ("sq ft", "square feet"),
        ("hrs", "小时"),
        ("kgs", "公斤"),
    ],
)
def test_two_names_of_one_unit(text: str, other: str) -> None:
    assert factors(text) & factors(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("km", "m"),
        ("mW", "MW"),
        ("m", "m^2"),
        ("m/s", "m/s^2"),
        ("元", "$"),
        ("¥", "€"),
        ("km/h", "mph"),
        ("°C", "°F"),
        ("month", "day"),
        ("kg", "lb"),
        ("min", "m"),
    ],
)
def test_different_units(text: str, other: str) -> None:
    assert factors(text)
    assert factors(other)
    assert not factors(text) & factors(other)


@pytest.mark.parametrize(
    "text", ["", "apples", "of", "Mw", "x", "m/", "square", "km km km km km km"]
)
def test_texts_that_are_no_unit(text: str) -> None:
    assert read_unit(text) == []


def test_an_ambiguous_name_keeps_all_its_meanings() -> None:
    bases = {unit.base for unit in read_unit("分")}
    assert (("s", 1),) in bases
    assert (("元", 1),) in bases
