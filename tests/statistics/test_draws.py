"""pass@k and majority votes against slow twins."""

import itertools

import numpy as np
import pytest

from tinkersmith.statistics.draws import Vote, majority_vote, pass_at_k


def _all_choices(draws: int, correct: int, k: int) -> float:
    """The share of all choices of `k` answers with a right one."""
    answers = [True] * correct + [False] * (draws - correct)
    choices = list(itertools.combinations(answers, k))
    return sum(any(choice) for choice in choices) / len(choices)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_choices(k: int):
    counts = [(draws, correct) for draws in (5, 6, 8) for correct in range(draws + 1)]
    draws, correct = np.array(counts, float).T
    wanted = [_all_choices(*count, k) for count in counts]
    assert pass_at_k(draws, correct, k).tolist() == pytest.approx(wanted)


def test_pass_at_k_needs_k_answers():
    with pytest.raises(ValueError, match="pass@3 needs at least 3 answers"):
        pass_at_k(np.array([5.0, 2.0]), np.array([1.0, 1.0]), 3)


def _same_number(first: str, second: str) -> bool:
    return float(first) == float(second)


def test_equal_answers_vote_together_whatever_their_form():
    vote = majority_vote(["3", "4", "3.0", None, "4", "3.00"], _same_number)
    assert vote == Vote(((0, 2, 5),), 3, 5) and not vote.tied


def test_a_tie_names_all_winners():
    vote = majority_vote(["1", "2", "1.0", "2.0", "9"], _same_number)
    assert vote.winners == ((0, 2), (1, 3)) and vote.tied and vote.votes == 2


def test_nobody_votes_without_answers():
    assert majority_vote([None, None], _same_number) == Vote((), 0, 0)


def test_texts_that_are_equal_are_compared_once():
    compared: list[tuple[str, str]] = []

    def same(first: str, second: str) -> bool:
        compared.append((first, second))
        return first == second

    vote = majority_vote(["a", "b"] * 500, same)
    assert vote.votes == 500 and len(compared) == 1
