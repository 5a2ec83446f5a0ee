"""A long curve keeps what a reader would look for when it is drawn from fewer points."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.runs.curves import Point, downsampled


def test_a_short_curve_comes_back_whole() -> None:
    points: list[Point] = [(float(step), 1.0 / (step + 1)) for step in range(1000)]
    assert downsampled(points, 500) == points


def test_a_spike_of_one_step_survives_among_100_000() -> None:
    points: list[Point] = [(float(step), 1.0) for step in range(100_000)]
    points[61_803] = (61_803.0, 9.0)
    points[31_415] = (31_415.0, 0.1)
    fewer = downsampled(points, 500)
    assert len(fewer) <= 1002
    assert (61_803.0, 9.0) in fewer
    assert (31_415.0, 0.1) in fewer
    assert fewer[0] == points[0]
    assert fewer[-1] == points[-1]


def test_one_missing_value_in_a_bucket_is_enough_for_a_gap() -> None:
    points: list[Point] = [(float(step), 1.0) for step in range(10_000)]
    for step in range(5000, 6000):
        points[step] = (float(step), math.nan)
    fewer = downsampled(points, 100)
    assert len(fewer) <= 302
    assert 9 <= sum(y is None for _, y in fewer) <= 11


def test_points_of_one_x_are_one_bucket() -> None:
    assert downsampled([(3.0, float(y)) for y in range(50)], 5) == [(3.0, 0.0), (3.0, 49.0)]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.one_of(st.none(), st.floats()))),
    st.integers(1, 20),
)
def test_every_point_is_one_of_the_curve_and_the_extremes_stay(
    unordered: list[tuple[float, float | None]], buckets: int
) -> None:
    points = sorted(unordered, key=lambda point: point[0])
    finite = [(x, y if y is not None and math.isfinite(y) else None) for x, y in points]
    fewer = downsampled(points, buckets)
    assert len(fewer) <= max(3 * buckets + 2, 2 * buckets)
    remaining = iter(finite)
    assert all(point in remaining for point in fewer)  # a subsequence
    values = [y for _, y in finite if y is not None]
    if values:
        assert min(values) in [y for _, y in fewer]
        assert max(values) in [y for _, y in fewer]
