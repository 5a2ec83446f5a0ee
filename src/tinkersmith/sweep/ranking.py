"""The measurements of a sweep's runs -> an order, intervals, and whether the best is the best.

The unit is the distinct question, or the validation sample: a combination's value for it is the
mean over its seeds. Combinations are compared on what all runs of both measured. U: those units.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinkersmith.evaluation.verdict import LEVEL
from tinkersmith.metrics.names import LOWER_IS_BETTER
from tinkersmith.runs.measured import Place, SingleValues
from tinkersmith.settings.measures import VALIDATION_LOSS
from tinkersmith.statistics.intervals import FloatArray, mean_interval, t_quantile
from tinkersmith.statistics.multiple import holm
from tinkersmith.statistics.paired import difference_interval, paired_test

_RESAMPLES = 1000
_CELLS = 20_000_000  # of resampled counts: more units are resampled fewer times


@dataclass(frozen=True, slots=True)
class CombinationResult:
    """What the runs of one combination measured at their best checkpoints, by seed."""

    combination: int
    values: Mapping[int, float]  # as in metrics.jsonl
    single: Mapping[int, SingleValues | None] = field(
        default_factory=dict[int, "SingleValues | None"]
    )
    whole: bool = True  # it was trained to its end, not stopped by successive halving

    @property
    def mean(self) -> float:
        return sum(self.values.values()) / len(self.values)


@dataclass(frozen=True, slots=True)
class Difference:
    """A combination against the best one: its value minus the best one's."""

    mean: float
    low: float  # 95 %
    high: float
    n: int  # units that both measured
    p_value: float
    p_holm: float
    seeds_alone: bool  # the spread between seeds explains it

    @property
    def shown(self) -> bool:
        """Whether it is more than noise."""
        return self.p_holm < LEVEL and not self.seeds_alone


@dataclass(frozen=True, slots=True)
class Ranked:
    """A combination in the order of the sweep."""

    combination: int
    mean: float
    values: Mapping[int, float]  # by seed
    low: float | None  # 95 % interval of the mean; None where single values are missing
    high: float | None
    n: int
    whole: bool
    difference: Difference | None  # None: it is the best, or cannot be compared

    @property
    def spread(self) -> float | None:
        """The standard deviation between seeds; None with one seed."""
        if len(self.values) < 2:
            return None
        return float(np.std(list(self.values.values()), ddof=1))


@dataclass(frozen=True, slots=True)
class Ranking:
    """The combinations of a sweep, the best first."""

    by: str
    rows: list[Ranked]
    optimism: float | None  # how much better than it is the best one looks, because it was chosen
    uncounted: int  # units that were left out, as the runs measured different texts of them

    @property
    def equals(self) -> list[Ranked]:
        """The combinations that were compared and cannot be told from the best one."""
        return [row for row in self.rows if row.difference and not row.difference.shown]

    @property
    def worse(self) -> list[Ranked]:
        return [row for row in self.rows if row.difference and row.difference.shown]

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "optimism_of_the_best": self.optimism,
            "left_out": self.uncounted,
            "combinations": [
                {
                    "combination": row.combination,
                    "mean": row.mean,
                    "by_seed": {str(seed): value for seed, value in row.values.items()},
                    "interval_95": None if row.low is None else [row.low, row.high],
                    "n": row.n,
                    "trained_to_the_end": row.whole,
                    "against_the_best": _difference_json(row.difference),
                }
                for row in self.rows
            ],
        }


def is_lower_better(by: str) -> bool:
    """Whether a lower value of a measurement is a better one."""
    return by in (VALIDATION_LOSS, *LOWER_IS_BETTER)


def rank(by: str, results: Sequence[CombinationResult]) -> Ranking:
    """Order the combinations, and compare those that were trained to the end with the best one.

    Holm's method allows for the number of all pairs: the values say which one is the best.
    """
    sign = 1 if is_lower_better(by) else -1
    sound = [result for result in results if result.values and math.isfinite(result.mean)]
    order = sorted(sound, key=lambda r: (not r.whole, sign * r.mean, r.combination))
    units = {result.combination: _units(result) for result in order}
    differences, uncounted = _differences(by, order, units)
    rows = [
        Ranked(
            result.combination,
            result.mean,
            result.values,
            *_interval(by, units[result.combination], result),
            whole=result.whole,
            difference=differences.get(result.combination),
        )
        for result in order
    ]
    finalists = [units[result.combination] for result in order if result.whole]
    return Ranking(by, rows, _optimism(by, finalists), uncounted)


