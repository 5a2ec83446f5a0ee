"""A run -> SwanLab, by the package `swanlab`."""

import os
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from tinkersmith.trackers.protocol import PROJECT, LoggedRun, ShownAnswer, State, StepValues

_STATES = {"finished": "success", "interrupted": "aborted"}  # in SwanLab's words; else "crashed"


class SwanLabTracker:
    """A run of SwanLab. Answers are texts, one for each."""

    def __init__(self, run: LoggedRun) -> None:
        swanlab: Any = import_module("swanlab")
        self._swanlab = swanlab
        self._folder = Path(os.environ.get("SWANLAB_LOG_DIR") or run.output_dir / "swanlog")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT") or PROJECT,
            name=run.name,
            id=run.tracker_id or uuid4().hex[:16],
            resume="allow",
            config=dict(run.settings),
            settings=swanlab.Settings(interactive=False),
            log_dir=str(self._folder),
        )
        self._last_step = run.first_step

    @property
    def tracker_id(self) -> str:
        return str(self._run.id)

    @property
    def where(self) -> str:
        if self._run.mode == "online":
            return self._run.url
        folder = shlex.quote(str(self._folder))
        is_offline = self._run.mode == "offline"
        return f"swanlab sync {folder}/run-*-{self.tracker_id}" if is_offline else str(self._folder)

    def log(self, points: Sequence[StepValues]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)
            self._last_step = max(self._last_step, point.step)

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None:
        texts = [
            self._swanlab.Text(
                f"{a.prompt}\n\nexpected:\n{a.expected}\n\nanswer:\n{a.answer}", caption=a.source
            )
            for a in answers
        ]
        if texts:
            self._run.log({"answers": texts}, step=step)

    def end(self, state: State, report: Path | None) -> None:
        about = [self._swanlab.Text(state, caption="state")]
        if report is not None:
            about.append(self._swanlab.Text(str(report), caption="report"))
        self._run.log({"end of the run": about}, step=self._last_step)
        ended = _STATES.get(state, "crashed")
        self._run.finish(state=ended, error=f"The run {state}." if ended == "crashed" else None)
