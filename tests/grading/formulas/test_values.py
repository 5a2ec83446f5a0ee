"""Expressions are equal only where their values are, to hundreds of digits."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkersmith.grading.formulas.expressions import Unreadable, parse_expression
from tinkersmith.grading.formulas.values import (
    TooLarge,
    Undecided,
    common_factor,
    equal_expressions,
    exact,
    limited_work,
    real_value,
)


def equal(first: str, second: str) -> bool:
    return equal_expressions(parse_expression(first), parse_expression(second))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2π", 2 * math.pi),
        ("e^2", math.exp(2)),
        ("sin(1)", math.sin(1)),
        ("cos(10)", math.cos(10)),
        ("tan(0.3)", math.tan(0.3)),
        ("arcsin(0.4)", math.asin(0.4)),
        ("arccos(-0.4)", math.acos(-0.4)),
        ("arctan(7)", math.atan(7)),
        ("ln(10)", math.log(10)),
        ("log_3(10)", math.log(10, 3)),
        ("sinh(2)", math.sinh(2)),
        ("cosh(2)", math.cosh(2)),
        ("tanh(2)", math.tanh(2)),
        ("√2^3", 2**1.5),
        ("2^0.3", 2**0.3),
        ("(-8)^{1/3}", -2),
        ("⌊2.7⌋+⌈2.1⌉", 5),
        ("|1-π|", math.pi - 1),
    ],
)
def test_values_agree_with_pythons_math(text: str, value: float) -> None:
    computed = real_value(parse_expression(text))
    assert computed is not None
    assert float(computed) == pytest.approx(value, rel=1e-14)


def test_a_decimal_of_pi_is_never_pi() -> None:
    digits = "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"
    assert not any(equal(digits[:length], "π") for length in range(3, len(digits)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("9^{9^9}", "9^{9^9}+1"),
        ("e^{e^{e^9}}", "2"),
        ("(10^9)!", "1"),
        (r"\sum_{k=1}^{10^9} k", "1"),
    ],
)
def test_what_is_too_large_is_refused_and_not_computed(first: str, second: str) -> None:
    with pytest.raises(TooLarge):
        equal(first, second)


def test_the_work_of_one_pair_is_limited() -> None:
    node = parse_expression(r"\sum_{k=1}^{200}\sum_{j=1}^{200} sin(jk)")
    with limited_work(), pytest.raises(TooLarge):
        equal_expressions(node, parse_expression("1"))


@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "the",
        "x y z 3",
        "1 2",
        "1.2.3",
        "(1",
        "1)",
        "x^",
        "\\frac{1}",
        "dy/dx",
        "\\int x",
        "",
    ],
)
def test_texts_that_are_no_expression(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_expression(text)


def test_nesting_ends_before_pythons_stack_does() -> None:
    for text in ("(" * 299 + ")" * 299, "sin " * 150 + "x", "2^" * 250 + "2", "√" * 500, "-" * 500):
        with pytest.raises(Unreadable):
            parse_expression(text)


def test_points_where_only_one_side_is_defined_do_not_count() -> None:
    assert equal("ln(x^2)", "2ln x")
    assert equal("(x^2-1)/(x-1)", "x+1")
    assert not equal(r"\sqrt{x^2}", "x")
    with pytest.raises(Undecided):
        equal(r"\sqrt{-1-x^2}", "x")


def test_a_common_factor_has_a_sign() -> None:
    first, second = parse_expression("2x-4y+6"), parse_expression("-x+2y-3")
    assert common_factor(first, second) == -1
    assert common_factor(first, parse_expression("x-2y+3")) == 1
    assert common_factor(first, parse_expression("x-2y+4")) == 0


whole = st.integers(-30, 30)


@st.composite
def polynomials(draw: st.DrawFn) -> tuple[str, dict[tuple[int, int], int]]:
    """A polynomial in x and y: its text, with terms in any order, and its coefficients."""
    terms = draw(st.lists(st.tuples(whole, st.integers(0, 4), st.integers(0, 3)), max_size=5))
    coefficients: dict[tuple[int, int], int] = {}
    for factor, power, other in terms:
        key = (power, other)
        coefficients[key] = coefficients.get(key, 0) + factor
    text = "".join(f"{factor:+d}x^{power}*y^{other}" for factor, power, other in terms) or "0"
    return text, {key: value for key, value in coefficients.items() if value}


@settings(max_examples=150, deadline=None)
@given(polynomials(), polynomials())
def test_polynomials_are_equal_exactly_if_their_coefficients_are(
    first: tuple[str, dict[tuple[int, int], int]], second: tuple[str, dict[tuple[int, int], int]]
) -> None:
    assert equal(first[0], second[0]) == (first[1] == second[1])
    assert equal(first[0], f"({first[0]})+({second[0]})-({second[0]})")
    assert not equal(first[0], f"{first[0]}+1")


@settings(max_examples=150, deadline=None)
@given(st.fractions(-100, 100, max_denominator=60), st.fractions(-100, 100, max_denominator=60))
def test_rational_numbers_are_exact(first: Fraction, second: Fraction) -> None:
    node = parse_expression(f"({first})*({second})-({first})/3")
    assert exact(node) == first * second - first / 3
    assert equal(f"({first})^2", f"({second})^2") == (abs(first) == abs(second))


def test_pi_has_the_known_digits() -> None:
    value = real_value(parse_expression("π"))
    assert value is not None
    assert abs(value - Decimal("3.14159265358979323846264338327950288419716939937511")) < Decimal(
        "1e-48"
    )
