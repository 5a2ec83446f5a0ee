"""Paired tests and intervals against slow twins and published values."""

import itertools
import math

import numpy as np
import pytest

from tinkersmith.statistics.intervals import FloatArray, t_quantile, wilson_interval
from tinkersmith.statistics.paired import (
    difference_interval,
    difference_intervals,
    mcnemar,
    mcnemar_exact,
    sign_flip_test,
    sign_flip_tests,
)


def _slow_tail(count: int, most: int) -> float:
    return sum(math.comb(count, x) for x in range(most + 1)) / 2**count


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (1, 7), (12, 12), (30, 51)])
def test_mcnemar_agrees_with_sums_of_binomials(won: int, lost: int):
    count, fewer = won + lost, min(won, lost)
    exact = min(1.0, 2 * _slow_tail(count, fewer))
    middle = 2 * _slow_tail(count, fewer) - math.comb(count, fewer) / 2**count
    assert mcnemar_exact(won, lost) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(won, lost) == mcnemar(lost, won) == pytest.approx(min(1.0, middle), rel=1e-9)


def test_mcnemar_has_the_published_value():
    # Fagerland, Lydersen & Laake (2013): 1 and 7 discordant pairs.
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_mcnemar_takes_large_counts():
    assert mcnemar(60_000, 40_000) < 1e-12
    assert mcnemar(50_000, 50_000) == pytest.approx(1.0)


def _all_signs(differences: list[float]) -> float:
    observed = abs(sum(differences))
    farther = equal = 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        total = abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        farther += total > observed + 1e-9
        equal += abs(total - observed) <= 1e-9
    return (farther + equal / 2) / 2 ** len(differences)


def test_random_signs_agree_with_all_signs():
    random = np.random.default_rng(4)
    for _ in range(5):
        differences = np.round(random.normal(0.1, 0.3, 12), 2)
        p = sign_flip_test(differences)
        assert p == pytest.approx(_all_signs(differences.tolist()), abs=0.015)
        assert p == sign_flip_test(differences) == sign_flip_test(-differences)


def test_the_permutation_test_of_right_and_wrong_is_mcnemars():
    differences = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 30)
    assert sign_flip_test(differences) == pytest.approx(mcnemar(14, 5), abs=0.01)


def test_many_questions_are_tested_by_the_normal_limit():
    random = np.random.default_rng(9)
    differences = np.round(random.normal(0.012, 0.3, 2001), 2)
    limit = sign_flip_test(differences)
    assert 0.005 < limit < 0.3
    assert sign_flip_test(differences[:2000]) == pytest.approx(limit, abs=0.04)
    assert sign_flip_test(np.zeros(3000)) == 1.0
    won = np.array([1.0] * 160 + [-1.0] * 120 + [0.0] * 2000)
    assert sign_flip_test(won) == pytest.approx(mcnemar(160, 120), abs=0.001)


def test_rows_are_tested_as_if_they_were_alone():
    random = np.random.default_rng(5)
    rows = random.normal(0.05, 0.3, (4, 30))
    assert sign_flip_tests(rows).tolist() == [sign_flip_test(row) for row in rows]


def test_no_difference_at_all_is_no_evidence():
    assert sign_flip_test(np.zeros(20)) > 0.49
    assert mcnemar(0, 0) == 1.0


def _slow_interval(first: list[float], second: list[float]) -> tuple[float, float]:
    """Newcombe's method 10 for right and wrong."""
    n = len(first)
    p, q = sum(first) / n, sum(second) / n
    (low, high), (other_low, other_high) = (wilson_interval(n * x, n) for x in (p, q))
    covariance = sum((a - p) * (b - q) for a, b in zip(first, second, strict=True)) / n
    scale = math.sqrt(p * (1 - p) * q * (1 - q))
    if first == second:
        covariance = max(covariance - 0.5 / n, 0.0)  # the correction: (ad - bc - n/2) / n^2
    phi = covariance / scale if scale else 0.0
    down = (p - low) ** 2 - 2 * phi * (p - low) * (other_high - q) + (other_high - q) ** 2
    up = (high - p) ** 2 - 2 * phi * (high - p) * (q - other_low) + (q - other_low) ** 2
    low_end, high_end = p - q - math.sqrt(down), p - q + math.sqrt(up)
    return max(-1.0, low_end), min(1.0, high_end)


def test_intervals_of_differences_agree_with_a_slow_twin():
    random = np.random.default_rng(6)
    first: FloatArray = (random.random((40, 25)) < random.random((40, 1))).astype(float)
    second: FloatArray = np.where(random.random((40, 25)) < 0.7, first, 1 - first)
    first[0], second[0], second[1] = 1.0, 0.0, first[1]
    low, high = difference_intervals(first, second)
    for row, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        assert (low[row], high[row]) == pytest.approx(_slow_interval(a, b), abs=1e-6)


def test_the_interval_turns_with_the_models():
    random = np.random.default_rng(7)
    first, second = random.random(30), random.random(30)
    low, high = difference_interval(first, second)
    assert difference_interval(second, first) == pytest.approx((-high, -low))
    assert low < (first - second).mean() < high


def test_models_that_agree_on_some_questions_may_differ_on_others():
    answers = np.array([1.0, 0.0] * 50)
    low, high = difference_interval(answers, answers)
    assert -0.05 < low < -0.005 and high == pytest.approx(-low)


def test_unbounded_scores_and_single_questions():
    first, second = np.array([10.0, 20.0, 31.0]), np.array([9.0, 19.0, 28.0])
    low, high = difference_interval(first, second, bounded=False)
    half = t_quantile(2) * np.std([1, 1, 3], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((5 / 3 - half, 5 / 3 + half))
    assert difference_interval(np.array([1.0]), np.array([0.0])) == (-1.0, 1.0)
    assert difference_interval(first[:1], second[:1], bounded=False) == (-math.inf, math.inf)
