"""The simulation of pairs of models, in short, and that it can fail."""

from typing import Any

import pytest

from benchmarks.verdict import broken, simulate


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return simulate(4000, seed=2)


def test_stated_error_rates_and_coverage_hold_in_short(figures: dict[str, Any]):
    assert broken(figures, slack=0.012) == []


def test_counting_copies_and_answers_as_questions_would_break_them(figures: dict[str, Any]):
    assert figures["coverage of a rate"]["naive: all answers and copies count"] < 0.9
    assert figures["false verdicts"]["naive: all copies count"] > 0.1
    assert figures["any false verdict in 8 groups"]["without adjustment"] > 0.2
    naive = figures["coverage of a rate"]["naive: all answers and copies count"]
    spoiled = {**figures, "coverage of a rate": {"all": naive}}
    assert broken(spoiled, slack=0.012) == [f"coverage of a rate, all: {naive}"]


def test_the_stated_smallest_difference_is_found_four_times_in_five(figures: dict[str, Any]):
    for count, share in figures["differences found at the stated size"].items():
        assert 0.7 < share < 0.97, count
    assert figures["any false verdict in 8 groups"]["Holm"] < 0.08
    assert abs(figures["pass@k"]["error of the unbiased estimate"]) < 0.01
    assert figures["pass@k"]["error of 1 - (1 - rate)^4"] < -0.02
