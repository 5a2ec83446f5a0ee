"""A run -> TensorBoard's event files, by the package `tensorboard` alone. No torch, no network."""

import html
import shlex
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tinkersmith.trackers.protocol import COLUMNS, LoggedRun, ShownAnswer, State, StepValues

_MESSAGES = "tensorboard.compat.proto"


class TensorBoardTracker:
    """Event files in the run's folder. A resumed run adds a file, which replaces later steps."""

    def __init__(self, run: LoggedRun) -> None:
        self._events: Any = import_module(f"{_MESSAGES}.event_pb2")
        self._summaries: Any = import_module(f"{_MESSAGES}.summary_pb2")
        self._tensors: Any = import_module(f"{_MESSAGES}.tensor_pb2")
        writers: Any = import_module("tensorboard.summary.writer.event_file_writer")
        self._folder = run.tracker_folder / "tensorboard"
        self._writer = writers.EventFileWriter(str(self._folder))
        self._output_dir = run.output_dir
        self._last_step = run.first_step
        if run.tracker_id is not None:
            # TensorBoard forgets what earlier files have from this step on: it is done again.
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=run.first_step + 1, session_log=start)
        settings = [(name, str(value)) for name, value in run.settings.items()]
        self._add_text("settings", _table([("setting", "value"), *settings]), run.first_step)
        self._writer.flush()

    @property
    def tracker_id(self) -> str:
        return self._folder.name

    @property
    def where(self) -> str:
        return shlex.join(["tensorboard", "--logdir", str(self._output_dir)])

    def log(self, points: Sequence[StepValues]) -> None:
        for point in points:
            values = [
                self._summaries.Summary.Value(tag=name, simple_value=value)
                for name, value in point.values.items()
            ]
            self._add(step=point.step, summary=self._summaries.Summary(value=values))
            self._last_step = max(self._last_step, point.step)
        self._writer.flush()

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None:
        rows = [(a.source, a.prompt, a.expected, a.answer) for a in answers]
        self._add_text("answers", _table([COLUMNS, *rows]), step)

    def end(self, state: State, report: Path | None) -> None:
        self._add_text("state", state, self._last_step)
        if report is not None:
            self._add_text("report", str(report), self._last_step)
        self._writer.close()

    def _add_text(self, tag: str, text: str, step: int) -> None:
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensors.TensorProto(
            dtype="DT_STRING", string_val=[text.encode("utf-8", "backslashreplace")]
        )
        tensor.tensor_shape.dim.add(size=1)
        value = self._summaries.Summary.Value(
            tag=tag, metadata=self._summaries.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        self._add(step=step, summary=self._summaries.Summary(value=[value]))

    def _add(self, **fields: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), **fields))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, which the text plugin shows; its cells hold no markup."""
    lines = ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("\n", "<br>")
