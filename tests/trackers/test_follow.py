"""metrics.jsonl while it grows, is cut, and holds lines that are no curves."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_runs import step_line
from tinkersmith.trackers.follow import MetricsFollower, line_count
from tinkersmith.trackers.protocol import StepValues


def write(file: Path, *lines: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def losses(points: list[StepValues]) -> list[tuple[int, float]]:
    return [(point.step, point.values["train/loss"]) for point in points]


def test_each_line_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(file)
    assert follower.new_points() == []  # there is no file yet
    write(file, step_line(1, 3.0))
    assert losses(follower.new_points()) == [(1, 3.0)]
    whole = file.read_text()
    file.write_text(whole + json.dumps(step_line(2, 2.0)))
    assert follower.new_points() == []
    file.write_text(whole + json.dumps(step_line(2, 2.0)) + "\n")
    assert losses(follower.new_points()) == [(2, 2.0)]
    assert follower.lines == line_count(file) == 2


@pytest.mark.parametrize("new", [1, 2, 3, 9])
def test_a_file_that_was_cut_and_grew_again_is_read_from_the_first_other_line(
    new: int, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(file)
    old = [step_line(step, 3.0) for step in range(1, 6)]
    write(file, *old)
    follower.new_points()
    again = [step_line(step, 2.0) for step in range(4, 4 + new)]
    write(file, *old[:3], *again)
    assert losses(follower.new_points()) == [(step, 2.0) for step in range(4, 4 + new)]
    assert follower.lines == 3 + new


def test_the_lines_that_a_tracker_has_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, *[step_line(step, 1.0) for step in range(1, 6)])
    follower = MetricsFollower(file, skip=3)
    assert [point.step for point in follower.new_points()] == [4, 5]


def test_lines_without_curves_and_damaged_lines_give_no_points(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "diverged": true, "last_sound_step": 0}', "{", "[1]", "7", '{"loss": 1}']
    lines += ['{"step": 2, "validation_loss": 1.5, "eval/x": 0.5, "eval/name": "a"}']
    file.write_text("\n".join(lines) + "\n")
    follower = MetricsFollower(file)
    assert follower.new_points() == [StepValues(2, {"validation/loss": 1.5, "eval/x": 0.5})]
    assert follower.lines == len(lines)


def test_a_long_file_comes_in_parts_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, *[step_line(step, 1.0) for step in range(1, 40_001)])
    follower, steps, reads = MetricsFollower(file), list[int](), 0
    while points := follower.new_points():
        steps += [point.step for point in points]
        reads += 1
    assert steps == list(range(1, 40_001))
    assert reads > 1
