"""What is on disk is always the old state or the new one."""

import errno
import os
from pathlib import Path

import pytest

from tinkersmith.files import new_folder, write_atomically, write_json


def test_a_written_file_holds_exactly_what_was_given(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "a.txt", "中文\n")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "中文\n"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"version": 1})

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_json(target, {"version": 2})
    assert target.read_text() == '{\n  "version": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "export") as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []

    with new_folder(tmp_path / "export") as folder:
        (folder / "whole.txt").write_text("whole")
    assert [file.name for file in (tmp_path / "export").iterdir()] == ["whole.txt"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    with new_folder(tmp_path / "export") as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "export"):
        pass
    with new_folder(tmp_path / "export", overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [file.name for file in (tmp_path / "export").iterdir()] == ["new.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["export"]
