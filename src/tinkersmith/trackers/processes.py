"""The trackers of a run as the training sees them: child processes that follow the run's files.

The training starts them, passes on what they say, and tells them at the end how it ended. It never
waits for them in between.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tinkersmith.errors import reason_of
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.trackers.follow import line_count
from tinkersmith.trackers.protocol import State
from tinkersmith.trackers.record import tracker_record

_PATIENCE = 20.0  # seconds for what is left to log at the end of a run
_SHORT_PATIENCE = 10.0  # seconds, if it was interrupted
_STILL_THERE = "The run goes on without it; its metrics.jsonl has every value."
_NOT_OURS = ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD", "JUDGE_API_KEY")
# Libraries report their own use to their makers, unless they are told not to.
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


@dataclass
class RunningTracker:
    """One tracker's process. It is "off" once it has failed, which is said once."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path
    progress: Progress
    off: bool = False
    done: bool = False
    _reader: threading.Thread = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Pass on what the tracker says, until its process has ended."""
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):  # the transcript, or the pipe, is gone
            for line in self.process.stdout:
                message = json.loads(line)
                if "where" in message:
                    self.progress.say(f"  Tracker {self.name}: {message['where']}")
                elif "error" in message:
                    self.warn(f"failed: {message['error']}")
                self.done |= "done" in message
            code = self.process.wait()
            if not self.done:
                self.warn(f"ended by itself (exit code {code})")

    def warn(self, how: str) -> None:
        """Say once that the tracker is off."""
        if not self.off:
            self.off = True
            self.progress.say(
                f"  Warning: the tracker {self.name} {how}. {_STILL_THERE} Its log: {self.log}"
            )

    def end(self, state: State) -> None:
        """Tell the process how the run ended."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended
            self.process.stdin.write(json.dumps({"state": state}) + "\n")
            self.process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Whether the tracker has everything, or is off, within `seconds`."""
        self._reader.join(max(seconds, 0))
        return not self._reader.is_alive()

    def kill(self) -> None:
        """End the process, if it runs, and those that its library started."""
        if self.process.poll() is None:
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join(2)


def start_trackers(
    run: RunFolder, names: Sequence[str], first_step: int, progress: Progress
) -> list[RunningTracker]:
    """Start the trackers of a run, whose settings.json is written.

    Args:
        first_step: the steps that are done.

    Raises:
        UserError: a file of an earlier process of the run is damaged.
    """
    for name in names:
        tracker_record(run.path, name)
    lines = line_count(run.file("metrics.jsonl"))
    return [
        tracker for name in names if (tracker := _start(run, name, lines, first_step, progress))
    ]


def _start(
    run: RunFolder, name: str, lines: int, first_step: int, progress: Progress
) -> RunningTracker | None:
    folder = run.path.absolute()
    log = folder / "trackers" / f"{name}.log"
    command = [sys.executable, "-m", "tinkersmith.trackers", name, str(folder)]
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_OURS}
    try:
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*command, str(lines), str(first_step)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                encoding="utf-8",
                errors="replace",
                env={**_NO_TELEMETRY, **environment},
                # Ctrl-C reaches the training only, which then says how it ended.
                start_new_session=True,
            )
    except OSError as error:
        progress.say(
            f"  Warning: the tracker {name} cannot be started: {reason_of(error)}. {_STILL_THERE}"
        )
        return None
    return RunningTracker(name, process, log, progress)


def end_trackers(
    trackers: Sequence[RunningTracker],
    state: State,
    progress: Progress,
    patience: float | None = None,
) -> None:
    """Tell the trackers how the run ended, wait a little for what they still log, and end them.

    Args:
        patience: seconds to wait for all of them; None is the usual time.
    """
    if patience is None:
        patience = _SHORT_PATIENCE if state == "interrupted" else _PATIENCE
    try:
        for tracker in trackers:
            tracker.end(state)
        until = time.monotonic() + patience
        for tracker in trackers:
            with progress.doing(f"waiting for the tracker {tracker.name}"):
                if not tracker.wait(until - time.monotonic()):
                    tracker.warn(f"was not done {patience:.0f} s after the run's end and was ended")
    finally:
        for tracker in trackers:
            tracker.kill()
