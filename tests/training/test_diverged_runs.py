"""Runs whose learning rate is far too high: how they end, and how they go on."""

import json
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.sample_files import write
from tinkersmith import UserError, train
from tinkersmith.runs.folder import RunFolder, all_runs
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.divergence import Diverged


def sums(folder: Path, **changes: object) -> Settings:
    """The settings of a run on the bundled model with short sums, one a step."""
    records = [
        {"instruction": "Add the numbers.", "input": f"{n} + {n + 1}", "output": f"{2 * n + 1}"}
        for n in range(24)
    ]
    values: dict[str, object] = {
        "DATA_FILES": [str(write(folder / "data.json", records))],
        "OUTPUT_DIR": str(folder / "runs"),
        "BACKEND": "local",
        "BATCH_SIZE": 1,
        "LORA_RANK": 4,
        "TRAIN_UNEMBED": "yes",  # without, the loss does not explode at this rate
        "LR_SCHEDULE": "constant",
        "WARMUP_RATIO": 0,
        "SAMPLING_MAX_TOKENS": 4,
    }
    return settings_from({**values, **changes})


def only_run(folder: Path) -> RunFolder:
    (run,) = all_runs(folder / "runs")
    return run


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT to this process when so many steps of a run are written down."""
    append, written = RunFolder.append, 0

    def counted(run: RunFolder, name: str, records: Iterable[dict[str, Any]]) -> None:
        nonlocal written
        append(run, name, records)
        if name == "metrics.jsonl":
            written += 1
            if written == steps:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append", counted)


@pytest.mark.engine
@pytest.mark.usefixtures("kept_engines")
def test_a_loss_that_explodes_stops_the_run_unless_the_user_insists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_cloud(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(Diverged) as stopped:
        train(sums(tmp_path, LEARNING_RATE=1.0, GRAD_CLIP_NORM=0))
    text = str(stopped.value)
    assert "training has diverged at step " in text
    assert "No checkpoint was saved before the loss rose. Start a new run with " in text
    assert text.endswith("LEARNING_RATE = 5e-3 or lower and GRAD_CLIP_NORM = 1.0.")
    assert "--resume" not in text, "to go on as it was is no use"
    run = only_run(tmp_path)
    assert run.checkpoints() == []
    steps = [line["step"] for line in run.lines("metrics.jsonl") if "loss" in line]
    assert len(steps) <= 20 and steps == list(range(1, len(steps) + 1))
    capsys.readouterr()
    with train(resume=str(run.path), resume_with={"STOP_ON_DIVERGENCE": False}) as trained:
        assert len(trained.epoch_losses) == 2
    shown = capsys.readouterr().out
    assert shown.count("Warning: The loss has risen to ") == 1
    assert "Advice   The training loss rose: it ended at " in shown


@pytest.mark.engine
@pytest.mark.usefixtures("kept_engines")
@pytest.mark.long
def test_the_last_good_checkpoint_is_kept_and_named_and_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sound run goes on with a rate that is far too high, then with a lower one."""
    without_cloud(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check = [{"instruction": "Add the numbers.", "input": "90 + 5", "output": "95"}]
    files = [str(write(tmp_path / "check.json", check))]
    settings = sums(tmp_path, LEARNING_RATE=1e-3, SAVE_EVERY=4, KEEP_LAST=1, VALIDATION_FILES=files)
    train(settings).close()
    run = only_run(tmp_path)
    higher = {"LEARNING_RATE": 1.0, "GRAD_CLIP_NORM": 0.0}
    with pytest.raises(Diverged, match="The last good checkpoint is step-0000") as stopped:
        train(resume=str(run.path), from_checkpoint="step-000024", resume_with=higher)
    assert "Evaluate and export take step 24, the best by validation loss " in str(stopped.value)
    model = find_trained_model(settings)
    assert model.sampler_path.endswith("/step-000024") and "the best checkpoint" in model.chosen
    _, _, said = str(stopped.value).partition("Go on from it with a lower LEARNING_RATE: ")
    words = shlex.split(said)
    options = words[words.index("--resume") :]
    name = options[3]
    assert options[:3] == ["--resume", str(run.path), "--from"] and name <= "step-000024"
    assert options[4:] == ["--set", "LEARNING_RATE=5e-3", "--set", "GRAD_CLIP_NORM=1.0"]
    assert not next(point for point in run.checkpoints() if point.name == name).state_deleted
    assert run.settings().learning_rate == 1
    with monkeypatch.context() as patched:  # it goes on as it was, and is interrupted
        interrupt_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            train(resume=str(run.path))
    assert run.checkpoints()[-1].name > name, "a state of the rise was saved"
    assert not any(line.get("diverged") for line in run.metrics())
    capsys.readouterr()
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            train(resume=str(run.path))
    shown = capsys.readouterr().out
    start = int(name.removeprefix("step-"))
    assert f"Continuing {run.name} from step {start}." in shown
    assert "The run diverged: its loss rose after step " in shown
    assert "with --set LEARNING_RATE=5e-3" in shown
    lower = {"LEARNING_RATE": 5e-3, "GRAD_CLIP_NORM": 1.0}
    train(resume=str(run.path), from_checkpoint=name, resume_with=lower).close()
    assert run.settings().learning_rate == 5e-3 and run.settings().grad_clip_norm == 1.0
    shown = capsys.readouterr().out
    assert "LEARNING_RATE in settings.json is 0.005; it was 1.0" in shown
    assert "have no effect" not in shown
    rates = {line["step"]: line["learning_rate"] for line in run.metrics() if "loss" in line}
    assert list(rates) == list(range(1, 49))
    assert {rates[step] for step in range(1, start + 1)} == {1e-3}
    assert {rates[step] for step in range(start + 1, 49)} == {5e-3}


def test_only_some_settings_can_be_changed_by_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps({"settings": {}, "prompt_template": {}}))
    with pytest.raises(UserError, match="BATCH_SIZE cannot be changed when a run is resumed; only"):
        train(resume=str(run), resume_with={"batch_size": 3})
    with pytest.raises(UserError, match="LEARNING_RATE is 7"):
        train(resume=str(run), resume_with={"learning_rate": 7.0})
    with pytest.raises(UserError, match="resume_with has no effect without --resume"):
        train(resume_with={"LEARNING_RATE": 0.1})
