"""The smallest difference that shows, against trials and Connor's formula."""

import math

import numpy as np
import pytest

from tinkersmith.statistics.paired import mcnemar
from tinkersmith.statistics.power import smallest_difference


@pytest.mark.parametrize(("count", "differing"), [(50, 0.3), (200, 0.2), (1000, 0.1)])
def test_the_smallest_difference_is_found_four_times_in_five(count: int, differing: float):
    difference = smallest_difference(count, differing, whole=True)
    assert difference is not None and difference < differing
    random = np.random.default_rng(8)
    totals = random.binomial(count, differing, 1500)
    won = random.binomial(totals, (differing + difference) / (2 * differing))
    found = [mcnemar(int(w), int(t - w)) < 0.05 for w, t in zip(won, totals, strict=True)]
    assert 0.76 < np.mean(found) < 0.86


def test_the_number_of_questions_is_connors():
    difference = smallest_difference(400, 0.25, whole=True)
    assert difference is not None
    spread = math.sqrt(0.25 - difference**2)
    wanted = (1.959964 * math.sqrt(0.25) + 0.841621 * spread) ** 2 / difference**2
    assert wanted == pytest.approx(400, rel=1e-4)


def test_more_questions_show_smaller_differences():
    shown = [smallest_difference(count, 0.2, whole=True) for count in (10, 100, 1000, 10_000)]
    numbers = [value for value in shown if value is not None]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 4
    # Right and wrong: a mean difference needs as many differing questions.
    assert smallest_difference(20, 0.01, whole=True) == pytest.approx(0.33, abs=0.03)
    graded = smallest_difference(20, 0.01, whole=False)
    assert graded == pytest.approx(2.8016 * 0.1 / math.sqrt(20), rel=0.1)


def test_nothing_shows_with_four_questions_or_without_any_difference():
    assert smallest_difference(4, 0.5, whole=True) is None
    assert smallest_difference(100, 0.0, whole=False) is None
    assert mcnemar(4, 0) > 0.05 > mcnemar(5, 0)
