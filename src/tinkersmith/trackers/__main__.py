"""`python -m tinkersmith.trackers NAME RUN LINES STEP`: one tracker of one run.

It follows metrics.jsonl until its standard input says how the run ended, or closes because the
training is gone. On standard output it writes JSON lines: where the run is shown, or what failed.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

from tinkersmith.runs.folder import SAMPLES_FILE, RunFolder
from tinkersmith.trackers.follow import MetricsFollower
from tinkersmith.trackers.protocol import LoggedRun, ShownAnswer, State, Tracker
from tinkersmith.trackers.record import TrackerRecord, tracker_record, write_tracker_record

_LOOK_EVERY = 0.5  # seconds
_NOTE_EVERY = 5.0  # seconds between notes of how many lines the tracker has
_LAST_SECONDS = 60.0  # that this process may live after the run has ended
_REPORT_FILE = "report.html"
_FACTS = ("base_model", "backend", "training_samples", "total_steps")  # beside the settings
_SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")  # in the names of environment variables
_CLASSES = {
    "tensorboard": "to_tensorboard:TensorBoardTracker",
    "wandb": "to_wandb:WandbTracker",
    "swanlab": "to_swanlab:SwanLabTracker",
    "trackio": "to_trackio:TrackioTracker",
    "mlflow": "to_mlflow:MlflowTracker",
}


class _End:
    """How the run ended, once that is known."""

    def __init__(self, orders: TextIO) -> None:
        self.known = threading.Event()
        self.state: State = "interrupted"
        threading.Thread(target=self._read, args=[orders], daemon=True).start()

    def _read(self, orders: TextIO) -> None:
        line = orders.readline()
        if line.strip():
            self.state = json.loads(line)["state"]
        self.known.set()
        time.sleep(_LAST_SECONDS)
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Track a run until it ends; 1 if that failed."""
    name, folder, lines, step = arguments
    # Libraries print and ask: their output goes to the log, and nobody answers.
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def report(**message: str) -> None:
        reports.write(json.dumps(message) + "\n")
        reports.flush()

    try:
        end = _End(orders)
        _track(name, RunFolder(Path(folder)), int(lines), int(step), end, report)
    except BaseException as error:  # a library may even end the program
        reason = str(error).strip() or type(error).__name__
        report(error=without_secrets(reason.splitlines()[0], os.environ))
        traceback.print_exc()  # to the log
        sys.stderr.flush()
        os._exit(1)  # what libraries do at the end of a program may hang
    report(done="")
    return 0


def _track(
    name: str,
    run: RunFolder,
    lines: int,
    first_step: int,
    end: _End,
    report: Callable[..., None],
) -> None:
    record = tracker_record(run.path, name)
    logged = LoggedRun(
        name=run.name,
        folder=run.path,
        settings=_settings_of(run),
        tracker_id=record.tracker_id if record else None,
        first_step=first_step,
    )
    tracker = open_tracker(name, logged)
    # A tracker that is new to the run gets its curves from the beginning.
    follower = MetricsFollower(run.file("metrics.jsonl"), min(lines, record.lines) if record else 0)
    noted_at, noted = time.monotonic(), record.lines if record else 0
    write_tracker_record(run.path, name, TrackerRecord(tracker.tracker_id, noted))
    report(where=tracker.where)
    last_step = first_step
    while True:
        is_last = end.known.is_set()  # before the file is read: then nothing comes after it
        before = follower.lines
        points = follower.new_points()
        if points:
            tracker.log(points)
            last_step = points[-1].step
        moved = follower.lines != before
        if follower.lines != noted and (is_last or time.monotonic() - noted_at > _NOTE_EVERY):
            noted_at, noted = time.monotonic(), follower.lines
            write_tracker_record(run.path, name, TrackerRecord(tracker.tracker_id, noted))
        if is_last and not moved:
            break
        if not moved:
            end.known.wait(_LOOK_EVERY)
    if end.state == "finished" and (answers := _shown_answers(run)):
        tracker.log_answers(answers, last_step)
    page = run.file(_REPORT_FILE)
    tracker.end(end.state, page if page.is_file() else None)


def open_tracker(name: str, run: LoggedRun) -> Tracker:
    """Open a run in a tracker. Only the library of that tracker is imported."""
    module, _, kind = _CLASSES[name].partition(":")
    made: Tracker = getattr(import_module(f"tinkersmith.trackers.{module}"), kind)(run)
    return made


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """`text` with "***" for every value of the environment that is a key or the like."""
    for name, value in environment.items():
        if len(value) >= 6 and any(word in name.upper() for word in _SECRET):
            text = text.replace(value, "***")
    return text


def _settings_of(run: RunFolder) -> dict[str, Any]:
    facts = run.facts()
    sessions = cast("list[dict[str, Any]]", facts.get("sessions") or [{}])
    versions = cast("dict[str, str]", sessions[-1].get("versions") or {})
    return {
        **facts["settings"],
        **{name: facts[name] for name in _FACTS if name in facts},
        **{f"version_{package}": version for package, version in versions.items()},
        "run_folder": str(run.path),
    }


def _shown_answers(run: RunFolder) -> list[ShownAnswer]:
    """The answers in samples.json."""
    try:
        samples: object = json.loads(run.file(SAMPLES_FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return [
        ShownAnswer(sample["source"], sample["prompt"], sample["expected"], answer)
        for sample in cast("Iterable[dict[str, Any]]", samples)
        for answer in sample["answers"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
