"""Numbers of a sweep in words."""

import pytest

from tinkersmith.sweep.ranking import Difference
from tinkersmith.sweep.words import difference_ends, difference_text, spread_text


def between(mean: float, low: float, high: float) -> Difference:
    return Difference(mean, low, high, n=10, p_value=0.5, p_holm=0.5, seeds_alone=False)


@pytest.mark.parametrize(
    ("by", "value", "en", "zh"),
    [
        ("validation_loss", 0.00213, "0.0021", "0.0021"),
        ("validation_loss", 0.00004, "< 0.0001", "< 0.0001"),
        ("validation_loss", 0.0, "< 0.0001", "< 0.0001"),
        ("final_answer", 0.0213, "2.1 points", "2.1 个百分点"),
        ("final_answer", 0.0004, "< 0.1 points", "< 0.1 个百分点"),
        ("politeness", 0.0000123, "1.23e-05", "1.23e-05"),
    ],
)
def test_a_spread_is_never_a_row_of_zeros(by: str, value: float, en: str, zh: str) -> None:
    assert spread_text(by, value) == en
    assert spread_text(by, value, "zh") == zh


@pytest.mark.parametrize(
    ("by", "difference", "amount", "ends"),
    [
        ("validation_loss", (0.5099, 0.407, 0.6127), "+0.5099", "(+0.4070 to +0.6127)"),
        ("validation_loss", (3e-6, -1e-6, 7e-6), "+0.0000030", "(-0.0000010 to +0.0000070)"),
        ("validation_loss", (0.0, 0.0, 0.0), "0.0000", "(0.0000 to 0.0000)"),
        ("validation_loss", (-1e-30, -2e-30, 0.0), "0.000000000", "(0.000000000 to 0.000000000)"),
        ("final_answer", (-0.05, -0.2, 0.1), "-5.0 points", "(-20.0 to +10.0)"),
        ("final_answer", (-0.0002, -0.0004, 0.0), "-0.020 points", "(-0.040 to 0.000)"),
        ("politeness", (0.0, -1.5, 1.5), "0", "(-1.5 to +1.5)"),
    ],
)
def test_a_difference_shows_what_it_is_and_zero_has_no_sign(
    by: str, difference: tuple[float, float, float], amount: str, ends: str
) -> None:
    assert difference_text(by, between(*difference)) == amount
    assert difference_ends(by, between(*difference)) == f"{ends}, p = 0.500"
