"""What is on disk is always the old state or the new one."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinkersmith import files
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


def test_a_folder_that_another_process_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(FileExistsError, match="exists already"),
        new_folder(tmp_path / "export"),
        new_folder(tmp_path / "export") as faster,
    ):
        (faster / "first.txt").write_text("first")
    assert [file.name for file in (tmp_path / "export").iterdir()] == ["first.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["export"]


def test_where_the_system_has_no_locks_folders_are_made_and_leftovers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    left = tmp_path / ".export.abcdefgh.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    with new_folder(tmp_path / "export") as new:
        (new / "whole.txt").touch()
    assert sorted(tmp_path.iterdir()) == [left, tmp_path / "export"]


def test_what_a_killed_process_left_of_a_folder_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = "import sys, time; from tinkersmith.files import new_folder\n"
    code += "with new_folder(sys.argv[1]) as new: (new / 'a').touch(); print(new, flush=True)"
    code += "; time.sleep(60)"
    target = tmp_path / "中文 (1)"
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        killed, writing = (
            Path((program.stdout or sys.stdin).readline().rstrip("\n")) for program in programs
        )
        programs[0].kill()
        programs[0].wait()
        others = [tmp_path / name for name in (".中文 (1).notes.tmp", ".another.abcdefgh.tmp")]
        for folder in (killed, writing, *others):
            folder.mkdir(exist_ok=True)
            os.utime(folder, (0, 0))  # not made in this moment
        with new_folder(target) as new:
            (new / "whole.txt").touch()
        assert not killed.exists()
        assert sorted(tmp_path.iterdir()) == sorted([target, writing, *others])
    finally:
        for program in programs:
            program.kill()
            program.wait()
            assert program.stdout is not None
            program.stdout.close()
