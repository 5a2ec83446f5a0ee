"""What pyproject.toml says of the package is true. tools/wheel_journey.py installs and uses it."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith import __version__
from tinkersmith.cli.main import main

SOURCE = ROOT / "src" / "tinkersmith"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# The names of modules that differ from those of their packages.
MODULES = {"protobuf": "google", "pyyaml": "yaml", "math-verify": "math_verify"}
# What is imported only where the user has it: each says what to install.
OPTIONAL = {
    "PIL",
    "peft",
    "vllm",
    "pyrage",
    "pyarrow",
    "python_calamine",
    "datasets",
    "modelscope",
    "llguidance",
}


def imported_modules() -> set[str]:
    """The top-level modules that the package imports, but for Python's own and its own."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"tinkersmith"}


def test_the_dependencies_are_what_is_imported() -> None:
    required = [re.split(r"[<>=!~ \[;]", line)[0] for line in PROJECT["dependencies"]]
    assert {MODULES.get(name, name) for name in required} == imported_modules() - OPTIONAL


def test_every_dependency_has_a_lower_bound_and_a_tested_version() -> None:
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    for line in PROJECT["dependencies"]:
        name, bound = line.split(">=")
        assert re.fullmatch(r"[\d.]+", bound), line
        assert f"\n{name.lower().replace('-', '_')}==" in f"\n{tested}", name


def test_every_file_in_the_source_tree_is_shipped() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["tinkersmith"]
    for path in SOURCE.rglob("*"):
        name = path.relative_to(SOURCE).as_posix()
        if path.is_dir() or "__pycache__" in name or (path.parent / "__init__.py").is_file():
            in_package = path.suffix == ".py" or path.is_dir() or "__pycache__" in name
            if in_package:
                continue
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_the_description_has_no_links_that_lead_nowhere_on_a_package_index() -> None:
    text = PROJECT["readme"]["text"]
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
    assert text.strip().startswith("You have a JSON file")
    for script in re.findall(r"python (\w+\.py)", text):
        assert (SOURCE / "starter" / script).is_file()


def test_the_version_is_the_changelogs_newest(capsys: pytest.CaptureFixture[str]) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)[0]
    assert newest == __version__
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tinkersmith {__version__}\n"


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")} - {SOURCE / "starter"}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_starter_script_says_what_it_does() -> None:
    for path in sorted((SOURCE / "starter").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text and text[0].isupper(), Path(path).name
