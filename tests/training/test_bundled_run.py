"""The bundled model and data through `train` and through the one-script form."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import PATIENCE
from tinkersmith import train
from tinkersmith.runs.folder import newest_run
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

pytestmark = pytest.mark.engine

SAMPLES = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(SAMPLES[:40], ensure_ascii=False), encoding="utf-8")
    return file


def settings(data: Path, **names: object) -> Settings:
    values = {
        "DATA_FILES": [str(data)],
        "OUTPUT_DIR": str(data.parent / "runs"),
        "BATCH_SIZE": 8,
        "LEARNING_RATE": 5e-3,
        "SAMPLING_MAX_TOKENS": 30,
        "EXPORT_AFTER_TRAINING": "no",
        "BACKEND": "local",
    }
    return settings_from({**values, **names})


def test_a_run_leaves_everything_it_promises(data: Path, capsys: pytest.CaptureFixture) -> None:
    records = [*SAMPLES[:40], {"instruction": "no output"}, 17]
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    names = {"VALIDATION_RATIO": 0.1, "NUM_EPOCHS": 2, "MAX_SEQUENCE_LENGTH": 90}
    with train(settings(data, DATA_FILES=[str(data), "gone.json"], **names)) as trained:
        run = trained.run
        assert trained.sampling_client is not None
        assert len(trained.epoch_losses) == 2 and trained.epoch_losses[1] < trained.epoch_losses[0]
        assert len(trained.validation_losses) == 2
        assert trained.sampler_path.startswith("tinker://")
    shown = capsys.readouterr().out
    assert "Warning: gone.json does not exist" in shown
    assert re.search(r"Truncated .*, record \d+: \d+ -> 90 tokens", shown)
    assert "median" in shown and trained.sampler_path in shown
    assert run.file("train.log").read_text(encoding="utf-8").splitlines()[0] == "Settings"
    metrics = run.lines("metrics.jsonl")
    assert sum(line.get("samples", 0) for line in metrics) == 2 * 36
    kinds = [line["kind"] for line in run.lines("skipped.jsonl")]
    assert kinds.count("bad record") == 2 and "truncated" in kinds
    assert "42 records = 36 to train on, 4 for validation, 0 too long, 2 unusable" in shown
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [5, 10]
    assert json.loads(run.file("samples.json").read_text(encoding="utf-8"))[0]["answers"]
    assert json.loads(run.file("lengths.json").read_text())["count"] == 36
    assert run.settings().num_epochs == 2 and run.base_model() == "tinkersmith/tiny-math"


def test_the_one_script_form_trains_too(data: Path) -> None:
    script = data.parent / "mine.py"
    text = (ROOT / "tinker_finetune.py").read_text()
    script.write_text(
        text.replace('["data/train_set.json"]', repr([str(data)])).replace(
            "EPOCHS = 2", "EPOCHS = 1"
        )
    )
    done = subprocess.run(
        [sys.executable, script], cwd=data.parent, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "Loss of each epoch: [" in done.stdout
    assert newest_run(data.parent / "runs").settings().num_epochs == 1
