"""Simulated pairs of models -> how often the stated intervals and error rates hold.

Each pair answers questions of its own: 20 to 400 of them, with rates, correlation, differences in
difficulty, answers a question and copies of questions drawn anew. The truth is known, so errors can
be counted: intervals that miss it, verdicts on models that are equally good, differences that are
not found. `naive` counts each answer and each copy as a question, as is often done.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.results_file import write_results
from tinkersmith.statistics.draws import pass_at_k
from tinkersmith.statistics.intervals import FloatArray, mean_intervals, wilson_interval
from tinkersmith.statistics.multiple import holm
from tinkersmith.statistics.paired import (
    difference_intervals,
    mcnemar,
    mcnemar_exact,
    sign_flip_tests,
)
from tinkersmith.statistics.power import smallest_difference

COUNTS = (20, 50, 100, 200, 400)  # distinct questions
DRAWS = (1, 1, 4)  # answers a question: two of three pairs are asked once
LEVEL = 0.05
FEW = 10  # questions on which the models differ: below, no test can reach its level
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class Pairs:
    """Pairs of models that have the same number of questions."""

    kind: str  # "right or wrong", "several answers" or "graded"
    draws: int
    first: FloatArray  # (P, Q) scores
    second: FloatArray
    mean: FloatArray  # (P,) the truth
    other_mean: FloatArray
    copies: FloatArray  # (P, Q) how often a question is in the test set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_000, help="pairs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begun = time.process_time()
    figures = simulate(options.size, options.seed)
    figures["processor seconds"] = round(time.process_time() - begun, 1)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print("written:", write_results("verdict", "python -m benchmarks.verdict", figures))
    failures = broken(figures)
    for failure in failures:
        print("does not hold:", failure)
    sys.exit(1 if failures else 0)


def broken(figures: dict[str, Any], slack: float = 0.0) -> list[str]:
    """The promises that do not hold: coverage of 94 to 96 %, error rates of 4 to 6 %.

    Where few questions differ, no test can reach its level; there the rate may be lower.

    Args:
        slack: added on both sides, for few pairs.
    """
    promises: list[tuple[str, float, float, float]] = []
    for what in ("coverage of a rate", "coverage of a difference"):
        for group, rate in figures[what].items():
            if not group.startswith("naive"):
                promises.append((f"{what}, {group}", rate, 0.94, 0.96))
    for group, rate in figures["false verdicts"].items():
        if not group.startswith(("naive", "plain exact")):
            few = group.startswith("fewer") or group.endswith(" questions in all")
            promises.append((f"false verdicts, {group}", rate, 0.0 if few else 0.04, 0.06))
    return [
        f"{what}: {rate}"
        for what, rate, least, most in promises
        if not least - slack <= rate <= most + slack
    ]


def simulate(size: int, seed: int) -> dict[str, Any]:
    """The figures of `size` equally good pairs of models, and of as many unequal ones."""
    random = np.random.default_rng(seed)
    equal = _drawn(random, size, equal=True)
    unequal = _drawn(random, size, equal=False)
    return {
        "pairs": 2 * size,
        "coverage of a rate": _coverage(unequal, _rate_hits),
        "coverage of a difference": _coverage([*equal, *unequal], _difference_hits),
        "false verdicts": _false_verdicts(equal),
        "differences found at the stated size": _power(random, size // 4),
        "any false verdict in 8 groups": _families(random, size // 8),
        "pass@k": _pass_at_k(random, size),
    }


# ---- models


def _drawn(random: np.random.Generator, size: int, *, equal: bool) -> list[Pairs]:
    blocks: list[Pairs] = []
    for count in COUNTS:
        for place, draws in enumerate((*DRAWS, 1)):
            pairs = size // (len(COUNTS) * (len(DRAWS) + 1))
            graded = place == len(DRAWS)
            blocks.append(_block(random, pairs, count, draws, graded=graded, equal=equal))
    return blocks


def _block(
    random: np.random.Generator, pairs: int, count: int, draws: int, *, graded: bool, equal: bool
) -> Pairs:
    # Rates from 2 to 98 %; questions of equal and of very different difficulty.
    mean = random.uniform(0.02, 0.98, pairs)
    other_mean = mean if equal else np.clip(mean + random.normal(0, 0.1, pairs), 0.02, 0.98)
    spread, other_spread = random.uniform(0.3, 2.5, (2, pairs))
    correlation = random.uniform(0, 0.95, pairs)[:, None]
    shared, own, other_own = random.standard_normal((3, pairs, count))
    mixed = [
        np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * noise
        for noise in (own, other_own)
    ]
    scores: list[FloatArray] = []
    for normal, rate, width in ((mixed[0], mean, spread), (mixed[1], other_mean, other_spread)):
        chance = _logistic(_centre(rate, width)[:, None] + width[:, None] * normal)
        scores.append(chance if graded else random.binomial(draws, chance) / draws)
    kind = "graded" if graded else "right or wrong" if draws == 1 else "several answers"
    copies = 1.0 + random.geometric(0.5, (pairs, count)) * (random.random((pairs, count)) < 0.2)
    return Pairs(kind, draws, scores[0], scores[1], mean, other_mean, copies)


def _logistic(logit: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-logit))


def _centre(rate: FloatArray, width: FloatArray) -> FloatArray:
    """The logit around which normal ones of this width have this mean rate."""
    low, high = np.full_like(rate, -30.0), np.full_like(rate, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        mean = _logistic(middle[:, None] + width[:, None] * _NODES) @ _WEIGHTS
        low, high = np.where(mean < rate, middle, low), np.where(mean < rate, high, middle)
    return (low + high) / 2


# ---- coverage


def _rate_hits(pairs: Pairs) -> FloatArray:
    low, high = mean_intervals(pairs.first, pairs.draws)
    return (low <= pairs.mean) & (pairs.mean <= high)


def _difference_hits(pairs: Pairs) -> FloatArray:
    low, high = difference_intervals(pairs.first, pairs.second, (pairs.draws, pairs.draws))
    truth = pairs.mean - pairs.other_mean
    return (low <= truth + 1e-12) & (truth - 1e-12 <= high)


def _naive_hits(pairs: Pairs) -> FloatArray:
    """Wilson's interval with every copy and every answer as a question of its own."""
    records = (pairs.copies * pairs.draws).sum(axis=1)
    right = (pairs.first * pairs.copies * pairs.draws).sum(axis=1)
    ends = np.array([wilson_interval(*counts) for counts in zip(right, records, strict=True)])
    return (ends[:, 0] <= pairs.mean) & (pairs.mean <= ends[:, 1])


