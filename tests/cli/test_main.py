"""The front doors: exit codes, one sentence for each mistake, quick help."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.entry_point import run_entry_point
from tinkersmith.cli.main import main
from tinkersmith.cli.training.train import train_command
from tinkersmith.errors import UserError

pytestmark = pytest.mark.slow

GOOD = {"instruction": "Say yes.", "output": "yes"}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without_cloud(monkeypatch)


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ")
    return line


def train_with(*arguments: str) -> int:
    return run_entry_point(lambda: train_command(list(arguments)))


# ---- mistakes


def written(content: bytes) -> Callable[[], list[str]]:
    def arguments() -> list[str]:
        Path("data.json").write_bytes(content)
        return ["--set", "DATA_FILES=['data.json']"]

    return arguments


def setting(text: str) -> Callable[[], list[str]]:
    def arguments() -> list[str]:
        Path("data.json").write_text(json.dumps([GOOD]))
        return ["--set", "DATA_FILES=['data.json']", "--set", text]

    return arguments


MISTAKES = {
    "no data file": (lambda: ["--set", "DATA_FILES=['nowhere.json']"], "nowhere.json"),
    "an empty file": (written(b""), "data.json is empty"),
    "JSON cut short": (written(b'[{"instruction": "a",\n "outp'), "line 2"),
    "an object": (written(json.dumps(GOOD).encode()), "an object instead of an array"),
    "only numbers": (written(b"[7]"), "data.json, record 1: the record is the number 7"),
    "no output": (written(b'[{"instruction": "a"}]'), '"output" is missing'),
    "a null": (written(b'[{"instruction": null, "output": "b"}]'), '"instruction" is null'),
    "a number": (written(b'[{"instruction": "a", "output": 4}]'), '"output" is the number 4'),
    "another encoding": (written('[{"instruction": "é"}]'.encode("latin-1")), "UTF-8"),
    "an unknown setting": (setting("LORA_RNK=8"), "LORA_RANK"),
    "rank 0": (setting("LORA_RANK=0"), "between 1 and 512"),
    "a negative rate": (setting("LEARNING_RATE=-0.1"), "LEARNING_RATE is -0.1"),
    "no value": (setting("LORA_RANK"), "NAME=VALUE"),
    "a folder that is not there": (setting("BASE_MODEL=./nothing"), "./nothing"),
    "the cloud without a key": (setting("BACKEND=tinker"), "TINKER_API_KEY"),
    "an output folder that is a file": (setting("OUTPUT_DIR=data.json"), "data.json"),
    "no such config": (lambda: ["--config", "nowhere.py"], "nowhere.py"),
    "no such run": (lambda: ["--resume", "nothing"], "nothing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, expected = MISTAKES[mistake]
    assert train_with(*make()) == 1
    assert expected in one_error(capsys)
    assert not list(Path().glob("runs/*/*"))


def test_a_python_error_in_the_config_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine.py").write_text("LORA_RANK = 8\nNUM_EPOCHS = = 2\n")
    assert train_with("--config", "mine.py") == 1
    assert "mine.py, line 2" in one_error(capsys)


def test_a_setting_that_resume_would_ignore_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_with("--resume", "some-run", "--set", "LORA_RANK=8") == 1
    assert "LORA_RANK" in one_error(capsys)


def test_an_unknown_base_model_is_answered_with_what_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data.json").write_text(json.dumps([GOOD]))
    sets = ["--set", "DATA_FILES=['data.json']", "--set", "BASE_MODEL=tinkersmith/tiny-mth"]
    assert train_with(*sets) == 1
    assert "tinkersmith/tiny-math" in one_error(capsys)
    assert not list(Path("runs").glob("*/settings.json"))


# ---- exit codes


def raising(error: BaseException) -> Callable[[], int]:
    def act() -> int:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("It is so."), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 1),
    ],
)
def test_what_ends_a_command_becomes_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry_point(raising(error)) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if isinstance(error, OSError):
        assert shown.startswith("Error: runs/x")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_entry_point(raising(ZeroDivisionError()))


def test_a_reader_that_goes_away_is_no_error() -> None:
    Path("data.json").write_text(json.dumps([{"bad": n} for n in range(20_000)] + [GOOD]))
    ended = subprocess.run(
        f"{sys.executable} -m tinkersmith stats data.json | grep -m 1 Read",
        shell=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.stderr == ""
    assert "Read 1 sample from data.json" in ended.stdout


# ---- the commands


def processor_seconds_of_help() -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "tinkersmith", "--help"], capture_output=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def test_help_takes_under_300_ms_of_processor_time() -> None:
    assert min(processor_seconds_of_help() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "tinkersmith", "train"],
        ["-m", "tinkersmith", "evaluate"],
        ["-m", "tinkersmith", "export"],
        ["-m", "tinkersmith", "init"],
        [str(ROOT / "tinker_finetune.py")],
        [str(ROOT / "train_with_config.py")],
        [str(ROOT / "evaluate_model.py")],
        [str(ROOT / "export_model.py")],
    ],
    ids=lambda words: Path(words[-1]).name,
)
def test_help_imports_no_torch_transformers_or_tinker(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *words, "--help"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 0 and asked.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "transformers", "tinker"})


def test_help_spells_names_as_they_are_spelled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "Fine-tune a LoRA with the settings of config.py." in capsys.readouterr().out


# ---- the folder that a script works on


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project in ./proj from the current folder."""
    shutil.copyfile(ROOT / name, Path("proj") / name)
    command = [sys.executable, str(Path("proj") / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def proj() -> Path:
    folder = Path("proj")
    (folder / "data").mkdir(parents=True)
    (folder / "config.py").write_text('OUTPUT_DIR = "myruns"\n')
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_with_config.py", "proj/data/train_set.json does not exist"),
        ("evaluate_model.py", "There is no finished run in proj/myruns"),
        ("export_model.py", "There is no finished run in proj/myruns"),
        ("split_dataset.py", "proj/data/word_problems.json does not exist"),
        ("tinker_finetune.py", "proj/data/train_set.json does not exist"),
    ],
)
def test_a_script_takes_what_lies_beside_it(proj: Path, name: str, expected: str) -> None:
    (proj / "data" / "test_set.json").write_text(json.dumps([GOOD]))
    done = script(name)
    assert done.returncode == 1
    assert expected in done.stderr


