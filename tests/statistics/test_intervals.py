"""Intervals against published values."""

import pytest

from tinkersmith.statistics.intervals import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # by the formula in Brown, Cai and DasGupta 2001, eq. 4
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (8, 10, 0.4902, 0.9433),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_the_wilson_interval(successes: int, n: int, low: float, high: float):
    interval = wilson_interval(successes, n)
    assert interval == pytest.approx((low, high), abs=1e-4)
