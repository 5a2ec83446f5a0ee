"""`tinkersmith runs` on runs that a real engine trained: what is listed, kept and deleted."""

import json
from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tests.support.run_folders import checkpoint, run_of_settings
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.export.export import export_model
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.lock import locked
from tinkersmith.service.stored import StoredOnServer, all_checkpoints, connection_of
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cloud(monkeypatch)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("project")
    return settings_from(
        {
            "DATA_FILES": [str(write(folder / "data.json", records(12, seed=1)))],
            "BASE_MODEL": str(make_tiny_model(folder / "model")),
            "OUTPUT_DIR": str(folder / "runs"),
            "BACKEND": "local",
            "BATCH_SIZE": 2,
            "NUM_EPOCHS": 2,
            "LORA_RANK": 4,
            "SAVE_EVERY": 1,
            "KEEP_LAST": 2,
            "SAMPLING_MAX_TOKENS": 4,
        }
    )


@pytest.fixture(scope="module")
def run(settings: Settings) -> RunFolder:
    with train(settings) as trained:
        return trained.run


def options(settings: Settings) -> list[str]:
    return ["--set", f"OUTPUT_DIR={settings.output_dir}"]


def stored(settings: Settings) -> list[StoredOnServer]:
    with connection_of(settings, "embedded", Progress(print)) as service:
        return all_checkpoints(service)


def test_a_run_keeps_its_last_states_and_the_ends_of_its_epochs(
    settings: Settings, run: RunFolder
) -> None:
    left = [checkpoint for checkpoint in run.checkpoints() if not checkpoint.state_deleted]
    assert [checkpoint.step for checkpoint in left] == [6, 11, 12]
    there = stored(settings)
    assert {found.path for found in there if found.is_state} == {x.state_path for x in left}
    assert {found.path for found in there if not found.is_state} == {
        checkpoint.sampler_path for checkpoint in run.checkpoints()
    }
    assert "Stored   3 states (" in run.file("train.log").read_text()
    assert "12 samplers (" in run.file("train.log").read_text()


def test_weights_without_a_state_are_evaluated_and_their_export_is_refused(
    settings: Settings, run: RunFolder, tmp_path: Path
) -> None:
    first = run.checkpoints()[0]
    test_file = str(write(tmp_path / "test.json", records(2, seed=3)))
    result = evaluate(
        settings,
        model_path=first.sampler_path,
        test_file=test_file,
        output_file=tmp_path / "results.json",
        say=lambda _: None,
    )
    assert result.model_path == first.sampler_path
    with pytest.raises(UserError, match=r"step-000001 was deleted to save space .*step-000012"):
        export_model(settings, first.state_path, tmp_path / "out", say=lambda _: None)


def test_the_list_shows_steps_loss_checkpoints_and_sizes(
    settings: Settings, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = run.path.with_name("damaged")
    damaged.mkdir()
    (damaged / "settings.json").write_text("{")
    try:
        assert main(["runs", *options(settings)]) == 0
    finally:
        (damaged / "settings.json").unlink()
        damaged.rmdir()
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith(run.name)]
    loss = run.lines("metrics.jsonl")[-2]["loss"]
    for cell in ("12/12", f"{loss:.4f}", "12 (3 states)", "kB"):
        assert cell in row, text
    assert "?" not in row
    assert "damaged: " in text


def test_pruning_keeps_fewer_and_names_what_belongs_to_no_run(
    settings: Settings, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "prune", "--keep-last", "1", *options(settings)]) == 1
    assert "add --yes" in capsys.readouterr().err
    assert len([found for found in stored(settings) if found.is_state]) == 3
    record = run.file("checkpoints.jsonl")
    assert main(["runs", "prune", "--keep-last", "1", "--yes", *options(settings)]) == 0
    assert "Deleted 1 state on this machine." in capsys.readouterr().out
    assert [x.step for x in run.checkpoints() if not x.state_deleted] == [6, 12]
    with locked(run, "training", print):
        assert main(["runs", "delete", run.name, "--yes", *options(settings)]) == 1
        assert "is in use by process" in capsys.readouterr().err
    hidden = record.rename(record.with_name("hidden"))
    try:
        assert main(["runs", "prune", *options(settings)]) == 0
        assert "14 checkpoints in the engine's folder" in capsys.readouterr().out
        assert main(["runs", "prune", "--delete-unknown", "--yes", *options(settings)]) == 0
        assert "14 checkpoints of the last 10 minutes stay" in capsys.readouterr().out
        assert len(stored(settings)) == 14
        record.write_text("{\n")
        assert main(["runs", "prune", "--delete-unknown", "--yes", *options(settings)]) == 1
        assert "damaged" in capsys.readouterr().err
        assert len(stored(settings)) == 14
    finally:
        hidden.replace(record)


def test_deleting_a_run_frees_its_folder_and_its_checkpoints(
    settings: Settings, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run.path.with_name("copy")
    copy.mkdir()
    line = json.dumps(run.lines("checkpoints.jsonl")[-1])
    (copy / "checkpoints.jsonl").write_text(line + "\n")
    (copy / "settings.json").write_text(run.file("settings.json").read_text())
    assert main(["runs", "delete", run.name, *options(settings)]) == 1
    said = capsys.readouterr()
    assert "Delete " in said.err and "12 checkpoints (" in said.err
    assert run.path.is_dir()
    assert main(["runs", "delete", run.name, "--yes", *options(settings)]) == 0
    assert "2 checkpoints of" in capsys.readouterr().out  # those that the copy names stay
    assert not run.path.exists()
    assert len(stored(settings)) == 2
    assert main(["runs", "delete", run.name, "--yes", *options(settings)]) == 1
    assert "There is no run" in capsys.readouterr().err
    assert main(["runs", "delete", "copy", "--yes", *options(settings)]) == 0
    assert stored(settings) == []


def test_without_runs_the_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--set", f"OUTPUT_DIR={tmp_path}"]) == 0
    assert f"There are no runs in {tmp_path}." in capsys.readouterr().out


def test_a_run_without_settings_is_listed_and_its_folder_can_be_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of_settings(tmp_path / "runs" / "lost")
    run.append("requests.jsonl", [{"step": 1}])
    run.add_checkpoint(checkpoint(2))
    run.file("settings.json").unlink()
    where = ["--set", f"OUTPUT_DIR={tmp_path / 'runs'}"]
    assert main(["runs", "list", *where]) == 0
    assert f"lost: {run.path} has lost its settings.json." in capsys.readouterr().out
    assert main(["runs", "delete", "lost", "--yes", *where]) == 1
    assert "as it is, add --keep-checkpoints" in capsys.readouterr().err
    assert main(["runs", "delete", "lost", "--yes", "--keep-checkpoints", *where]) == 0
    assert not run.path.exists()
