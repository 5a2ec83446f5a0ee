"""Two models' answers to the same questions -> which one is better, if any.

Only questions that both models answered are compared, and each counts once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinkersmith.evaluation.results import Record
from tinkersmith.evaluation.summary import (
    Estimate,
    are_shares,
    by_question,
    counting_unfinished,
    draws_of,
    estimate_of,
    question_score,
)
from tinkersmith.metrics.names import LOWER_IS_BETTER
from tinkersmith.plurals import counted
from tinkersmith.statistics.intervals import FloatArray
from tinkersmith.statistics.paired import are_whole, difference_interval, paired_test
from tinkersmith.statistics.power import FEWEST, smallest_difference

LEVEL = 0.05
OUTCOMES = ("won", "lost", "both_right", "both_wrong", "equal")


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with the answers of two models."""

    first: Sequence[Record]
    second: Sequence[Record]
    _scores: dict[str, tuple[float, float] | None] = field(
        default_factory=dict[str, "tuple[float, float] | None"], repr=False, compare=False
    )

    def scores(self, metric: str) -> tuple[float, float] | None:
        """Both models' scores; None if one of them has none."""
        if metric not in self._scores:
            first, second = (question_score(side, metric) for side in (self.first, self.second))
            both = None if first is None or second is None else (first, second)
            self._scores[metric] = both
        return self._scores[metric]

    def outcome(self, metric: str) -> str | None:
        """One of `OUTCOMES`, as the first model sees it; None without a score of both."""
        scores = self.scores(metric)
        if scores is None:
            return None
        first, second = scores
        if abs(first - second) < 1e-12:
            return "both_right" if first == 1 else "both_wrong" if first == 0 else "equal"
        return "won" if (first > second) != (metric in LOWER_IS_BETTER) else "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How two models compare by one metric. Differences are first minus second."""

    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float
    test: str
    exact_p_value: float | None  # of McNemar's exact test, for right and wrong
    smallest: float | None  # difference that this many questions would show
    outcomes: dict[str, list[Pair]]
    unscored: list[Pair]  # a thought of one of them never ended
    counting_unfinished: tuple[float, float] | None  # means with unfinished thoughts as wrong

    @property
    def n(self) -> int:
        return self.difference.n

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference at 5 %."""
        return self.n > 0 and self.p_value < LEVEL

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "n": self.n,
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "difference": self.difference.to_json(),
            "p_value": self.p_value,
            "test": self.test,
            "p_value_exact_mcnemar": self.exact_p_value,
            "smallest_difference_shown": self.smallest,
            "counts": {name: len(self.outcomes[name]) for name in OUTCOMES},
            "unscored": len(self.unscored),
            "means_counting_unfinished_as_wrong": self.counting_unfinished,
            "questions": {
                name: [str(pair.first[0].source) for pair in self.outcomes[name]]
                for name in OUTCOMES
            },
        }


def pairs_of(first: Sequence[Record], second: Sequence[Record]) -> list[Pair]:
    """The questions that both models were asked, in the first one's order."""
    others = by_question(second)
    return [Pair(group, others[key]) for key, group in by_question(first).items() if key in others]


def pairs_are_shares(pairs: Sequence[Pair], metric: str) -> bool:
    """Whether all scores of both models lie between 0 and 1."""
    return all(are_shares(metric, [*pair.first, *pair.second]) for pair in pairs)


