"""Rungs: what a budget buys, and who goes on."""

import math
import random
from itertools import pairwise

import pytest

from tinkersmith.errors import UserError
from tinkersmith.sweep.rungs import Rung, check_sweep_budget, rungs_within, survivors


@pytest.mark.parametrize("combinations", [3, 4, 6, 7, 16, 100])
def test_the_rungs_cost_what_the_budget_says_and_halve_down_to_two(combinations: int) -> None:
    for budget in (2.3 + combinations / 10, combinations * 0.7, combinations - 0.01):
        rungs = rungs_within(budget, combinations, fewest_steps=10_000)
        cost, before = 0.0, 0.0
        for rung in rungs:
            cost += rung.combinations * (rung.share - before)
            before = rung.share
        assert cost == pytest.approx(budget, rel=1e-3)
        assert [rung.combinations for rung in rungs][-1] == 2 and rungs[-1].share == 1
        for rung, after in pairwise(rungs):
            assert after.combinations == -(-rung.combinations // 2) or after.combinations == 2
            assert after.share > rung.share


def test_a_rung_lies_at_the_first_step_or_later_and_the_last_at_the_end() -> None:
    assert Rung(0.001, 8).steps(40) == 1
    assert Rung(0.5, 4).steps(41) == 20
    assert Rung(1.0, 2).steps(41) == 41


@pytest.mark.parametrize(
    ("budget", "combinations", "sentence"),
    [
        (6, 6, "--budget 6 is enough to train all 6 combinations to the end"),
        (2, 6, "--budget 2 is too small for 6 combinations: it counts whole runs, and the last"),
        (-1, 6, "--budget -1 is too small for 6 combinations: .* Give more than 2."),
        (1.5, 2, "there are only 2. Leave it out."),
        (math.nan, 6, "--budget nan is no number of runs."),
        (math.inf, 6, "--budget inf is no number of runs."),
    ],
)
def test_a_budget_that_decides_nothing_is_refused_before_any_step_is_known(
    budget: float, combinations: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_sweep_budget(budget, combinations)


def test_a_budget_that_the_steps_make_too_small_names_the_least() -> None:
    check_sweep_budget(2.1, 6)
    with pytest.raises(UserError, match=r"--budget 2\.1 is .* needs at least 2\.7"):
        rungs_within(2.1, 6, fewest_steps=10)


def test_without_a_budget_all_train_to_the_end() -> None:
    assert rungs_within(None, 5, 10) == [Rung(1.0, 5)]


def test_the_smallest_budget_that_is_named_is_taken() -> None:
    with pytest.raises(UserError) as refused:
        rungs_within(2.01, 20, fewest_steps=30)
    named = float(str(refused.value).split("at least ")[1].rstrip("."))
    assert rungs_within(named, 20, fewest_steps=30)[-1] == Rung(1.0, 2)


@pytest.mark.parametrize("lower", [True, False])
def test_the_better_ones_go_on_and_those_that_failed_never(lower: bool) -> None:
    dice = random.Random(7)
    for _ in range(200):
        values = {
            place: dice.choice([None, round(dice.random(), 1)])
            for place in range(dice.randint(1, 9))
        }
        count = dice.randint(1, 5)
        chosen = survivors(values, count, lower=lower)
        sound = [value for value in values.values() if value is not None]
        assert len(chosen) == min(count, len(sound))
        kept = [values[place] for place in chosen]
        assert None not in kept
        best = sorted(sound, reverse=not lower)[: len(chosen)]
        assert kept == best