_Unit = tuple[int, str, int]  # seed, file, record
_Units = dict[_Unit, tuple[float, float]]  # value and weight


def _units(result: CombinationResult) -> _Units | None:
    """All that the combination's runs measured; None where a run has no single values."""
    units: _Units = {}
    for seed in result.values:
        single = result.single.get(seed)
        if single is None:
            return None
        for (file, record), pair in single.values.items():
            units[seed, file, record] = pair
    return units or None


def _by_place(units: _Units, chosen: Sequence[_Unit]) -> tuple[FloatArray, FloatArray]:
    """The values (U,) of each place, the means over its seeds, and their weights (U,)."""
    sums: dict[Place, list[float]] = {}
    for unit in chosen:
        value, weight = units[unit]
        row = sums.setdefault((unit[1], unit[2]), [0.0, 0.0, 0.0])
        row[0], row[1], row[2] = row[0] + value, row[1] + weight, row[2] + 1
    table = np.array(list(sums.values()), float).reshape(-1, 3)
    return table[:, 0] / table[:, 2], table[:, 1] / table[:, 2]


def _are_shares(by: str, *arrays: FloatArray) -> bool:
    """Whether scores lie between 0 and 1, so that intervals may use that."""
    if is_lower_better(by):
        return False
    return all(bool(((values >= 0) & (values <= 1)).all()) for values in arrays)


def _interval(
    by: str, units: _Units | None, result: CombinationResult
) -> tuple[float | None, float | None, int]:
    """The ends of the 95 % interval of a combination's mean, and its number of units."""
    if units is None:
        return None, None, 0
    values, weights = _by_place(units, sorted(units))
    if len(values) < 2:
        return None, None, len(values)
    if by != VALIDATION_LOSS:
        low, high = mean_interval(values, _answers(result), bounded=_are_shares(by, values))
        return low, high, len(values)
    # The mean over tokens is a ratio of two sums: its linear form (Cochran 1977, 6.3).
    mean = float((values * weights).sum() / weights.sum())
    low, high = mean_interval((values - mean) * weights / weights.mean(), bounded=False)
    return mean + low, mean + high, len(values)


def _answers(result: CombinationResult) -> int:
    found = [single.answers for single in result.single.values() if single is not None]
    return max(found, default=1) * len(result.values)


def _differences(
    by: str, order: Sequence[CombinationResult], units: Mapping[int, _Units | None]
) -> tuple[dict[int, Difference], int]:
    """Each finalist's difference to the first one, and how many units could not be used."""
    finalists = [result for result in order if result.whole]
    if len(finalists) < 2 or (own := units[finalists[0].combination]) is None:
        return {}, 0
    best, raw, uncounted = finalists[0], dict[int, _Compared](), 0
    for result in finalists[1:]:
        theirs = units[result.combination]
        if theirs is None:
            continue
        # Another length limit or template trains on other tokens of the same sample.
        shared = sorted(unit for unit in own if unit in theirs and own[unit][1] == theirs[unit][1])
        uncounted = max(uncounted, len(own) - len(shared))
        if len(shared) > 1:
            raw[result.combination] = _compared(by, result, best, theirs, own, shared)
    # The values chose the best one, so that any pair could have been compared.
    pairs = len(finalists) * (len(finalists) - 1) // 2
    adjusted = holm([compared.p_value for compared in raw.values()], pairs)
    return {
        combination: Difference(
            compared.mean,
            compared.low,
            compared.high,
            compared.n,
            compared.p_value,
            p_holm,
            compared.seeds_alone,
        )
        for (combination, compared), p_holm in zip(raw.items(), adjusted, strict=True)
    }, uncounted


@dataclass(frozen=True, slots=True)
class _Compared:
    mean: float
    low: float
    high: float
    n: int
    p_value: float
    seeds_alone: bool


