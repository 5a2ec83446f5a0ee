"""All runs of a folder: what is read when something changes, and how little when nothing does."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import run_of_settings
from tinkersmith.dashboard.watch import LOOK_AGAIN, MOST_SHOWN, PageState, Watch
from tinkersmith.runs.folder import RunFolder

RUNS, STEPS = 200, 100_000


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_looks(self, count: int = 1) -> None:
        self.now += count * LOOK_AGAIN


def line(step: int) -> bytes:
    numbers = {"step": step, "epoch": 1, "loss": 2 / (1 + step), "learning_rate": 1e-3}
    return json.dumps({**numbers, "completion_tokens": 9, "seconds": 0.1}).encode() + b"\n"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs, one of them with 100,000 steps."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(RUNS):
        run = run_of_settings(folder / f"run-{number:03}", LORA_RANK=number)
        steps = STEPS if number == 0 else 50
        run.file("metrics.jsonl").write_bytes(b"".join(map(line, range(1, steps + 1))))
    return folder


def test_200_runs_are_listed_by_the_ends_of_their_files(many: Path) -> None:
    clock = Clock()
    watch, page = Watch(many, clock), PageState(())
    first = watch.news(page)
    assert len(first["rows"]) == RUNS and watch.rows_read == RUNS
    row = next(row for row in first["rows"] if row["name"] == "run-000")
    assert (row["step"], row["state"]) == (STEPS, "interrupted")
    for _ in range(30):
        clock.pass_looks()
        assert watch.news(page) == {}
    assert watch.rows_read == RUNS, "nothing has changed"


def test_100_000_steps_are_read_once_and_sent_as_a_thousand_points(many: Path) -> None:
    clock = Clock()
    watch, page = Watch(many, clock), PageState(("run-000",))
    points = watch.news(page)["shown"]["run-000"]["curves"]["loss"]["points"]
    assert 500 <= len(points) <= 1002
    view = watch._shown["run-000"]
    size = (many / "run-000" / "metrics.jsonl").stat().st_size
    assert view.bytes_read == size
    with (many / "run-000" / "metrics.jsonl").open("ab") as file:
        file.write(line(STEPS + 1))
    clock.pass_looks()
    news = watch.news(page)
    (row,) = news["rows"]
    assert row["step"] == STEPS + 1
    assert len(news["shown"]["run-000"]["curves"]["loss"]["points"]) <= 4
    assert view.bytes_read <= size + 1000
    assert len(json.dumps(news)) < 2000


def test_pages_that_ask_at_the_same_time_share_a_look(tmp_path: Path) -> None:
    run_of_settings(tmp_path / "a")
    clock = Clock()
    watch = Watch(tmp_path, clock)
    assert [row["name"] for row in watch.news(PageState(()))["rows"]] == ["a"]
    run_of_settings(tmp_path / "b")
    assert len(watch.news(PageState(()))["rows"]) == 1
    clock.pass_looks()
    assert len(watch.news(PageState(()))["rows"]) == 2


def test_runs_that_come_and_go_are_said(tmp_path: Path) -> None:
    clock = Clock()
    watch, page = Watch(tmp_path / "runs", clock), PageState(("b",))
    assert watch.news(page) == {"engines": []}, "a folder that is not there yet"
    run_of_settings(tmp_path / "runs" / "a")
    run_of_settings(tmp_path / "runs" / "b")
    clock.pass_looks()
    news = watch.news(page)
    assert {row["name"] for row in news["rows"]} == {"a", "b"} and "b" in news["shown"]
    shutil.rmtree(tmp_path / "runs" / "b")
    clock.pass_looks()
    assert watch.news(page) == {"rows": [], "gone": ["b"]}
    assert watch.report("b") is None and watch.report("a") is not None


def test_a_run_that_is_killed_and_one_that_is_resumed_are_noticed(tmp_path: Path) -> None:
    run = run_of_settings(tmp_path / "a")
    clock = Clock()
    watch, page = Watch(tmp_path, clock), PageState(())

    def state_after(looks: int) -> Any:
        seen = None
        for _ in range(looks):
            clock.pass_looks()
            for row in watch.news(page).get("rows", []):
                seen = row["state"]
        return seen

    assert state_after(1) == "interrupted"
    process = os.fork()
    if process == 0:
        os.execvp("sleep", ["sleep", "600"])
    _lock(run, process)
    assert state_after(10) == "running", "an idle run is looked at now and then"
    os.kill(process, 9)
    os.waitpid(process, 0)
    assert state_after(1) == "interrupted"


def _lock(run: RunFolder, pid: int) -> None:
    holder = {"pid": pid, "host": socket.gethostname(), "doing": "training"}
    run.file("run.lock").write_text(json.dumps(holder))


def test_no_more_runs_are_shown_than_a_chart_has_colours(tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(MOST_SHOWN + 3)]
    for name in names:
        run_of_settings(tmp_path / name)
    assert len(Watch(tmp_path, Clock()).news(PageState(tuple(names)))["shown"]) == MOST_SHOWN
