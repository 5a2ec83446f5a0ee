"""The statistics table is right, and it fits the screen."""

import json

import numpy as np
import pytest

from tinkersmith.data.lengths import LengthStatistics, format_length_statistics


def test_the_figures_are_those_of_numpy() -> None:
    lengths = [1, 2, 3, 4, 5000, 20000]
    stats = LengthStatistics.of(lengths)
    assert (stats.count, stats.min, stats.max, stats.total) == (6, 1, 20000, 25010)
    assert stats.median == 3.5
    assert stats.mean == pytest.approx(np.mean(lengths))
    assert stats.p95 == pytest.approx(np.percentile(lengths, 95))
    assert stats.shares_over == {2048: 2 / 6, 4096: 2 / 6, 8192: 1 / 6, 16384: 1 / 6}
    assert json.loads(json.dumps(stats.to_json()))["max"] == 20000


def test_a_length_at_the_limit_is_not_over_it() -> None:
    assert LengthStatistics.of([2048, 2049]).shares_over[2048] == 0.5


def test_random_lengths_all_fall_into_a_bin_and_every_line_fits_80_columns() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(300):
        n = int(rng.integers(1, 400))
        spread = 10 ** rng.uniform(0, 6)
        kind = rng.integers(3)
        if kind == 0:
            lengths = rng.integers(1, int(spread) + 2, n)
        elif kind == 1:
            lengths = np.exp(rng.normal(np.log(spread), 1.5, n)).astype(int) + 1
        else:
            lengths = np.full(n, int(spread) + 1)
        lengths = np.minimum(lengths, 50_000_000)
        stats = LengthStatistics.of(lengths, "tokens", int(rng.integers(16, 20000)))
        assert sum(stats.bins) == n
        assert stats.edges == sorted(set(stats.edges))
        assert stats.edges[0] <= lengths.min() and stats.edges[-1] > lengths.max()
        assert len(stats.bins) <= 13
        for low, high, count in zip(stats.edges, stats.edges[1:], stats.bins, strict=False):
            assert count == ((lengths >= low) & (lengths < high)).sum()
        text = format_length_statistics(stats, "Training")
        assert max(len(line) for line in text.splitlines()) <= 80, text


def test_no_samples_is_no_crash() -> None:
    assert format_length_statistics(LengthStatistics.of([]), "Test") == "Test: 0 samples, 0 tokens"


def test_a_share_that_is_not_nothing_is_never_shown_as_nothing() -> None:
    text = format_length_statistics(LengthStatistics.of([10] * 9999 + [3000]), "Training")
    assert "2,048: 1 sample " in text


def test_the_advice_names_a_length_that_holds_all_or_nearly_all() -> None:
    fits = LengthStatistics.of([100, 900], max_sequence_length=16384)
    assert fits.advice == "MAX_SEQUENCE_LENGTH = 1,024 holds all; a larger value changes nothing."
    tail = LengthStatistics.of([100] * 999 + [30000])
    assert tail.advice == "MAX_SEQUENCE_LENGTH = 32,768 holds all; 256 would cut only 0.1 %."
    over = LengthStatistics.of([100, 9000], max_sequence_length=8192)
    assert over.advice == ("1 sample exceeds MAX_SEQUENCE_LENGTH = 8,192; 16,384 would hold all.")
    assert LengthStatistics.of([100], "characters").advice == ""


def test_the_table_looks_like_this() -> None:
    lengths = [120] * 5 + [260] * 40 + [330] * 20 + [480] * 6 + [2500]
    text = format_length_statistics(LengthStatistics.of(lengths), "Training data")
    assert text.splitlines() == TABLE


TABLE = [
    "Training data: 72 samples, 22,980 tokens",
    "        min   median     mean      p90      p95      p99      max",
    "        120      260      319      330      480    1,066    2,500",
    "  longer than 2,048: 1.4 %  4,096: 0 %  8,192: 0 %  16,384: 0 %",
    "    100 to 149 │█████ 5",
    "    150 to 199 │ 0",
    "    200 to 249 │ 0",
    "    250 to 299 │████████████████████████████████████████ 40",
    "    300 to 349 │████████████████████ 20",
    "    350 to 399 │ 0",
    "    400 to 449 │ 0",
    "    450 to 499 │██████ 6",
    "  500 to 2,500 │█ 1",
    "  MAX_SEQUENCE_LENGTH = 4,096 holds all; a larger value changes nothing.",
]