def _compared(
    by: str,
    result: CombinationResult,
    best: CombinationResult,
    theirs: _Units,
    own: _Units,
    shared: Sequence[_Unit],
) -> _Compared:
    first, weights = _by_place(theirs, shared)
    second, _ = _by_place(own, shared)
    differences = (first - second) * weights / weights.mean()
    if by == VALIDATION_LOSS or not _are_shares(by, first, second):
        low, high = mean_interval(differences, bounded=False)
    else:
        low, high = difference_interval(first, second, (_answers(result), _answers(best)))
    p_value, _, _ = paired_test(differences)
    return _Compared(
        float(differences.mean()), low, high, len(differences), p_value, _seeds_alone(result, best)
    )


def _seeds_alone(result: CombinationResult, best: CombinationResult) -> bool:
    """Whether the difference is within the 95 % interval that the spread between seeds gives.

    Each seed is a pair: both combinations saw their samples in the same order.
    """
    seeds = [seed for seed in result.values if seed in best.values]
    if len(seeds) < 2:
        return False
    differences = np.array([result.values[seed] - best.values[seed] for seed in seeds])
    half = t_quantile(len(seeds) - 1) * differences.std(ddof=1) / math.sqrt(len(seeds))
    return bool(abs(differences.mean()) <= half)


def _optimism(by: str, finalists: Sequence[_Units | None]) -> float | None:
    """How much better the best looks than it is, because it was chosen on the same units.

    The bootstrap (Efron & Tibshirani 1993, chapter 17): choose the best on resampled units, and
    compare what it scores there with what it scores on all units.
    """
    known = [units for units in finalists if units is not None]
    if len(known) < 2 or len(known) < len(finalists):
        return None
    shared = sorted(unit for unit in known[0] if all(unit in units for units in known))
    if len(shared) < 2:
        return None
    pairs = [_by_place(units, shared) for units in known]
    values = np.stack([values for values, _ in pairs])  # (combinations, U)
    weights = pairs[0][1]
    count = values.shape[1]
    resamples = max(50, min(_RESAMPLES, _CELLS // count))
    random = np.random.default_rng(0)
    drawn = random.multinomial(count, np.full(count, 1 / count), resamples) * weights  # (., U)
    means = drawn @ values.T / drawn.sum(axis=1, keepdims=True)  # (resamples, combinations)
    whole = values @ weights / weights.sum()
    chosen = means.argmin(axis=1) if is_lower_better(by) else means.argmax(axis=1)
    gains = means[np.arange(resamples), chosen] - whole[chosen]
    return max(0.0, float(-gains.mean() if is_lower_better(by) else gains.mean()))


def _difference_json(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "difference": difference.mean,
        "interval_95": [difference.low, difference.high],
        "n": difference.n,
        "p_value": difference.p_value,
        "p_value_holm": difference.p_holm,
        "spread_between_seeds_explains_it": difference.seeds_alone,
        "shown": difference.shown,
    }


# ---- which setting matters


@dataclass(frozen=True, slots=True)
class Effect:
    """What one setting does to the value, the others' values averaged out."""

    setting: str
    levels: list[tuple[object, float, int]]  # a value of the setting, the mean, combinations
    share: float  # of the variance between combinations that it explains alone


def effects(
    grid: Mapping[str, Sequence[object]],
    values: Sequence[Mapping[str, object]],
    results: Mapping[int, float],
) -> list[Effect]:
    """The effect of each setting that has several values, the strongest first.

    The only one that has several explains all there is, which says nothing: then there is none.

    Args:
        values: of the grid, by combination.
        results: the value that each combination reached after equally much training.
    """
    found: list[Effect] = []
    mean = sum(results.values()) / max(len(results), 1)
    total = sum((value - mean) ** 2 for value in results.values())
    for name, choices in grid.items():
        levels: list[tuple[object, float, int]] = []
        for choice in choices:
            there = [value for place, value in results.items() if values[place][name] == choice]
            if there:
                levels.append((choice, sum(there) / len(there), len(there)))
        if len(levels) > 1:
            between = sum(count * (level - mean) ** 2 for _, level, count in levels)
            found.append(Effect(name, levels, between / total if total > 0 else 0.0))
    if len(found) < 2:
        return []
    return sorted(found, key=lambda effect: -effect.share)
