"""The commands that messages quote: they work as printed, from where the user stands."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.command_line import SCRIPTS, command_line, python_command


@pytest.fixture(autouse=True)
def _activated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is empty, and "python" is this Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr("sys.argv", ["my_program.py"])


def project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS.values():
        (folder / script).write_text("")
    return folder


def test_without_scripts_it_is_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    monkeypatch.setattr(shutil, "which", lambda word: str(bin_folder / word))
    assert command_line("train", "--resume", "x") == "tinkersmith train --resume x"
    monkeypatch.setattr(shutil, "which", lambda word: str(tmp_path / word))  # of another Python
    words = shlex.split(command_line("train", "--resume", "runs/my model"))
    assert words[0] == sys.executable
    assert words[-3:] == ["train", "--resume", "runs/my model"]
    answer = subprocess.run([*words[:-2], "--help"], capture_output=True, text=True)
    assert "usage: tinkersmith train" in answer.stdout


def test_a_script_names_the_one_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project(tmp_path / "my project")
    monkeypatch.setattr("sys.argv", ["my project/tinker_finetune.py"])
    assert command_line("export") == "python 'my project/export_model.py'"
    (tmp_path / "my project" / "export_model.py").unlink()
    assert "export_model" not in command_line("export")


def test_a_program_of_the_users_own_finds_the_scripts_of_the_current_folder(
    tmp_path: Path,
) -> None:
    project(tmp_path)
    assert command_line("evaluate", "--limit", 3) == "python evaluate_model.py --limit 3"


@pytest.mark.parametrize("program", ["/venv/bin/tinkersmith", "/venv/lib/tinkersmith/__main__.py"])
def test_the_command_names_itself_where_scripts_are_as_well(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project(tmp_path)
    monkeypatch.setattr("sys.argv", [program])
    assert "train_with_config.py" not in command_line("train")


def test_a_project_named_for_the_package_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project(tmp_path / "tinkersmith")
    monkeypatch.setattr("sys.argv", ["tinkersmith/train_with_config.py"])
    assert command_line("train") == "python tinkersmith/train_with_config.py"


def test_a_python_that_is_not_on_the_path_has_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert python_command() == "python"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert python_command() == sys.executable
    home = Path(sys.executable).parent.parent
    assert python_command(home) == str(Path(sys.executable).relative_to(home))


def test_the_scripts_that_are_named_exist() -> None:
    assert all((ROOT / script).is_file() for script in SCRIPTS.values())
    assert shutil.which("python")
