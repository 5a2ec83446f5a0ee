"""A budget -> the rungs of successive halving (Jamieson & Talwalkar 2016), before anything runs.

All combinations train up to the first rung. At each rung the better half goes on, and the others
stop. A run that goes on continues from its checkpoint, so that it ends as it would have alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinkersmith.errors import UserError
from tinkersmith.plurals import counted

_LAST = 2  # combinations that train to the end


@dataclass(frozen=True, slots=True)
class Rung:
    """How many combinations train up to which share of their steps."""

    share: float
    combinations: int

    def steps(self, total: int) -> int:
        """The step of this rung in a run of `total` steps."""
        return total if self.share >= 1 else min(total, max(1, round(self.share * total)))


def check_sweep_budget(budget: float | None, combinations: int) -> None:
    """Refuse what no data could make a budget for so many combinations.

    Raises:
        UserError: the budget is too small whatever their steps, larger than what all runs need, or
            there is nothing to halve.
    """
    if budget is None:
        return
    if not math.isfinite(budget):
        raise UserError(f"--budget {budget:g} is no number of runs. Give one such as 3.")
    if combinations <= _LAST:
        raise UserError(
            f"--budget halves the combinations of a sweep, and there are only {combinations}. "
            "Leave it out."
        )
    if budget >= combinations:
        raise UserError(
            f"--budget {budget:g} is enough to train all {combinations} combinations to the end: "
            "leave it out."
        )
    if budget <= _LAST:
        raise UserError(
            f"--budget {budget:g} is too small for {counted(combinations, 'combination')}: it "
            f"counts whole runs, and the last {_LAST} combinations train to their end. Give more "
            f"than {_LAST}."
        )


def rungs_within(budget: float | None, combinations: int, fewest_steps: int) -> list[Rung]:
    """The rungs whose steps together are those of `budget` whole runs.

    From rung to rung the combinations halve and their shares grow by one factor, which the budget
    decides. The last two train to the end, so that they can be compared.

    Args:
        budget: in whole runs of one seed for each combination; None trains all to the end.
        fewest_steps: of the shortest run: a rung lies at its first step or later.

    Raises:
        UserError: the budget is too small, or larger than what all runs need.
    """
    if budget is None:
        return [Rung(1.0, combinations)]
    check_sweep_budget(budget, combinations)
    counts = [combinations]
    while counts[-1] > _LAST:
        counts.append(math.ceil(counts[-1] / 2))
    lowest = 1 / fewest_steps
    least = _cost(_shares(lowest, len(counts)), counts)
    if budget < least:
        raise UserError(
            f"--budget {budget:g} is too small for {counted(combinations, 'combination')}: it "
            f"counts whole runs, and halving them needs at least {math.ceil(least * 10) / 10:g}."
        )
    low, high = lowest, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high)
            if _cost(_shares(middle, len(counts)), counts) <= budget
            else (low, middle)
        )
    shares = _shares(low, len(counts))
    return [Rung(share, count) for share, count in zip(shares, counts, strict=True)]


def _shares(first: float, count: int) -> list[float]:
    return [first ** ((count - 1 - index) / (count - 1)) for index in range(count)]


def _cost(shares: Sequence[float], counts: Sequence[int]) -> float:
    """The steps that all runs need, in whole runs."""
    grown = zip(shares, [0.0, *shares[:-1]], counts, strict=True)
    return sum(count * (share - before) for share, before, count in grown)


def survivors(values: Mapping[int, float | None], count: int, *, lower: bool) -> list[int]:
    """The combinations that go on from a rung, the best first.

    Args:
        values: of each combination; None where a run of it failed or diverged.
        count: how many go on at most.
        lower: whether lower values are better.
    """
    sound = {key: value for key, value in values.items() if value is not None}
    order = sorted(sound, key=lambda key: (sound[key] if lower else -sound[key], key))
    return order[:count]
