"""Scores of questions -> the 95 % interval of their mean.

The unit is the distinct question: several answers to it, and copies of it, are one value. Letters
of shapes: P samples of questions at a time (one, but for simulations), Q questions.
"""

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

Z = NormalDist().inv_cdf(0.975)
_EXACT_DEGREES = 1000  # of freedom; above it, t and its expansion agree to 1e-6


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), which is also valid at 0 %, 100 % and small n."""
    if n == 0:
        return 0.0, 1.0
    low, high = _wilson(np.array([successes / n]), np.array([float(n)]), np.array([Z]))
    return float(low[0]), float(high[0])


def mean_interval(
    scores: FloatArray, draws: int = 1, *, bounded: bool = True
) -> tuple[float, float]:
    """The 95 % interval of the mean score of all questions of this kind; see `mean_intervals`."""
    low, high = mean_intervals(np.asarray(scores, float)[None], draws, bounded=bounded)
    return float(low[0]), float(high[0])


def mean_intervals(
    scores: FloatArray, draws: int = 1, *, bounded: bool = True
) -> tuple[FloatArray, FloatArray]:
    """The 95 % intervals of the means of the rows of `scores` (P, Q): lower and upper ends (P,).

    Right and wrong, once a question: Wilson (1927). Means of several answers and other scores
    between 0 and 1: Wilson's interval at the effective number of questions, with Student's t
    (Korn & Graubard 1998; Franco et al. 2019). Scores without bounds: Student's t.

    Args:
        draws: how many answers a question's score is the mean of.
        bounded: whether the scores lie between 0 and 1.
    """
    sampled, count = scores.shape
    if count == 0:
        return np.full(sampled, 0.0 if bounded else -np.inf), np.full(
            sampled, 1.0 if bounded else np.inf
        )
    means = scores.mean(axis=1)
    if not bounded:
        if count == 1:
            return np.full(sampled, -np.inf), np.full(sampled, np.inf)
        half = t_quantile(count - 1) * scores.std(axis=1, ddof=1) / math.sqrt(count)
        return means - half, means + half
    if count == 1:
        return _wilson(means, np.ones(sampled), np.full(sampled, Z))
    whole = ((scores == 0) | (scores == 1)).all(axis=1)
    binomial = means * (1 - means)
    spread = scores.var(axis=1, ddof=1)
    # The variance, relative to that of right and wrong. Draws cannot make it smaller than 1/draws;
    # other scores can, and without any spread nothing is known about it.
    known = (binomial > 0) & (spread > 0) & ~whole
    effect = np.divide(spread, binomial, out=np.ones_like(spread), where=known)
    effect = np.clip(effect, 1 / draws if draws > 1 else 1e-9, 1.0)
    once = whole & (draws == 1)
    return _wilson(means, count / effect, np.where(once, Z, t_quantile(count - 1)))


def _wilson(
    rate: FloatArray, count: FloatArray, quantile: FloatArray
) -> tuple[FloatArray, FloatArray]:
    square = quantile**2
    centre = (rate + square / (2 * count)) / (1 + square / count)
    inside = np.maximum(rate * (1 - rate) / count + square / (4 * count**2), 0.0)
    half = quantile / (1 + square / count) * np.sqrt(inside)
    low = np.where(rate <= 0, 0.0, np.maximum(0.0, centre - half))
    return low, np.where(rate >= 1, 1.0, np.minimum(1.0, centre + half))


def _products(factors: FloatArray) -> FloatArray:
    """1, the first factor, the product of the first two, and so on."""
    return np.cumprod(np.concatenate([np.ones(1), factors]))


@cache
def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom, at least 1."""
    if degrees > _EXACT_DEGREES:
        # Abramowitz & Stegun 26.7.5, first terms.
        return Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    low, high = Z, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """The probability that |T| < t (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    if degrees % 2:
        steps = np.arange(2, degrees - 1, 2)
        terms = math.cos(angle) * _products(square * steps / (steps + 1))
        tail = float(terms.sum()) * math.sin(angle) if degrees > 1 else 0.0
        return 2 / math.pi * (angle + tail)
    steps = np.arange(1, degrees - 2, 2)
    terms = _products(square * steps / (steps + 1))
    return math.sin(angle) * float(terms.sum())
