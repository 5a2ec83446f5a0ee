"""Long curves -> as many points as a chart can show. This module does not read files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

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


@dataclass(slots=True)
class _Bucket:
    """The lowest, the highest and a missing value of a stretch of x, and the sums of the others."""

    lowest: Point | None = None
    highest: Point | None = None
    missing: Point | None = None
    count: int = 0  # of the points whose y is a number
    x_sum: float = 0.0
    y_sum: float = 0.0

    def add(self, point: Point) -> None:
        x, y = point
        if y is None:
            self.missing = self.missing or point
            return
        if self.lowest is None or self.highest is None:
            self.lowest = self.highest = point
        elif y < cast("float", self.lowest[1]):
            self.lowest = point
        elif y > cast("float", self.highest[1]):
            self.highest = point
        self.count += 1
        self.x_sum += x
        self.y_sum += y

    def merge(self, other: "_Bucket") -> None:
        for point in filter(None, (other.lowest, other.highest)):
            y = cast("float", point[1])
            if self.lowest is None or y < cast("float", self.lowest[1]):
                self.lowest = point
            if self.highest is None or y > cast("float", self.highest[1]):
                self.highest = point
        self.missing = self.missing or other.missing
        self.count += other.count
        self.x_sum += other.x_sum
        self.y_sum += other.y_sum

    def points(self) -> set[Point]:
        return {point for point in (self.lowest, self.highest, self.missing) if point is not None}


class GrowingCurve:
    """A curve that takes point after point, and holds as many as a chart can show.

    Its buckets begin at x = 0. They become twice as wide whenever there are more than `buckets`, so
    a point costs the same whether it is the tenth or the millionth, and what has been drawn stays
    as it is until then. The extremes of every bucket are those of all its points.
    """

    def __init__(self, buckets: int = BUCKETS) -> None:
        self._most = buckets
        self.width = 1.0  # of a bucket
        self._buckets: dict[int, _Bucket] = {}  # by their place
        self._current: tuple[int, _Bucket] = (-1, _Bucket())  # that of the last point
        self._first: Point | None = None
        self.last: Point | None = None

    def add(self, x: float, y: float | None) -> None:
        """Add the next point; a y that is not a finite number is missing (None)."""
        point: Point = (x, y if y is not None and math.isfinite(y) else None)
        self._first = self._first or point
        self.last = point
        place = int(x // self.width)
        if place == self._current[0]:
            self._current[1].add(point)
            return
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = _Bucket()
        bucket.add(point)
        self._current = (place, bucket)
        while len(self._buckets) > self._most:
            self._widen()

    def points(self, start: float = -math.inf) -> list[Point]:
        """The points in order of x, from the bucket that `start` lies in."""
        place = self._place(start)
        chosen: set[Point] = set()
        for number, bucket in self._buckets.items():
            if number >= place:
                chosen |= bucket.points()
        ends = [point for point in (self._first, self.last) if point is not None]
        chosen.update(point for point in ends if point[0] // self.width >= place)
        return sorted(chosen, key=lambda point: (point[0], point[1] is None, point[1]))

    def means(self, start: float = -math.inf) -> list[Point]:
        """The mean of each bucket, from that which `start` lies in: a line without the noise."""
        place = self._place(start)
        return [
            (bucket.x_sum / bucket.count, bucket.y_sum / bucket.count)
            for number, bucket in sorted(self._buckets.items())
            if number >= place and bucket.count
        ]

    def bucket_start(self, x: float) -> float:
        """Where the bucket of x begins."""
        return x // self.width * self.width

    def _place(self, start: float) -> float:
        return start // self.width if math.isfinite(start) else -math.inf

    def _widen(self) -> None:
        self.width *= 2
        buckets, self._buckets = self._buckets, {}
        for number, bucket in buckets.items():
            self._buckets.setdefault(number // 2, _Bucket()).merge(bucket)
        self._current = (-1, _Bucket())
