"""Intervals of rates."""

import math


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), which is also valid at 0 %, 100 % and small n."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
