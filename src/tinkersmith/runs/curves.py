"""Long curves -> as many points as a chart can show. This module does not read files."""

import math
from collections.abc import Sequence
from itertools import groupby

Point = tuple[float, float | None]  # x, and y or None where the curve has a gap

BUCKETS = 500  # with two points each, more than most charts have pixels for


def downsampled(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """The lowest, the highest and one missing value in each of `buckets` equal stretches of x, at
    their own x, so that a spike one step wide stays visible; and the first and the last point.

    A y that is not a finite number is missing (None). `points` are in order of x; `2 * buckets` of
    them or fewer all come back."""
    finite: list[Point] = [
        (x, y if y is not None and math.isfinite(y) else None) for x, y in points
    ]
    if len(finite) <= 2 * buckets:
        return finite
    first, last = finite[0][0], finite[-1][0]
    per_x = buckets / (last - first) if last > first else 0.0

    def bucket(index: int) -> int:
        return min(int((finite[index][0] - first) * per_x), buckets - 1)

    chosen = {0, len(finite) - 1}
    for _, indices in groupby(range(len(finite)), bucket):
        values: list[tuple[float, int]] = []
        missing: list[int] = []
        for index in indices:
            y = finite[index][1]
            if y is None:
                missing.append(index)
            else:
                values.append((y, index))
        chosen.update(missing[:1])
        if values:
            chosen.add(min(values)[1])
            chosen.add(max(values)[1])
    return [finite[index] for index in sorted(chosen)]
