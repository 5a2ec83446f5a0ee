"""A run -> Trackio, by the package `trackio`: a database on this machine, a Space, or a server."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tinkersmith.trackers.protocol import (
    COLUMNS,
    PROJECT,
    LoggedRun,
    ShownAnswer,
    State,
    StepValues,
)


class TrackioTracker:
    """A run of Trackio, which continues runs by their names."""

    def __init__(self, run: LoggedRun) -> None:
        trackio: Any = import_module("trackio")
        self._trackio = trackio
        self._project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self._run: Any = trackio.init(
            project=self._project,
            name=run.tracker_id or run.name,
            config=dict(run.settings),
            resume="allow" if run.tracker_id else "never",
            embed=False,
        )
        self._last_step = run.first_step

    @property
    def tracker_id(self) -> str:
        return str(self._run.name)

    @property
    def where(self) -> str:
        remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        return remote or f'trackio show --project "{self._project}"'

    def log(self, points: Sequence[StepValues]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)
            self._last_step = max(self._last_step, point.step)

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None:
        rows = [[a.source, a.prompt, a.expected, a.answer] for a in answers]
        table = self._trackio.Table(columns=list(COLUMNS), data=rows)
        self._run.log({"answers": table}, step=step)

    def end(self, state: State, report: Path | None) -> None:
        about: dict[str, str] = {"state": state}
        if report is not None:
            about["report"] = str(report)
        self._run.log(about, step=self._last_step)
        self._run.finish()
