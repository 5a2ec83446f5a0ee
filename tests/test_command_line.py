"""The commands that messages quote: they work as printed, from where the user stands."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.cli.main import main
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


def _quoted_options(function: ast.AST) -> Iterator[tuple[str, str]]:
    """The task and each option of the command lines that a function makes, its variables too."""
    values = {
        target.id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(function):
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "command_line":
            continue
        task, *rest = call.args
        named = [node.id for part in rest for node in ast.walk(part) if isinstance(node, ast.Name)]
        for part in [*rest, *(values[name] for name in named if name in values)]:
            for node in ast.walk(part):
                if isinstance(node, ast.Constant) and str(node.value).startswith("--"):
                    assert isinstance(task, ast.Constant)
                    yield str(task.value), str(node.value)


def test_each_option_of_a_quoted_line_is_one_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, set[str]] = {}
    for task in COMMANDS:
        with pytest.raises(SystemExit):
            main([task, "--help"])
        options[task] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    quoted = {
        (task, option, file.name)
        for file in (ROOT / "src" / "tinkersmith").rglob("*.py")
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for task, option in _quoted_options(function)
    }
    assert ("evaluate", "--test-data", "words.py") in quoted and len(quoted) > 15
    assert [line for line in sorted(quoted) if line[1] not in options[line[0]]] == []