SCRIPTS = (
    "train_with_config.py",
    "evaluate_model.py",
    "export_model.py",
    "split_dataset.py",
    "tinker_finetune.py",
)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *((name, 'TINKER_API_KEY = "tml-k9"') for name in SCRIPTS),
        ("my_evaluation.py", 'tinker_api_key = "tml-k9"'),
        ("export_model.py", 'API_KEY = "tml-k9"'),
    ],
)
def test_a_key_in_a_script_gets_the_sentence_how_a_key_is_given(
    proj: Path, name: str, line: str
) -> None:
    source = ROOT / (name if name in SCRIPTS else "evaluate_model.py")
    file = proj / name
    text = source.read_text(encoding="utf-8")
    place = text.index("\nif __name__") if "\nif __name__" in text else 0
    file.write_text(f"{text[:place]}\n{line}\n{text[place:]}", encoding="utf-8")
    command = [sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    where = f"{file}, line {text[:place].count(chr(10)) + 2}: {line.split()[0]} is not a setting."
    assert where in done.stderr and 'export TINKER_API_KEY="..."' in done.stderr
    assert done.stderr.count("\n") == 1 and "k9" not in done.stderr + done.stdout


def test_a_setting_in_a_script_that_does_not_read_it_is_an_error(proj: Path) -> None:
    text = (ROOT / "evaluate_model.py").read_text(encoding="utf-8")
    (proj / "evaluate_model.py").write_text(f"SAMPLING_TEMPERATURE = 0.7\n{text}")
    command = [sys.executable, str(proj / "evaluate_model.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "line 1: SAMPLING_TEMPERATURE has no effect in this script. Write it into" in done.stderr


def test_a_key_that_a_script_puts_into_the_environment_is_left_alone(proj: Path) -> None:
    text = (ROOT / "split_dataset.py").read_text(encoding="utf-8")
    lines = 'import os\nTINKER_API_KEY = "k"\nos.environ["TINKER_API_KEY"] = TINKER_API_KEY\n'
    (proj / "split_dataset.py").write_text(lines + text)
    command = [sys.executable, str(proj / "split_dataset.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "proj/data/word_problems.json does not exist" in done.stderr


def test_names_on_a_scripts_command_line_start_from_the_current_folder(proj: Path) -> None:
    Path("mine.json").write_text(json.dumps([{**GOOD, "input": str(n)} for n in range(10)]))
    done = script("split_dataset.py", "--inputs", "mine.json", "--test-out", "test.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("test.json").is_file()
    assert (proj / "data" / "train_set.json").is_file()
    done = script("evaluate_model.py", "--set", "OUTPUT_DIR=other", "--test-data", "test.json")
    assert "There is no finished run in other." in done.stderr


def test_the_script_without_its_config_says_how_to_get_one(proj: Path) -> None:
    (proj / "config.py").unlink()
    done = script("train_with_config.py")
    assert done.returncode == 1
    assert "proj/config.py does not exist" in done.stderr and "init my-project" in done.stderr


def test_a_terminal_that_lacks_a_character_shows_another_one() -> None:
    Path("data.json").write_text(json.dumps([{**GOOD, "output": "是"}]))
    done = subprocess.run(
        [sys.executable, "-m", "tinkersmith", "stats", "data.json", "是.json"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"?.json" in done.stdout


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "split", "check", "stats", "evaluate", "export", "engine"):
        assert f"  {command} " in shown


@pytest.mark.parametrize(
    "command", ["train", "split", "check", "stats", "evaluate", "export", "engine"]
)
def test_every_command_has_a_help_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tinkersmith {command}" in capsys.readouterr().out


def test_no_command_and_an_unknown_one_are_usage_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    capsys.readouterr()
    assert main(["trian"]) == 2
    assert "did you mean train?" in one_error(capsys)


def test_stats_counts_in_tokens_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_model(Path("model"))
    Path("data.json").write_text(json.dumps([GOOD, 7]))
    files = ["data.json", "missing.json"]
    model = ["--base-model", "./model", "--template", "instruction"]
    assert main(["stats", *files, *model]) == 0
    shown = capsys.readouterr().out
    # One token a byte: the template, the texts, and the end token.
    assert len("Instruction: Say yes.\nResponse:\nyes") + 1 == 36
    assert "1 sample, 36 tokens" in shown
    assert "data.json, record 2" in shown
    assert "missing.json" in shown


def test_stats_without_the_models_tokenizer_counts_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data.json").write_text(json.dumps([GOOD]))
    assert main(["stats", "data.json", "--base-model", "Qwen/Qwen3-8B"]) == 0
    assert "1 sample, 11 characters" in capsys.readouterr().out
