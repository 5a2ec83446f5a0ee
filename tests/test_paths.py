"""Names of files, seen from the folder that they are written in and from the current one."""

from pathlib import Path

import pytest

from tinkersmith.paths import (
    data_file_seen_from_folder,
    data_file_seen_from_here,
    seen_from_folder,
    seen_from_here,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder below the current one."""
    (tmp_path / "project" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "project" / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("project", "a.json", "project/a.json"),
        ("project", "./a.json", "project/a.json"),
        ("project", "../a.json", "a.json"),
        ("project/runs/one", "../../data/a.json", "project/data/a.json"),
        ("project", "/data/a.json", "/data/a.json"),
        ("project", "~/a.json", "~/a.json"),
        (".", "./a.json", "./a.json"),
    ],
)
def test_a_name_is_seen_from_the_current_folder(
    project: Path, folder: str, name: str, expected: str
) -> None:
    assert seen_from_here(folder, name) == expected
    assert seen_from_here(Path(folder).resolve(), name) == expected


def test_a_file_outside_the_current_folder_has_its_whole_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "data")
    assert seen_from_here("..", "a.json") == str(project / "a.json")
    assert seen_from_here(project, "data/a.json") == "a.json"


def test_a_folder_behind_a_link_is_the_one_that_the_link_leads_to(project: Path) -> None:
    Path("link").symlink_to(project / "runs" / "one", target_is_directory=True)
    assert seen_from_here("link", "../../data/a.json") == "project/data/a.json"
    assert seen_from_folder("link", "project/data/a.json") == "../../data/a.json"


def test_a_data_file_is_looked_up_in_data_only_where_it_does_not_exist_itself(
    project: Path,
) -> None:
    assert data_file_seen_from_here("project", "a.json") == "project/a.json"
    (project / "data" / "a.json").write_text("[]")
    assert data_file_seen_from_here("project", "a.json") == "project/data/a.json"
    (project / "a.json").write_text("[]")
    assert data_file_seen_from_here("project", "a.json") == "project/a.json"


@pytest.mark.parametrize("name", ["a.json", "data/b.json", "../c.json", "/d.json", "~/e.json"])
def test_a_name_comes_back_from_another_folder(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    stored = seen_from_folder("runs/one", name)
    assert seen_from_here("runs/one", stored) in (name, str(project.parent / "c.json"))


def test_a_data_file_that_data_holds_is_stored_with_that_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "data" / "a.json").write_text("[]")
    assert data_file_seen_from_folder("runs/one", "a.json") == "../../data/a.json"
    assert data_file_seen_from_folder("runs/one", "b.json") == "../../b.json"
