"""Trackers that fail, hang or are killed: said once, and the run goes on without them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import eventually
from tests.support.tracked_runs import new_run, step_line, track, train_whole_run
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress
from tinkersmith.trackers.__main__ import without_secrets
from tinkersmith.trackers.processes import end_trackers, start_trackers
from tinkersmith.trackers.record import TrackerRecord, tracker_record, write_tracker_record

PLACEHOLDER = "not-a-real-value"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a tracker imports in place of the library `wandb`."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    return folder / "wandb.py"


def test_a_tracker_that_fails_is_named_once_with_its_reason_and_no_key(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", PLACEHOLDER)
    library.write_text(
        "import os\nraise RuntimeError('refused: ' + os.environ['WANDB_API_KEY'] + '\\nmore')"
    )
    run = new_run(tmp_path)
    said = track(run, "wandb", lambda: train_whole_run(run))
    assert said == [
        "  Warning: the tracker wandb failed: refused: ***. The run goes on without it; its "
        f"metrics.jsonl has every value. Its log: {run.file('trackers/wandb.log')}"
    ]


def test_a_library_that_ends_the_program_ends_its_own_process_only(
    library: Path, tmp_path: Path
) -> None:
    library.write_text("import sys\nsys.exit('log in first')")
    run = new_run(tmp_path)
    (line,) = track(run, "wandb", lambda: None)
    assert "wandb failed: log in first. The run goes on" in line


def test_a_library_that_asks_gets_no_answer_and_no_terminal(library: Path, tmp_path: Path) -> None:
    library.write_text("input('Your key? ')")
    run = new_run(tmp_path)
    (line,) = track(run, "wandb", lambda: None)
    assert "wandb failed: EOF when reading a line. The run goes on" in line
    assert "Your key? " in run.file("trackers/wandb.log").read_text()


def test_a_tracker_that_is_killed_is_named_while_the_run_goes_on(
    library: Path, tmp_path: Path
) -> None:
    library.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    said: list[str] = []
    run = new_run(tmp_path)
    progress = Progress(said.append)
    trackers = start_trackers(run, ["wandb"], 0, progress)
    assert eventually(lambda: len(said) == 1)
    assert "wandb ended by itself (exit code -9). The run goes on" in said[0]
    end_trackers(trackers, "finished", progress)
    assert len(said) == 1


def test_a_tracker_that_hangs_is_ended_after_a_short_time(library: Path, tmp_path: Path) -> None:
    library.write_text("import time\ntime.sleep(10_000)")
    said: list[str] = []
    run = new_run(tmp_path)
    progress = Progress(said.append)
    trackers = start_trackers(run, ["wandb"], 0, progress)
    end_trackers(trackers, "finished", progress, patience=0.5)
    assert trackers[0].process.poll() == -signal.SIGKILL
    (line,) = said
    assert "wandb was not done 0 s after the run's end and was ended. The run goes on" in line


def test_a_training_that_is_killed_counts_as_interrupted(tmp_path: Path) -> None:
    """The tracker sees that its pipe is closed, and logs what is left."""
    pytest.importorskip("tensorboard")
    run = new_run(tmp_path)
    program = (
        "import sys, time\n"
        "from tinkersmith.progress import Progress\n"
        "from tinkersmith.runs.folder import RunFolder\n"
        "from tinkersmith.trackers.processes import start_trackers\n"
        "from pathlib import Path\n"
        "def say(line): print(line, flush=True)\n"
        "start_trackers(RunFolder(Path(sys.argv[1])), ['tensorboard'], 0, Progress(say))\n"
        "time.sleep(10_000)\n"
    )
    command = [sys.executable, "-c", program, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert training.stdout.readline().startswith("  Tracker tensorboard: tensorboard --logdir")
        run.append("metrics.jsonl", [step_line(1, 2.0), step_line(2, 1.0)])
        training.kill()
    events = run.file("trackers") / "tensorboard"

    def logged() -> bool:
        return any(b"interrupted" in file.read_bytes() for file in events.iterdir())

    assert eventually(logged)
    record = tracker_record(run.path, "tensorboard")
    assert record is not None
    assert record.lines == 2


def test_a_tracker_that_is_new_to_a_run_gets_its_curves_from_the_beginning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = new_run(tmp_path)
    run.append("metrics.jsonl", [step_line(1, 2.0)])
    track(run, "tensorboard", lambda: run.append("metrics.jsonl", [step_line(2, 1.0)]))
    (events,) = (run.file("trackers") / "tensorboard").iterdir()
    assert events.read_bytes().count(b"train/loss") == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"lines": 1}', '{"tracker_id": "", "lines": 1}']
    + [json.dumps({"tracker_id": "a", "lines": wrong}) for wrong in (-1, True, "1", None)],
)
def test_a_damaged_record_is_named_before_training(text: str, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    write_tracker_record(run.path, "wandb", TrackerRecord("abc", 1))
    file = run.file("trackers/wandb.json")
    file.write_text(text)
    with pytest.raises(UserError, match=r"wandb\.json is damaged: .* Restore it, or remove it"):
        start_trackers(run, ["wandb"], 0, Progress(print))


def test_keys_in_the_environment_are_hidden_and_short_values_are_not() -> None:
    environment = {"X_API_KEY": PLACEHOLDER, "X_TOKEN": "a", "HOME": "/home/me"}
    text = f"a {PLACEHOLDER} in /home/me"
    assert without_secrets(text, environment) == "a *** in /home/me"
