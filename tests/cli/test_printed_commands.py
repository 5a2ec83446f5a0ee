"""Commands that are printed work as they are printed: with --config, odd names, another folder."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE, eventually
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.training.train import _options_to_find
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import newest_run
from tinkersmith.runs.resume import Resume, starting_checkpoint
from tinkersmith.settings.reading import settings_from

pytestmark = pytest.mark.engine

ODD = 'it\'s 我的 "proj"'


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_cloud(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "somewhere else").mkdir()
    monkeypatch.chdir(tmp_path / "somewhere else")


def shell(line: str) -> str:
    """What a line prints that a user copies; it must work."""
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
def test_a_run_is_continued_and_exported_by_the_lines_that_it_prints(tmp_path: Path) -> None:
    project = tmp_path / ODD
    project.mkdir()
    for script in ("train_with_config.py", "export_model.py"):
        shutil.copyfile(ROOT / script, project / script)
    model = make_tiny_model(project / "model")
    record = {"instruction": "Say yes.", "output": "yes"}
    (project / "数据, 1.json").write_text(
        json.dumps([{**record, "input": str(n)} for n in range(60)])
    )
    settings = {
        "DATA_FILES": ["数据, 1.json"],
        "BASE_MODEL": f"./{model.name}",
        "OUTPUT_DIR": "'out' 目录",
        "EXPORT_AFTER_TRAINING": "no",
        "SAMPLING_MAX_TOKENS": 4,
        "LORA_RANK": 4,
        "BATCH_SIZE": 1,
        "NUM_EPOCHS": 1000,
    }
    config = project / "my settings.json"  # there is no config.py beside the scripts
    config.write_text(json.dumps(settings))
    words = [sys.executable, f"../{ODD}/train_with_config.py", "--config", str(config)]
    runs = project / "'out' 目录"
    training = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert eventually(lambda: bool(list(runs.glob("*/metrics.jsonl")))), training.communicate()
        training.send_signal(signal.SIGINT)
        said, _ = training.communicate(timeout=PATIENCE)
    finally:
        training.kill()
    *_, line = re.findall(r"Continue with: (.*)$", said, re.MULTILINE)
    assert "my settings.json" not in line and "--resume" in line
    # A run of the length that is left would be long: the run's own settings are made shorter.
    facts_file = next(runs.glob("*/settings.json"))
    facts = json.loads(facts_file.read_text())
    for part in (facts, facts["sessions"][-1]):
        part["settings"]["NUM_EPOCHS"] = 1 + newest_run(runs).checkpoints()[-1].step // 60
    facts_file.write_text(json.dumps(facts))
    said = shell(line)
    (line,) = re.findall(r"^Export +(.*)$", said, re.MULTILINE)
    assert "PEFT" in shell(line) or list(project.glob("exported/*/adapter_config.json"))
    with pytest.raises(UserError, match="nothing is left to train") as caught:
        starting_checkpoint(Resume(newest_run(runs)))
    words = shlex.split(str(caught.value).partition("Evaluate it with: ")[2])
    assert settings_from({}, [words[-1]]).output_dir == str(runs)


@pytest.mark.parametrize(
    ("beside", "config", "runs", "options"),
    [
        ("", "", "runs", ()),
        ("", "", "other runs", ("--set", "OUTPUT_DIR=other runs")),
        ('OUTPUT_DIR = "mine"', "", "mine", ()),
        ('OUTPUT_DIR = "mine"', "", "runs", ("--set", "OUTPUT_DIR=runs")),
        ('BACKEND = "tinker"', "", "runs", ("--set", "BACKEND=local")),
        ('BACKEND = "local"', "", "'odd'", ("--set", "OUTPUT_DIR=\"'odd'\"")),
        ("LORA_RANK = 0", "good.yaml", "mine", ("--config", "good.yaml")),
    ],
)
def test_the_options_are_those_that_the_command_needs(
    beside: str, config: str, runs: str, options: tuple[str, ...]
) -> None:
    Path("config.py").write_text(beside)
    Path("good.yaml").write_text("OUTPUT_DIR: mine\n")
    assert _options_to_find(runs, "local", config, ".") == options
    for option in options[1::2]:
        if option.startswith("OUTPUT_DIR"):
            assert settings_from({}, [option]).output_dir == runs


def test_where_there_is_no_run_the_line_trains_into_that_folder() -> None:
    with pytest.raises(UserError, match="Train one first") as caught:
        newest_run("it's mine")
    words = shlex.split(str(caught.value).partition("Train one first: ")[2])
    assert settings_from({}, [words[-1]]).output_dir == "it's mine"
