"""The number of questions, and how often two models differ -> the difference that would show."""

import math
from statistics import NormalDist

_SIGNIFICANT = NormalDist().inv_cdf(0.975)  # a test at 5 %, both sides
_POWER = NormalDist().inv_cdf(0.8)
FEWEST = 5  # questions: with fewer, not even all of them won would be significant


def smallest_difference(count: int, mean_square: float, *, whole: bool) -> float | None:
    """The smallest true difference that a paired test at 5 % finds four times in five.

    From the sample size of McNemar's test (Connor 1987), which also holds for other scores.

    Args:
        count: distinct questions.
        mean_square: of the differences; for right and wrong, the share of questions that only one
            model has right.
        whole: whether each difference is -1, 0 or 1. They are then at least as frequent as the
            mean difference.

    Returns:
        A difference in the scores' own unit; None if no difference could show.
    """
    if count < FEWEST or mean_square <= 0:
        return None

    def shows(difference: float) -> bool:
        square = max(mean_square, difference if whole else difference**2)
        spread = math.sqrt(max(square - difference**2, 0.0))
        wanted = _SIGNIFICANT * math.sqrt(square) + _POWER * spread
        return math.sqrt(count) * difference >= wanted

    low, high = 0.0, 1.0
    while not shows(high):
        if whole:
            return None
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high
