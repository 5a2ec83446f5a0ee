"""Perplexity and bits per byte by hand."""

import math

import pytest

from tinkersmith.metrics.likelihood import (
    all_together,
    likelihood,
    likelihood_lines,
    likelihood_summary,
)


def test_a_fair_choice_of_256_for_each_byte_is_8_bits_per_byte():
    answer = likelihood([math.log(1 / 256)] * 6, "数学")
    assert answer is not None and answer.bytes == 6
    assert answer.scores() == pytest.approx({"perplexity": 256.0, "bits_per_byte": 8.0})


def test_together_a_long_answer_counts_more():
    short, long = likelihood([-1.0], "a"), likelihood([-3.0] * 9, "b" * 9)
    assert short and long
    every = all_together([short, long])
    assert every is not None and every.tokens == 10 and every.bytes == 10
    assert every.perplexity == pytest.approx(math.exp(2.8))
    assert every.bits_per_byte == pytest.approx(2.8 / math.log(2))
    summary = likelihood_summary([short, long])
    assert "over all 10 tokens: 16.44; bits per byte: 4.0395." in likelihood_lines(summary)[0]


def test_an_empty_answer_has_none_and_a_gap_is_an_error():
    assert likelihood([], "") is None and all_together([]) is None
    assert likelihood_lines(likelihood_summary([])) == []
    with pytest.raises(ValueError, match="no log-probability"):
        likelihood([-1.0, None], "ab")
    with pytest.raises(ValueError, match="no log-probability"):
        likelihood([float("nan")], "a")


def test_an_impossible_token_is_a_large_number_and_no_infinity():
    answer = likelihood([-math.inf], "a")
    assert answer is not None
    assert all(math.isfinite(value) for value in answer.scores().values())
