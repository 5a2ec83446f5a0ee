"""Each tracker with its real library, without a network: what it wrote is read back."""

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_runs import new_run, step_line, track, train_whole_run
from tinkersmith.runs.folder import RunFolder
from tinkersmith.trackers.record import tracker_record

Curve = list[tuple[int, float]]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "SWANLAB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


class Shown:
    """What a tracker has of a run."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.text = ""  # settings, answers, state and report, in any form

    def add(self, name: str, step: int, value: float) -> None:
        self.curves.setdefault(name, []).append((step, value))


def of_tensorboard(run: RunFolder) -> Shown:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run.file("trackers") / "tensorboard"))
    events.Reload()
    shown = Shown()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            shown.add(tag, event.step, event.value)
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            shown.text += f"{tag}: {event.tensor_proto.string_val[0].decode()}\n"
    return shown


def of_wandb(run: RunFolder) -> Shown:
    messages = import_module("wandb.proto.wandb_internal_pb2")
    shown = Shown()
    files = sorted(run.file("trackers").glob("wandb/offline-run-*/*.wandb"))
    for record in (messages.Record.FromString(data) for file in files for data in _log(file)):
        values = {".".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "step" in values:
            for name, value in values.items():
                if name.startswith(("train/", "validation/", "eval/")):
                    shown.add(name, int(values["step"]), json.loads(value))
        shown.text += str(record.run.config) + str(record.summary) + str(record.exit)
    for table in run.file("trackers").glob("wandb/offline-run-*/files/media/table/*.json"):
        shown.text += table.read_text()
    return shown


def _log(file: Path) -> Iterator[bytes]:
    """The records of a LevelDB log, which W&B's files are after a header of their own."""
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record, or its last part
            yield whole
            whole = b""


def of_swanlab(run: RunFolder) -> Shown:
    store = import_module("swanlab.sdk.internal.core_python.store")
    messages = import_module("swanlab.proto.swanlab.record.v1.record_pb2")
    shown = Shown()
    folders = sorted((run.path.parent / "swanlog").glob("run-*"))
    for folder in folders:
        reader = store.DataStoreReader()
        (file,) = folder.glob("*.swanlab")
        reader.open(file)
        for record in map(messages.Record.FromString, reader):
            if record.HasField("scalar"):
                shown.add(record.scalar.key, record.scalar.step, record.scalar.value.number)
        for text in [*folder.glob("media/**/*.txt"), *folder.glob("files/config.yaml")]:
            shown.text += text.read_text()
    return shown


def of_trackio(run: RunFolder) -> Shown:
    shown = Shown()
    file = run.path.parent.parent / "trackio" / "tinkersmith.db"
    with sqlite3.connect(file) as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            for name, value in json.loads(metrics).items():
                if isinstance(value, int | float):
                    shown.add(name, step, value)
                else:
                    shown.text += f"{name}: {value}\n"
        shown.text += str(database.execute("SELECT config FROM configs").fetchall())
    return shown


def of_mlflow(run: RunFolder) -> Shown:
    import_module("os").environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    store = (run.path.parent / "mlruns").as_uri()
    client = import_module("mlflow.tracking").MlflowClient(tracking_uri=store)
    record = tracker_record(run.path, "mlflow")
    assert record is not None
    logged = client.get_run(record.tracker_id)
    shown = Shown()
    for name in logged.data.metrics:
        for metric in client.get_metric_history(record.tracker_id, name):
            shown.add(name, metric.step, metric.value)
    shown.text = f"{logged.data.params} {logged.data.tags} {logged.info.status}"
    answers = list((run.path.parent / "mlruns").glob("*/*/artifacts/answers.json"))
    shown.text += "".join(file.read_text() for file in answers)
    return shown


READERS: dict[str, Callable[[RunFolder], Shown]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "swanlab": of_swanlab,
    "trackio": of_trackio,
    "mlflow": of_mlflow,
}
every_library = pytest.mark.parametrize("name", READERS)


def values(curve: Any) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(value)) for step, value in curve]


@every_library
def test_a_tracker_has_what_a_finished_run_measured(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    run = new_run(tmp_path)
    said = track(run, name, lambda: train_whole_run(run))
    assert len(said) == 1, (said, run.file(f"trackers/{name}.log").read_text())
    assert said[0].startswith(f"  Tracker {name}: ")
    if name == "swanlab":  # the command to send it later names the folder that is there
        _, _, pattern = said[0].rstrip().rpartition(" ")
        assert "swanlab sync" in said[0] and len(list(Path("/").glob(pattern.lstrip("/")))) == 1
    if name == "mlflow":
        assert ("pip install mlflow" in said[0]) == (find_spec("flask") is None)
    shown = READERS[name](run)
    assert shown.curves["train/loss"] == values([(1, 2.5), (2, 2.0), (3, 1.5)])
    for measured in ("learning_rate", "grad_norm", "tokens_per_second"):
        assert [step for step, _ in shown.curves[f"train/{measured}"]] == [1, 2, 3]
    assert shown.curves["train/epoch_loss"] == values([(3, 2.0)])
    assert shown.curves["validation/loss"] == values([(3, 1.25)])
    assert shown.curves["eval/final_answer"] == values([(3, 0.75)])
    for text in ("LORA_RANK", "finished", str(run.file("report.html").absolute()), "2!"):
        assert text in shown.text


@every_library
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    run = new_run(tmp_path)
    lines = [step_line(step, 3.0 - step / 2) for step in (1, 2, 3)]
    track(run, name, lambda: run.append("metrics.jsonl", lines), "interrupted")
    first = tracker_record(run.path, name)
    assert first is not None
    assert first.lines == 3
    run.rewrite("metrics.jsonl", lines[:2])  # it goes on from a checkpoint
    more = [step_line(3, 1.0), step_line(4, 0.5)]
    track(run, name, lambda: run.append("metrics.jsonl", more), first_step=2)
    second = tracker_record(run.path, name)
    assert second is not None
    assert (second.tracker_id, second.lines) == (first.tracker_id, 4)
    loss = READERS[name](run).curves["train/loss"]
    assert loss[:2] == values([(1, 2.5), (2, 2.0)])
    assert loss[-2:] == values([(3, 1.0), (4, 0.5)])
    assert len(loss) == (4 if name == "tensorboard" else 5)  # it alone forgets the first step 3


@pytest.mark.parametrize(
    ("state", "theirs"), [("interrupted", "KILLED"), ("diverged", "FAILED"), ("failed", "FAILED")]
)
def test_mlflow_has_how_a_run_ended(state: Any, theirs: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run = new_run(tmp_path)
    track(run, "mlflow", lambda: run.append("metrics.jsonl", [step_line(1, 2.0)]), state)
    text = of_mlflow(run).text
    assert theirs in text
    assert f"'state': '{state}'" in text
