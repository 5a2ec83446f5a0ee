"""Two models on the same questions -> the p-value and the 95 % interval of their difference.

The letters of shapes are those of `intervals`: P samples at a time, Q questions.
"""

import math
from functools import lru_cache

import numpy as np

from tinkersmith.statistics.intervals import FloatArray, mean_intervals

FLIPS = 10_000  # random changes of sign
_NORMAL = 2000  # questions; the sum of more random signs is normal to the third digit of a p-value
_CELLS = 4_000_000  # of a block of signs: 32 MB


def paired_test(differences: FloatArray) -> tuple[float, float | None, str]:
    """The test that suits the differences (Q,) of two models: McNemar's for right and wrong.

    Returns:
        The p-value, that of McNemar's exact test if it applies, and the name of the test.
    """
    if are_whole(differences):
        won, lost = int((differences > 0).sum()), int((differences < 0).sum())
        return mcnemar(won, lost), mcnemar_exact(won, lost), "McNemar, mid-p"
    return sign_flip_test(differences), None, "paired permutation, mid-p"


def are_whole(differences: FloatArray) -> bool:
    """Whether each question was won, lost or neither, so that McNemar's test applies."""
    return bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())


def mcnemar(won: int, lost: int) -> float:
    """The mid-p value of McNemar's exact test (Fagerland, Lydersen & Laake 2013).

    The exact test alone is conservative: with few questions it rejects far less often than stated.

    Args:
        won: questions that only the first model has right.
        lost: questions that only the second model has right.
    """
    below, at = _tails(won + lost)
    fewer = min(won, lost)
    return min(1.0, float(2 * below[fewer] - at[fewer]))


def mcnemar_exact(won: int, lost: int) -> float:
    """The p-value of McNemar's test from the binomial distribution (McNemar 1947)."""
    below, _ = _tails(won + lost)
    return min(1.0, float(2 * below[min(won, lost)]))


@lru_cache(maxsize=256)
def _tails(count: int) -> tuple[FloatArray, FloatArray]:
    """P(X <= x) and P(X = x) for 0 to `count` / 2 heads among `count` fair coins."""
    heads = np.arange(count // 2 + 1)
    steps = np.log(count - heads[:-1]) - np.log(heads[1:])
    at = np.exp(np.concatenate([np.zeros(1), np.cumsum(steps)]) - count * math.log(2))
    return np.cumsum(at), at


def sign_flip_test(differences: FloatArray, *, flips: int = FLIPS, seed: int = 0) -> float:
    """The mid-p value of the paired permutation test (Fisher 1935); see `sign_flip_tests`."""
    return float(sign_flip_tests(np.asarray(differences, float)[None], flips=flips, seed=seed)[0])


def sign_flip_tests(differences: FloatArray, *, flips: int = FLIPS, seed: int = 0) -> FloatArray:
    """The p-values (P,) of paired permutation tests of the rows of `differences` (P, Q).

    If two models are equally good, each difference may as well have the other sign. The p-value is
    the share of random signs that give a sum as far from 0; equal ones count half. The sum and
    Student's t order the signs alike. The seed is fixed: the same scores give the same value. With
    more than 2,000 questions, the sums have the normal distribution that they tend to.
    """
    sampled, count = differences.shape
    if count > _NORMAL:
        spread = np.sqrt((differences**2).sum(axis=1))
        distance = np.abs(differences.sum(axis=1)) / np.where(spread > 0, spread, 1.0)
        return np.array([math.erfc(value / math.sqrt(2)) for value in distance.tolist()])
    observed = np.abs(differences.sum(axis=1))
    tolerance = 1e-9 * (np.abs(differences).sum(axis=1) + 1e-300)
    random = np.random.default_rng(seed)
    farther, equal = np.zeros(sampled), np.zeros(sampled)
    block = max(1, _CELLS // max(count, sampled, 1))
    for begin in range(0, flips, block):
        rows = min(block, flips - begin)
        bits = np.unpackbits(random.integers(0, 256, (rows, -(-count // 8)), np.uint8), axis=1)
        signs = bits[:, :count] * 2.0 - 1.0
        sums = np.abs(signs @ differences.T)  # (rows, P)
        farther += (sums > observed + tolerance).sum(axis=0)
        equal += (np.abs(sums - observed) <= tolerance).sum(axis=0)
    # The observed signs are one of the arrangements.
    return np.minimum(1.0, (farther + (equal + 1) / 2) / (flips + 1))


def difference_interval(
    first: FloatArray, second: FloatArray, draws: tuple[int, int] = (1, 1), *, bounded: bool = True
) -> tuple[float, float]:
    """The 95 % interval of the mean of `first` - `second`; see `difference_intervals`."""
    low, high = difference_intervals(
        np.asarray(first, float)[None], np.asarray(second, float)[None], draws, bounded=bounded
    )
    return float(low[0]), float(high[0])


def difference_intervals(
    first: FloatArray, second: FloatArray, draws: tuple[int, int] = (1, 1), *, bounded: bool = True
) -> tuple[FloatArray, FloatArray]:
    """The 95 % intervals of the mean differences of the rows of two arrays (P, Q).

    From the intervals of both means and their correlation (Newcombe 1998, method 10;
    Zou 2007). Scores without bounds: Student's t of the differences.

    Args:
        draws: how many answers a question's score is the mean of, for each model.
        bounded: whether the scores lie between 0 and 1.
    """
    count = first.shape[1]
    if count < 2 or not bounded:
        widest = 1.0 if bounded else np.inf
        if count < 2:
            return np.full(len(first), -widest), np.full(len(first), widest)
        return mean_intervals(first - second, bounded=False)
    low, high = mean_intervals(first, draws[0])
    other_low, other_high = mean_intervals(second, draws[1])
    mean, other = first.mean(axis=1), second.mean(axis=1)
    together = _correlations(first, second)
    below, above = mean - low, high - mean
    other_below, other_above = other - other_low, other_high - other
    down = below**2 - 2 * together * below * other_above + other_above**2
    up = above**2 - 2 * together * above * other_below + other_below**2
    difference = mean - other
    return (
        np.maximum(-1.0, difference - np.sqrt(np.maximum(down, 0.0))),
        np.minimum(1.0, difference + np.sqrt(np.maximum(up, 0.0))),
    )


def _correlations(first: FloatArray, second: FloatArray) -> FloatArray:
    """The correlations of the rows of two arrays; 0 where one does not vary.

    That of equal rows is Newcombe's corrected one: two models that agree on all of a few questions
    need not agree on all questions. Others are not corrected, which would make intervals too wide.
    """
    count = first.shape[1]
    mean, other = first.mean(axis=1), second.mean(axis=1)
    deviation, other_deviation = first - mean[:, None], second - other[:, None]
    scale = np.sqrt((deviation**2).sum(axis=1) * (other_deviation**2).sum(axis=1))
    varies = scale > 1e-12
    product = (deviation * other_deviation).sum(axis=1)
    together = np.divide(product, scale, out=np.zeros_like(scale), where=varies)
    agree = varies & (np.abs(first - second) < 1e-12).all(axis=1)
    correction = np.divide(0.5, count * mean * (1 - mean), out=np.zeros_like(scale), where=agree)
    together[agree] = np.maximum(together - correction, 0.0)[agree]
    return together
