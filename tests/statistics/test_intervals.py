"""Intervals against the formulas that they come from, and at their ends."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from tinkersmith.statistics.intervals import (
    Z,
    mean_interval,
    mean_intervals,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # values of other programs
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (1, 29, 0.0061, 0.1718),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_intervals_have_the_published_values(
    successes: float, n: int, low: float, high: float
):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_right_and_wrong_give_the_interval_of_wilson():
    scores = np.array([1.0] * 7 + [0.0] * 23)
    assert mean_interval(scores) == pytest.approx(wilson_interval(7, 30))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 19, 20, 99, 100, 999, 1000, 1001, 5000])
def test_quantiles_of_t_agree_with_scipy(degrees: int):
    assert t_quantile(degrees) == pytest.approx(float(student.ppf(0.975, degrees)), abs=2e-6)


def _slow(scores: list[float], draws: int) -> tuple[float, float]:
    """Wilson's interval at the effective number of questions, step by step."""
    n = len(scores)
    rate = sum(scores) / n
    spread = sum((score - rate) ** 2 for score in scores) / (n - 1)
    effect = 1.0
    if 0 < rate < 1 and spread > 0 and set(scores) - {0.0, 1.0}:
        effect = min(1.0, max(spread / (rate * (1 - rate)), 1 / draws if draws > 1 else 1e-9))
    count = n / effect
    q = float(student.ppf(0.975, n - 1))
    if not set(scores) - {0.0, 1.0} and draws == 1:
        q = Z
    centre = (rate + q * q / (2 * count)) / (1 + q * q / count)
    half = q / (1 + q * q / count) * math.sqrt(rate * (1 - rate) / count + q * q / (4 * count**2))
    return (0.0 if rate == 0 else centre - half), (1.0 if rate == 1 else centre + half)


def test_intervals_of_many_rows_agree_with_a_slow_twin():
    random = np.random.default_rng(3)
    for draws in (1, 2, 5):
        scores = random.binomial(draws, random.uniform(0, 1, (50, 1)), (50, 23)) / draws
        scores[0], scores[1], scores[2] = 0.0, 1.0, 0.5
        low, high = mean_intervals(scores, draws)
        for row, ends in zip(scores.tolist(), zip(low, high, strict=True), strict=True):
            assert ends == pytest.approx(_slow(row, draws), abs=1e-6)


def test_several_answers_narrow_the_interval_no_further_than_they_can():
    alike = mean_interval(np.array([0.5] * 38 + [0.25, 0.75]), draws=4)
    assert alike[0] < 0.43 and alike[1] > 0.57  # as wide as that of 160 answers
    once = mean_interval(np.array([0.0, 1.0] * 20))
    assert once[0] < alike[0] and alike[1] < once[1]


def test_scores_without_bounds_have_the_interval_of_t():
    scores = np.array([3.0, 5.0, 10.0, 6.0])
    low, high = mean_interval(scores, bounded=False)
    half = float(student.ppf(0.975, 3)) * scores.std(ddof=1) / 2
    assert (low, high) == pytest.approx((6 - half, 6 + half))


@pytest.mark.parametrize(
    ("scores", "bounded", "ends"),
    [
        ([], True, (0.0, 1.0)),
        ([], False, (-math.inf, math.inf)),
        ([3.0], False, (-math.inf, math.inf)),
        ([1.0], True, wilson_interval(1, 1)),
    ],
)
def test_too_few_questions_give_the_widest_interval(
    scores: list[float], bounded: bool, ends: tuple[float, float]
):
    assert mean_interval(np.array(scores), bounded=bounded) == ends
