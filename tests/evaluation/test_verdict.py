"""What is said of two models, and when nothing can be said."""

import pytest

from tests.support.records import answer_record, answer_records
from tinkersmith.evaluation.verdict import Verdict, pairs_of, sentence, verdict
from tinkersmith.statistics.paired import mcnemar


def compared(first: str, second: str) -> Verdict:
    return verdict(pairs_of(answer_records(first), answer_records(second)), "final_answer")


def said(found: Verdict) -> str:
    return sentence(found, "the trained model", "the base model")


def test_a_clear_difference_is_called_by_its_name_both_ways():
    better = compared("+" * 30 + "-" * 10, "-" * 25 + "+" * 10 + "-" * 5)
    assert (len(better.outcomes["won"]), len(better.outcomes["lost"])) == (25, 5)
    assert better.p_value == mcnemar(25, 5) and better.test.startswith("McNemar")
    assert said(better).startswith(
        "The trained model is better than the base model (final answer): +50.0 points ("
    )
    worse = compared("-" * 25 + "+" * 10 + "-" * 5, "+" * 30 + "-" * 10)
    assert "is worse than" in said(worse) and "-50.0 points" in said(worse)
    assert worse.difference.low == pytest.approx(-better.difference.high)


def test_few_questions_show_only_large_differences_and_it_is_said_how_large():
    found = compared("+" * 12 + "-" * 8, "+" * 10 + "-" * 8 + "++")
    assert not found.shown and found.smallest is not None and 0.25 < found.smallest < 0.6
    assert said(found) == (
        f"No difference shown (final answer): +0.0 points ({100 * found.difference.low:.1f} to "
        f"{100 * found.difference.high:.1f}), p = 1.000. With 20 questions, only differences above "
        f"about {100 * found.smallest:.1f} points would show."
    )


def test_equal_answers_are_no_difference():
    found = compared("+-" * 50, "+-" * 50)
    assert found.p_value == 1 and found.difference.mean == 0
    assert found.difference.low < 0 < found.difference.high
    assert "both score the same on all 100 questions. With so many, only" in said(found)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("++++", "----", "4 questions cannot show any. It takes at least 5"),
        ("+", "-", "1 question cannot show any"),
        ("??", "++", "No question has a score of both the trained model and the base model"),
        ("", "", "nothing can be compared"),
    ],
)
def test_too_few_questions_show_nothing(first: str, second: str, words: str):
    assert words in said(compared(first, second))


def test_every_question_is_in_one_list_and_unfinished_thoughts_are_apart():
    found = compared("++--?+", "+-+-+?")
    lists = {
        name: [pair.first[0].source.record for pair in pairs]
        for name, pairs in found.outcomes.items()
    }
    assert lists == {"won": [2], "lost": [3], "both_right": [1], "both_wrong": [4], "equal": []}
    assert [pair.first[0].source.record for pair in found.unscored] == [5, 6]
    assert found.n == 4 and found.first.mean == found.second.mean == 0.5
    assert found.counting_unfinished == (0.5, 0.5)
    stored = found.to_json()
    assert stored["counts"] == {
        "won": 1, "lost": 1, "both_right": 1, "both_wrong": 1, "equal": 0,
    }  # fmt: skip
    assert stored["questions"]["won"] == ["test.json, record 2"] and stored["unscored"] == 2


def test_counting_unfinished_thoughts_as_wrong_can_flatter_the_other_model():
    found = compared("+" * 40, "+" * 10 + "?" * 30)
    assert found.n == 10 and not found.shown
    assert found.counting_unfinished == (1.0, 0.25)


def test_a_question_with_copies_is_one_question_of_the_test():
    right = [answer_record(n, 1.0, question="same") for n in range(1, 11)]
    wrong = [answer_record(n, 0.0, question="same") for n in range(1, 11)]
    found = verdict(pairs_of(right, wrong), "final_answer")
    assert found.n == 1 and not found.shown


def test_graded_scores_are_tested_by_permutation():
    first = [answer_record(n, 0.5 + n / 100) for n in range(1, 31)]
    second = [answer_record(n, 0.3 + n / 100) for n in range(1, 31)]
    found = verdict(pairs_of(first, second), "final_answer")
    assert found.test == "paired permutation, mid-p" and found.p_value < 0.001
    assert found.exact_p_value is None and found.difference.mean == pytest.approx(0.2)
    assert found.outcomes["won"] and not found.outcomes["both_right"]


def test_lower_perplexity_is_better():
    first = [answer_record(n, scores={"perplexity": 5.0 + n % 3}) for n in range(1, 31)]
    second = [answer_record(n, scores={"perplexity": 7.0 + n % 4}) for n in range(1, 31)]
    found = verdict(pairs_of(first, second), "perplexity")
    assert "is better than" in said(found) and "points" not in said(found)
    assert len(found.outcomes["won"]) > len(found.outcomes["lost"])


def test_only_questions_of_both_models_are_compared():
    found = verdict(pairs_of(answer_records("++++++"), answer_records("+--")), "final_answer")
    assert found.n == 3 and found.first.n == 3
