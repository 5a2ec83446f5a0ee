"""Runs that TRACKERS show: what the tracker has when they finish, diverge, or are interrupted."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.sample_files import write
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.runs.folder import RunFolder, all_runs
from tinkersmith.training.divergence import Diverged

pytest.importorskip("tensorboard")
pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]


def shown(run: RunFolder) -> tuple[list[int], dict[str, str]]:
    """The steps whose loss TensorBoard shows, and its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(run.file("trackers") / "tensorboard"))
    events.Reload()
    texts = {
        tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    return [event.step for event in events.Scalars("train/loss")], texts


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    without_cloud(monkeypatch)
    records = [{"instruction": "Add.", "input": f"{n}", "output": f"{n + 1}"} for n in range(8)]
    return {
        "data_files": [str(write(tmp_path / "data.json", records))],
        "base_model": str(make_tiny_model(tmp_path / "model")),
        "output_dir": str(tmp_path / "runs"),
        "backend": "local",
        "batch_size": 2,
        "num_epochs": 1,
        "lora_rank": 4,
        "sampling_max_tokens": 4,
        "trackers": ["tensorboard"],
    }


@pytest.mark.long
def test_a_finished_run_is_shown_with_its_answers_and_report(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with train(**settings) as trained:
        steps, texts = shown(trained.run)
        assert steps == [1, 2, 3, 4]
        assert texts["state"] == "finished"
        assert texts["report"] == str(trained.run.file("report.html").absolute())
        assert "data.json, record 1" in texts["answers"]
        assert "LORA_RANK" in texts["settings"]
    assert "  Tracker tensorboard: tensorboard --logdir " in capsys.readouterr().out


@pytest.mark.long
def test_an_unfinished_run_says_how_it_ended_and_goes_on_in_the_same_curves(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append
    failures = [Diverged("The loss has risen."), KeyboardInterrupt()]

    def failing(run: RunFolder, name: str, records: list[dict[str, Any]]) -> None:
        append(run, name, records)
        if failures and name == "metrics.jsonl" and records[0]["step"] == 3:
            raise failures.pop(0)

    monkeypatch.setattr(RunFolder, "append", failing)
    with pytest.raises(Diverged):
        train(**settings, save_every=2)
    (run,) = all_runs(tmp_path / "runs")
    steps, texts = shown(run)
    assert (steps, texts["state"]) == ([1, 2, 3], "diverged")
    with pytest.raises(KeyboardInterrupt):
        train(resume=run.name, output_dir=settings["output_dir"])
    steps, texts = shown(run)
    assert (steps, texts["state"]) == ([1, 2, 3], "interrupted")
    with train(resume=run.name, output_dir=settings["output_dir"]):
        steps, texts = shown(run)
    assert (steps, texts["state"]) == ([1, 2, 3, 4], "finished")
