"""Rankings: real differences are shown, and noise is called noise."""

import numpy as np
import pytest

from tinkersmith.runs.measured import SingleValues
from tinkersmith.sweep.ranking import CombinationResult, effects, rank

SEED = 42


def result(
    combination: int,
    by: str,
    values: np.ndarray,
    tokens: np.ndarray | None = None,
    seed: int = SEED,
) -> CombinationResult:
    weights = np.ones(len(values)) if tokens is None else tokens
    single = {
        ("test.json", place): (float(value), float(weight))
        for place, (value, weight) in enumerate(zip(values, weights, strict=True))
    }
    measured = SingleValues(1, by, single)
    return CombinationResult(combination, {seed: measured.mean}, {seed: measured})


def scores(random: np.random.Generator, rates: list[float], count: int) -> list[CombinationResult]:
    return [
        result(place, "final_answer", (random.random(count) < rate).astype(float))
        for place, rate in enumerate(rates)
    ]


def test_a_clear_difference_is_shown_in_the_right_direction() -> None:
    random = np.random.default_rng(1)
    ranking = rank("final_answer", scores(random, [0.3, 0.9, 0.5], 200))
    assert [row.combination for row in ranking.rows] == [1, 2, 0]
    assert [row.combination for row in ranking.worse] == [2, 0] and ranking.equals == []
    for row in ranking.rows[1:]:
        assert row.difference is not None and row.difference.high < 0
        assert row.difference.p_holm >= row.difference.p_value
    base = hard_losses(random, 300)
    losses = [
        result(0, "validation_loss", base + 0.2, tokens_of(300)),
        result(1, "validation_loss", base + 0.02 * random.standard_normal(300), tokens_of(300)),
    ]
    ranking = rank("validation_loss", losses)
    assert [row.combination for row in ranking.rows] == [1, 0]
    assert ranking.worse and ranking.worse[0].difference is not None
    assert ranking.worse[0].difference.low > 0, "a higher loss is worse"


def hard_losses(random: np.random.Generator, count: int) -> np.ndarray:
    return random.gamma(2.0, 0.5, count)


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 60, count).astype(float)


@pytest.mark.parametrize("by", ["final_answer", "validation_loss"])
def test_equally_good_combinations_are_rarely_told_apart(by: str) -> None:
    """With Holm over the comparisons with the best alone, 15 % of these sweeps show something."""
    random = np.random.default_rng(3)
    false_alarms, sweeps = 0, 60
    for _ in range(sweeps):
        if by == "final_answer":
            results = scores(random, [0.5] * 12, 60)
        else:
            hard, tokens = hard_losses(random, 60), tokens_of(60)
            results = [
                result(place, by, hard + 0.1 * random.standard_normal(60), tokens)
                for place in range(12)
            ]
        false_alarms += bool(rank(by, results).worse)
    assert false_alarms <= 0.1 * sweeps, false_alarms


def test_the_value_of_a_chosen_best_is_too_good_by_about_what_is_said() -> None:
    random = np.random.default_rng(9)
    said, true = [], []
    for _ in range(60):
        ranking = rank("final_answer", scores(random, [0.5] * 6, 80))
        assert ranking.optimism is not None
        said.append(ranking.optimism)
        true.append(ranking.rows[0].mean - 0.5)
    assert np.mean(true) > 0.03, "the best of six equals looks better than it is"
    assert 0.5 * np.mean(true) < np.mean(said) < 1.5 * np.mean(true)


def test_a_weighted_mean_has_an_interval_that_holds_the_true_one() -> None:
    random, inside, trials = np.random.default_rng(4), 0, 300
    for _ in range(trials):
        tokens = random.integers(1, 60, 120).astype(float)
        values = random.gamma(2.0, 0.5, 120)  # a mean of 1
        (row,) = rank("validation_loss", [result(0, "validation_loss", values, tokens)]).rows
        assert row.low is not None and row.high is not None
        assert row.mean == pytest.approx(float((values * tokens).sum() / tokens.sum()))
        inside += row.low < 1.0 < row.high
    assert 0.90 < inside / trials < 0.99


def test_seeds_that_differ_as_much_as_combinations_make_no_winner() -> None:
    random = np.random.default_rng(6)

    def with_seeds(combination: int, means: list[float]) -> CombinationResult:
        parts = [
            result(combination, "validation_loss", random.normal(mean, 0.01, 200), seed=seed)
            for seed, mean in enumerate(means)
        ]
        return CombinationResult(
            combination,
            {seed: part.values[seed] for seed, part in enumerate(parts)},
            {seed: part.single[seed] for seed, part in enumerate(parts)},
        )

    ranking = rank(
        "validation_loss", [with_seeds(0, [1.0, 1.4, 0.9]), with_seeds(1, [1.3, 1.0, 1.2])]
    )
    (other,) = ranking.equals
    assert other.difference is not None and other.difference.seeds_alone
    assert other.difference.p_holm < 0.05, "by samples alone it would have been shown"
    assert other.spread == pytest.approx(np.std([1.3, 1.0, 1.2], ddof=1), rel=0.1)
    steady = rank(
        "validation_loss", [with_seeds(0, [1.0, 1.02, 1.01]), with_seeds(1, [1.3, 1.31, 1.33])]
    )
    assert len(steady.worse) == 1


def test_samples_with_other_tokens_are_left_out_and_missing_values_compare_nothing() -> None:
    values, tokens = np.linspace(1, 2, 50), np.full(50, 10.0)
    other = tokens.copy()
    other[:20] = 5
    ranking = rank(
        "validation_loss",
        [
            result(0, "validation_loss", values, tokens),
            result(1, "validation_loss", values + 0.1, other),
            CombinationResult(2, {SEED: 3.0}, {SEED: None}),
        ],
    )
    assert ranking.uncounted == 20
    differences = {row.combination: row.difference for row in ranking.rows}
    assert differences[1] is not None and differences[1].n == 30
    assert differences[0] is None and differences[2] is None
    assert ranking.optimism is None, "not all combinations have single values"


def test_a_combination_that_was_stopped_early_comes_last_and_is_not_compared() -> None:
    early = result(0, "validation_loss", np.full(20, 0.1))
    early = CombinationResult(0, early.values, early.single, whole=False)
    late = [result(place, "validation_loss", np.linspace(1, 2, 20) + place) for place in (1, 2)]
    ranking = rank("validation_loss", [early, *late])
    assert [row.combination for row in ranking.rows] == [1, 2, 0]
    assert ranking.rows[2].difference is None


def test_the_setting_that_decides_explains_the_differences() -> None:
    grid = {"LEARNING_RATE": [1, 2], "LORA_RANK": [8, 16], "BATCH_SIZE": [4]}
    values = [
        {"LEARNING_RATE": a, "LORA_RANK": b, "BATCH_SIZE": 4} for a in (1, 2) for b in (8, 16)
    ]
    found = effects(grid, values, {0: 1.0, 1: 1.1, 2: 3.0, 3: 3.1})
    assert [effect.setting for effect in found] == ["LEARNING_RATE", "LORA_RANK"]
    assert found[0].share > 0.99 and found[1].share < 0.01
    assert found[0].levels == [(1, 1.05, 2), (2, 3.05, 2)]
    assert rank("final_answer", []).rows == []


def test_the_only_setting_that_varies_explains_nothing_worth_saying() -> None:
    grid = {"LEARNING_RATE": [1, 2], "BATCH_SIZE": [4]}
    values = [{"LEARNING_RATE": rate, "BATCH_SIZE": 4} for rate in (1, 2)]
    assert effects(grid, values, {0: 1.0, 1: 3.0}) == []