def _coverage(blocks: list[Pairs], hits_of: Any) -> dict[str, float]:
    hits: dict[str, list[FloatArray]] = {}
    for pairs in blocks:
        inside = hits_of(pairs)
        names = ["all", pairs.kind, f"{pairs.first.shape[1]} questions"]
        for name in names:
            hits.setdefault(name, []).append(inside)
        edge = np.minimum(pairs.mean, 1 - pairs.mean) < 0.1
        hits.setdefault("rates below 10 or above 90 %", []).append(inside[edge])
        if hits_of is _rate_hits:
            hits.setdefault("naive: all answers and copies count", []).append(_naive_hits(pairs))
    return {name: _share(np.concatenate(parts)) for name, parts in hits.items()}


def _share(values: FloatArray) -> float:
    return round(float(values.mean()), 4)


# ---- verdicts


def _false_verdicts(blocks: list[Pairs]) -> dict[str, float]:
    """How often a test at 5 % calls one of two equally good models better."""
    alarms: dict[str, list[FloatArray]] = {}
    for pairs in blocks:
        difference = pairs.first - pairs.second
        differing = (difference != 0).sum(axis=1)
        if pairs.kind == "right or wrong":
            won, lost = (difference > 0).sum(axis=1), (difference < 0).sum(axis=1)
            counts = list(zip(won.tolist(), lost.tolist(), strict=True))
            p_values = np.array([mcnemar(*count) for count in counts])
            exact = np.array([mcnemar_exact(*count) for count in counts])
            alarms.setdefault("plain exact McNemar", []).append(exact < LEVEL)
            many = [
                (int((copies * (row > 0)).sum()), int((copies * (row < 0)).sum()))
                for copies, row in zip(pairs.copies, difference, strict=True)
            ]
            naive = np.array([mcnemar(*count) for count in many])
            alarms.setdefault("naive: all copies count", []).append(naive < LEVEL)
        else:
            p_values = sign_flip_tests(difference, flips=2000)
        alarm = p_values < LEVEL
        for name in ("all", pairs.kind, f"{pairs.first.shape[1]} questions in all"):
            alarms.setdefault(name, []).append(alarm)
        few = differing < FEW
        alarms.setdefault(f"{FEW} or more questions differ", []).append(alarm[~few])
        alarms.setdefault(f"fewer than {FEW} questions differ", []).append(alarm[few])
    return {name: _share(np.concatenate(parts)) for name, parts in alarms.items()}


def _power(random: np.random.Generator, size: int) -> dict[str, float]:
    """How often a difference is found that is as large as the smallest one that should be."""
    found: dict[str, float] = {}
    for count in COUNTS:
        results: list[bool] = []
        for differing in random.uniform(0.1, 0.5, size // len(COUNTS)):
            difference = smallest_difference(count, differing, whole=True)
            assert difference is not None
            differing = max(differing, difference)
            total = random.binomial(count, differing)
            won = random.binomial(total, (differing + difference) / (2 * differing))
            results.append(mcnemar(int(won), int(total - won)) < LEVEL)
        found[f"{count} questions"] = _share(np.array(results))
    return found


def _families(random: np.random.Generator, size: int) -> dict[str, float]:
    """How often any of 8 groups of equally good models is called different."""
    adjusted: list[bool] = []
    plain: list[bool] = []
    for _ in range(size):
        totals = random.binomial(100, 0.3, 8)
        won = random.binomial(totals, 0.5)
        p_values = [mcnemar(int(w), int(t - w)) for w, t in zip(won, totals, strict=True)]
        plain.append(min(p_values) < LEVEL)
        adjusted.append(min(holm(p_values)) < LEVEL)
    return {"without adjustment": _share(np.array(plain)), "Holm": _share(np.array(adjusted))}


def _pass_at_k(random: np.random.Generator, size: int) -> dict[str, float]:
    """The mean error of pass@4 from 8 answers: unbiased, and from the mean rate alone."""
    chance = random.beta(0.5, 0.8, size)
    correct = random.binomial(8, chance)
    truth = 1 - (1 - chance) ** 4
    unbiased = pass_at_k(np.full(size, 8.0), correct.astype(float), 4)
    naive = 1 - (1 - correct / 8) ** 4
    return {
        "error of the unbiased estimate": round(float((unbiased - truth).mean()), 4),
        "error of 1 - (1 - rate)^4": round(float((naive - truth).mean()), 4),
    }


if __name__ == "__main__":
    main()
