"""`tinkersmith init`: a whole project or nothing, never over a file of the user's."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.cli import init
from tinkersmith.cli.init import STARTER, STARTER_FILES
from tinkersmith.cli.main import main


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


WHOLE = {*STARTER_FILES, "data"}


def test_the_starter_files_are_those_of_the_repository() -> None:
    shipped = {path.relative_to(STARTER).as_posix() for path in STARTER.rglob("*.*")}
    assert {name for name in shipped if not name.endswith(".pyc")} == set(STARTER_FILES)
    for name in STARTER_FILES:
        assert (STARTER / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_it_fills_the_current_folder_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["init"]) == 0
    assert everything(tmp_path) == {*WHOLE, "notes.txt"}
    assert (tmp_path / "config.py").read_bytes() == (ROOT / "config.py").read_bytes()


def test_it_makes_a_folder_with_its_parents(tmp_path: Path) -> None:
    assert main(["init", "deep/my project"]) == 0
    assert everything(tmp_path / "deep" / "my project") == WHOLE


def test_the_printed_commands_work_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "my project"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    assert lines[0] == "cd 'my project'"
    assert [shlex.split(line)[1] for line in lines[1:]] == [
        "split_dataset.py",
        "train_with_config.py",
        "evaluate_model.py",
        "export_model.py",
    ]
    first = subprocess.run(" && ".join(lines[:2]), shell=True, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert Path("my project/data/train_set.json").is_file()
    for line in lines[2:]:
        asked = subprocess.run(
            f"{lines[0]} && {line} --help", shell=True, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stderr


def test_in_the_current_folder_no_change_of_folder_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["init", "."]) == 0
    assert "  cd " not in capsys.readouterr().out


@pytest.mark.parametrize("present", [["config.py"], ["export_model.py", "data/word_problems.json"]])
def test_a_file_that_is_there_is_named_and_nothing_is_written(
    present: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    for name in present:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = everything(folder)
    assert main(["init", "project"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in present) and "nothing was written" in said
    assert said.count("\n") == 1
    assert everything(folder) == before
    assert all((folder / name).read_text() == "mine" for name in present)


def test_a_link_to_nowhere_is_a_file_that_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("config.py").symlink_to(tmp_path / "absent")
    assert main(["init"]) == 1
    assert "config.py" in capsys.readouterr().err


def test_a_file_in_the_place_of_a_folder_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("mine")
    assert main(["init"]) == 1
    assert main(["init", "data"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("cannot be written") == 2
    assert everything(tmp_path) == {"data"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_begun_is_taken_back(
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The fourth of the starter files cannot be read or written."""
    starter = tmp_path / "starter"
    for name in STARTER_FILES[:3]:
        (starter / name).parent.mkdir(parents=True, exist_ok=True)
        (starter / name).write_text("x")

    class Failing(type(starter)):
        def read_bytes(self) -> bytes:
            if self.name == Path(STARTER_FILES[3]).name:
                raise error
            return b"x"

    monkeypatch.setattr(init, "STARTER", Failing(starter))
    assert main(["init", "new/project"]) == (1 if isinstance(error, OSError) else 130)
    assert everything(tmp_path) == {
        "starter",
        *(f"starter/{name}" for name in STARTER_FILES[:3]),
        "starter/data",
    }


def test_init_needs_neither_torch_nor_tinker() -> None:
    code = (
        "import sys; from tinkersmith.cli.main import main; main(['init'])\n"
        "print(sorted({'torch', 'transformers', 'tinker'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
