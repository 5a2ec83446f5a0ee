"""Scores by distinct question, several answers, and copies of questions."""

import pytest

from tests.support.records import answer_record, answer_records, unfinished_record
from tinkersmith.data.samples import Source
from tinkersmith.evaluation.summary import (
    copies,
    cut,
    draws,
    estimate,
    estimates,
    question_score,
    same_expected,
    unfinished,
)
from tinkersmith.statistics.intervals import wilson_interval


def test_a_question_counts_once_however_many_samples_ask_it():
    records = answer_records("+-+-+-")
    copied = [answer_record(number, 1.0, question="q1") for number in range(7, 27)]
    once, many = estimate(records, "final_answer"), estimate([*records, *copied], "final_answer")
    assert (once.mean, once.n) == (0.5, 6) == (many.mean, many.n)
    assert (once.low, once.high) == wilson_interval(3, 6) == (many.low, many.high)


def test_an_unfinished_thought_is_no_answer_and_has_no_score():
    records = answer_records("++-??")
    found = estimate(records, "exact_match")
    assert (found.mean, found.n) == (pytest.approx(2 / 3), 3)
    assert [record.source.record for record in unfinished(records)] == [4, 5]
    assert cut(records) == []
    assert question_score([unfinished_record(1)], "exact_match") is None


def test_an_answer_that_was_cut_is_counted_apart_and_keeps_the_score_of_grading():
    record = answer_record(1, 0.0, stop_reason="length", final_answer=None)
    assert cut([record]) == [record] and unfinished([record]) == []
    assert estimate([record], "final_answer").n == 1


def test_answers_are_averaged_within_their_sample_and_samples_within_their_question():
    records = [
        answer_record(1, 1.0, draw=1),
        answer_record(1, 0.0, draw=2),
        answer_record(2, 1.0, draw=1, question="q1"),
        unfinished_record(2, draw=2, question="q1"),
    ]
    assert question_score(records, "final_answer") == 0.75


def test_metrics_that_are_not_shares_get_intervals_of_their_own():
    records = [answer_record(n, 1.0, scores={"perplexity": 2.0 + n}) for n in range(1, 11)]
    found = estimates(records)["perplexity"]
    assert found.mean == 7.5 and 5 < found.low < 6 and 9 < found.high < 10
    assert found.to_json() == {"mean": 7.5, "n": 10, "interval_95": [found.low, found.high]}
    alone = estimates(records[:1])["perplexity"].to_json()
    assert alone["interval_95"] == [None, None]


def test_several_answers_give_pass_at_k_and_a_majority_by_question():
    records = [
        answer_record(number, float(sign == "+"), draw=draw, final_answer=answer)
        for number, signs, answers in (
            (1, "+++-", ["1", "1.0", "1", "9"]),
            (2, "+---", ["2", "7", "7", "8"]),
            (3, "++--", ["3", "3", "5", "5"]),
            (4, "----", [None, None, None, None]),
        )
        for draw, (sign, answer) in enumerate(zip(signs, answers, strict=True), start=1)
    ]
    several = draws(records, "final_answer")
    assert several is not None and several.majority is not None
    assert {k: found.mean for k, found in several.pass_at.items()} == pytest.approx(
        {1: 6 / 16, 2: (1 + 1 / 2 + 5 / 6 + 0) / 4, 4: 3 / 4}
    )
    assert several.majority.mean == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert (several.ties, several.majority.n) == (1, 4)
    assert several.to_json()["pass_at_k"]["4"]["n"] == 4


def test_one_answer_or_a_graded_metric_has_no_pass_at_k():
    assert draws(answer_records("+-"), "final_answer") is None
    graded = [answer_record(1, 0.4, draw=draw) for draw in (1, 2)]
    assert draws(graded, "final_answer") is None


def test_copies_share_their_answers_and_are_one_question_of_pass_at_k():
    records = [
        answer_record(number, float(draw == 1), draw=draw, question="same")
        for number in (1, 2)
        for draw in (1, 2)
    ]
    several = draws(records, "final_answer")
    assert several is not None
    assert several.pass_at[2].n == 1 and several.pass_at[1].mean == 0.5


def test_copies_and_contradictions_are_named():
    records = [
        answer_record(1, question="a", expected="Answer: 4", expected_answer="4"),
        answer_record(2, question="b"),
        answer_record(3, question="a", expected="It is 4.0", expected_answer="4.0"),
        answer_record(4, question="c", expected="yes", expected_answer=None),
        answer_record(5, question="c", expected="no", expected_answer=None),
        answer_record(6, question="c", expected="yes", expected_answer=None),
    ]
    found = copies(records)
    first, third, *others = (Source("test.json", n) for n in (1, 3, 4, 5, 6))
    assert found.repeated == [[first, third], others]
    assert found.contradictions == [others] and found.extra == 3
    assert found.to_json()["contradictions"] == [[str(source) for source in others]]


def test_equal_expected_answers_may_be_written_differently():
    first = answer_record(1, expected="Answer: 1,000", expected_answer="1,000")
    second = answer_record(2, expected="So 1000.", expected_answer="1000")
    assert same_expected(first, second)
    assert not same_expected(first, answer_record(2, expected="x", expected_answer="1001"))
