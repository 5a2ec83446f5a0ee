"""A long curve keeps what a reader would look for when it is drawn from fewer points."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.runs.curves import GrowingCurve, Point, downsampled


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


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.one_of(st.none(), st.floats(allow_nan=True)))),
    st.integers(1, 20),
)
def test_a_growing_curve_has_the_extremes_of_each_of_its_buckets(
    unordered: list[tuple[int, float | None]], buckets: int
) -> None:
    points = sorted(unordered, key=lambda point: point[0])
    curve = GrowingCurve(buckets)
    for x, y in points:
        curve.add(x, y)
    shown = curve.points()
    assert len(shown) <= 3 * buckets + 2
    assert [x for x, _ in shown] == sorted(x for x, _ in shown)
    finite = [(x, y if y is not None and math.isfinite(y) else None) for x, y in points]
    assert set(shown) <= set(finite)
    for start in {curve.bucket_start(x) for x, _ in finite}:
        end = start + curve.width
        values = [y for x, y in finite if start <= x < end and y is not None]
        drawn = [y for x, y in shown if start <= x < end and y is not None]
        assert (min(drawn, default=None), max(drawn, default=None)) == (
            min(values, default=None),
            max(values, default=None),
        )
        if values and all(abs(y) < 1e100 for y in values):
            at = [x for x, y in finite if start <= x < end and y is not None]
            x, mean = next(point for point in curve.means() if start <= point[0] < end)
            assert math.isclose(x, sum(at) / len(at), abs_tol=1e-9)
            assert math.isclose(
                mean or 0.0, sum(values) / len(values), abs_tol=1e-9 * max(map(abs, values)) + 1e-9
            )
    if finite:
        assert finite[0] in shown and finite[-1] in shown


def test_what_a_growing_curve_adds_lies_behind_what_was_drawn() -> None:
    curve = GrowingCurve(50)
    drawn: list[Point] = []
    width = since = 0.0
    whole = 0
    for step in range(1, 20_000):
        curve.add(step, math.sin(step / 50))
        if step % 7 == 0:  # 19,999 is one; as a page that is sent only what is new
            if curve.width != width:
                width, drawn = curve.width, curve.points()
                whole += 1
            else:
                drawn = [point for point in drawn if point[0] < since] + curve.points(since)
            since = curve.bucket_start(step)
    assert drawn == curve.points()
    assert whole <= 12  # only when the buckets became wider
