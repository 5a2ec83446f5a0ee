"""A run -> Weights & Biases, by the package `wandb`."""

import os
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from tinkersmith.trackers.protocol import (
    COLUMNS,
    PROJECT,
    LoggedRun,
    ShownAnswer,
    State,
    StepValues,
)

_OFFLINE = ("offline", "dryrun")  # values of WANDB_MODE


class WandbTracker:
    """A run of W&B. Its x axis is the step of ours, since W&B's own never goes back."""

    def __init__(self, run: LoggedRun) -> None:
        wandb: Any = import_module("wandb")
        self._wandb = wandb
        folder = {} if os.environ.get("WANDB_DIR") else {"dir": str(run.tracker_folder)}
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run.tracker_id or uuid4().hex[:12],
            resume="allow",
            config=dict(run.settings),
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
            **folder,
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @property
    def tracker_id(self) -> str:
        return self._run.id

    @property
    def where(self) -> str:
        if os.environ.get("WANDB_MODE") in _OFFLINE:
            return shlex.join(["wandb", "sync", str(self._run.settings.sync_dir)])
        return str(self._run.url)

    def log(self, points: Sequence[StepValues]) -> None:
        for point in points:
            self._run.log({"step": point.step, **point.values})

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None:
        rows = [[a.source, a.prompt, a.expected, a.answer] for a in answers]
        table = self._wandb.Table(columns=list(COLUMNS), data=rows)
        self._run.log({"step": step, "answers": table})

    def end(self, state: State, report: Path | None) -> None:
        self._run.summary["state"] = state
        if report is not None:
            self._run.summary["report"] = str(report)
        self._run.finish(exit_code=0 if state == "finished" else 1)
