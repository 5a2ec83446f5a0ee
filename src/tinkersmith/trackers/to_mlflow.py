"""A run -> MLflow, by the package `mlflow-skinny`: files on this machine, or a tracking server."""

import json
import os
import shlex
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinkersmith.errors import without_password
from tinkersmith.trackers.protocol import (
    COLUMNS,
    PROJECT,
    LoggedRun,
    ShownAnswer,
    State,
    StepValues,
)

_STATES = {"finished": "FINISHED", "interrupted": "KILLED"}  # in MLflow's words; else "FAILED"
_LARGEST_BATCH = 900  # metrics; the API takes at most 1,000
_LARGEST_PARAMETERS = 100  # in one call
_LONGEST_VALUE = 6000  # characters of a parameter


class MlflowTracker:
    """A run of MLflow. Without MLFLOW_TRACKING_URI its files stand in OUTPUT_DIR/mlruns."""

    def __init__(self, run: LoggedRun) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            address = (run.output_dir / "mlruns").as_uri()
        if address.startswith("file:") or "://" not in address:
            os.environ.setdefault(
                "MLFLOW_ALLOW_FILE_STORE", "true"
            )  # else it refuses its own files
        entities: Any = import_module("mlflow.entities")
        self._metric = entities.Metric
        self._address = address
        self._client: Any = import_module("mlflow.tracking").MlflowClient(tracking_uri=address)
        if run.tracker_id is not None:
            self._id = run.tracker_id
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id: str = self._client.create_run(number, run_name=run.name).info.run_id
        parameters = [
            entities.Param(key, str(value)[:_LONGEST_VALUE])
            for key, value in run.settings.items()
            if str(value)  # a server refuses an empty one
        ]
        for start in range(0, len(parameters), _LARGEST_PARAMETERS):
            batch = parameters[start : start + _LARGEST_PARAMETERS]
            self._client.log_batch(self._id, params=batch)

    @property
    def tracker_id(self) -> str:
        return self._id

    @property
    def where(self) -> str:
        if not self._address.startswith("file:"):
            return without_password(self._address)
        show = shlex.join(["mlflow", "ui", "--backend-store-uri", self._address])
        # mlflow-skinny, which logs, has no pages; they need the whole package.
        needs = "" if find_spec("flask") else " (needs: pip install mlflow)"
        return f"MLFLOW_ALLOW_FILE_STORE=true {show}{needs}"

    def log(self, points: Sequence[StepValues]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _LARGEST_BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _LARGEST_BATCH])

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None:
        # The form of MLflow's own tables, which log_table writes by way of pandas.
        rows = [[a.source, a.prompt, a.expected, a.answer] for a in answers]
        table = json.dumps({"columns": list(COLUMNS), "data": rows}, ensure_ascii=False)
        self._client.log_text(self._id, table, "answers.json")
        loggable = json.dumps([{"path": "answers.json", "type": "table"}])
        self._client.set_tag(self._id, "mlflow.loggedArtifacts", loggable)

    def end(self, state: State, report: Path | None) -> None:
        self._client.set_tag(self._id, "state", state)
        if report is not None:
            self._client.set_tag(self._id, "report", str(report))
        self._client.set_terminated(self._id, _STATES.get(state, "FAILED"))
