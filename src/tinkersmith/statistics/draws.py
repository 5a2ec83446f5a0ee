"""Several answers to a question -> pass@k, and the answer that most of them give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinkersmith.statistics.intervals import FloatArray


def pass_at_k(draws: FloatArray, correct: FloatArray, k: int) -> FloatArray:
    """The unbiased estimate that at least one of `k` answers is right, for each question.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Args:
        draws: how many answers each question has: n.
        correct: how many of them are right: c.

    Raises:
        ValueError: a question has fewer than `k` answers.
    """
    draws, correct = np.asarray(draws, float), np.asarray(correct, float)
    if k < 1 or (draws < k).any():
        raise ValueError(f"pass@{k} needs at least {k} answers a question")
    wrong = draws - correct
    missed = np.ones_like(draws)
    for taken in range(k):
        missed *= np.maximum(wrong - taken, 0.0) / (draws - taken)
    return 1 - missed


@dataclass(frozen=True, slots=True)
class Vote:
    """What most answers to a question say."""

    winners: tuple[tuple[int, ...], ...]  # of each group that got most votes, its answers
    votes: int  # of a winner
    voters: int  # answers that say something

    @property
    def tied(self) -> bool:
        return len(self.winners) > 1


def majority_vote(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> Vote:
    """Group equal answers and find the largest group, or all groups that share that size.

    Args:
        answers: of one question; None has no vote.
        same: whether two answers are equal. An answer joins the first group whose first answer
            it equals.
    """
    groups: dict[str, list[int]] = {}
    group_of: dict[str, str] = {}
    for number, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in group_of:
            equals = (known for known in groups if same(known, answer))
            group_of[answer] = next(equals, answer)
        groups.setdefault(group_of[answer], []).append(number)
    most = max(map(len, groups.values()), default=0)
    winners = tuple(tuple(group) for group in groups.values() if len(group) == most)
    return Vote(winners, most, sum(map(len, groups.values())))