def verdict(pairs: Sequence[Pair], metric: str, shares: bool | None = None) -> Verdict:
    """Compare two models by a metric.

    Args:
        shares: whether the scores lie between 0 and 1; by default, whether these do.
    """
    outcomes: dict[str, list[Pair]] = {name: [] for name in OUTCOMES}
    unscored: list[Pair] = []
    scores: list[tuple[float, float]] = []
    for pair in pairs:
        outcome, both = pair.outcome(metric), pair.scores(metric)
        if outcome is None or both is None:
            unscored.append(pair)
        else:
            outcomes[outcome].append(pair)
            scores.append(both)
    first, second = np.array(scores, float).reshape(-1, 2).T
    draws = (
        draws_of([record for pair in pairs for record in pair.first]),
        draws_of([record for pair in pairs for record in pair.second]),
    )
    if shares is None:
        shares = pairs_are_shares(pairs, metric)
    differences = first - second
    low, high = difference_interval(first, second, draws, bounded=shares)
    p_value, exact, test = paired_test(differences)
    return Verdict(
        metric=metric,
        first=estimate_of(first.tolist(), draws[0], shares=shares),
        second=estimate_of(second.tolist(), draws[1], shares=shares),
        difference=Estimate(
            float(differences.mean()) if len(differences) else 0.0,
            low,
            high,
            len(differences),
            shares,
        ),
        p_value=p_value,
        test=test,
        exact_p_value=exact,
        smallest=_smallest(differences),
        outcomes=outcomes,
        unscored=unscored,
        counting_unfinished=_counting_unfinished(pairs, metric) if shares else None,
    )


def _counting_unfinished(pairs: Sequence[Pair], metric: str) -> tuple[float, float] | None:
    sides = ([pair.first for pair in pairs], [pair.second for pair in pairs])
    if all(r.thought_finished for side in sides for records in side for r in records):
        return None
    first, second = (
        float(np.mean([counting_unfinished(records, metric) for records in side])) for side in sides
    )
    return first, second


def _smallest(differences: FloatArray) -> float | None:
    count = len(differences)
    whole = are_whole(differences)
    squares = differences**2
    if not whole and not squares.any():
        return None
    # One more differing question than there were: none of a few does not mean never.
    more = 1.0 if whole else float(squares[squares > 0].mean())
    return smallest_difference(count, (float(squares.sum()) + more) / (count + 2), whole=whole)


def sentence(compared: Verdict, first: str, second: str) -> str:
    """The verdict in plain words.

    Args:
        first: the first model, such as "the trained model".
    """
    subject = f"{first[0].upper()}{first[1:]}"
    n = counted(compared.n, "question")
    if compared.n == 0:
        return f"No question has a score of both {first} and {second}: nothing can be compared."
    if compared.n < FEWEST:
        return f"No difference shown: {n} cannot show any. It takes at least {FEWEST}."
    title = compared.metric.replace("_", " ")
    low, high = (
        amount(end, shares=compared.difference.shares, unit=False)
        for end in (compared.difference.low, compared.difference.high)
    )
    difference = amount(compared.difference.mean, shares=compared.difference.shares, sign=True)
    if not compared.shown:
        begin = f"No difference shown ({title}): {difference} ({low} to {high})"
        begin += f", {p_text(compared.p_value)}. With {n}, "
        if not any(compared.outcomes[name] for name in ("won", "lost")):
            begin = f"No difference shown ({title}): both score the same on all {n}. With so many, "
        if compared.smallest is None:
            return f"{begin}no difference would show."
        size = amount(compared.smallest, shares=compared.difference.shares)
        return f"{begin}only differences above about {size} would show."
    better = (compared.difference.mean > 0) != (compared.metric in LOWER_IS_BETTER)
    text = (
        f"{subject} is {'better' if better else 'worse'} than {second} ({title}): "
        f"{difference} ({low} to {high}), {p_text(compared.p_value)}, {n}."
    )
    if compared.difference.low <= 0 <= compared.difference.high:
        text += " It is a close call: the interval reaches 0."
    return text


def amount(value: float, *, shares: bool, sign: bool = False, unit: bool = True) -> str:
    """A difference in points of a hundred, or in the metric's own unit."""
    if not shares:
        return f"{value + 0.0:{'+' if sign else ''}.3g}"
    points = f"{100 * value:{'+' if sign else ''}.1f}"
    return f"{points} points" if unit else points


def p_text(p_value: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
