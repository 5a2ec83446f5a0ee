"""One process at a time works on a run, and no kill leaves a lock behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clocks import Lines
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.lock import LOCK_FILE, is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.lock import locked
with locked(RunFolder(Path(sys.argv[1])), "training", print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = tmp_path / "my-run"
    folder.mkdir()
    return RunFolder(folder)


def test_a_second_process_is_told_who_holds_it_and_a_kill_frees_it(run: RunFolder) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"my-run is in use by process {holder.pid} on .+ since"),
            locked(run, "training", print),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        run.file(".metrics.jsonl.abc.tmp").write_text("half")  # as a kill leaves it
        with locked(run, "training", print):
            assert not run.file(".metrics.jsonl.abc.tmp").exists()
        assert list(run.path.iterdir()) == []
    finally:
        holder.kill()
        holder.communicate()


def test_one_process_cannot_hold_it_twice(run: RunFolder) -> None:
    with (
        locked(run, "training", print),
        pytest.raises(UserError, match=f"by process {os.getpid()} .+, which is training"),
        locked(run, "training", print),
    ):
        pass
    assert not run.file(LOCK_FILE).exists()


def test_a_holder_that_has_written_nothing_yet_is_another_process(run: RunFolder) -> None:
    with locked(run, "training", print):
        run.file(LOCK_FILE).write_text("")
        with (
            pytest.raises(UserError, match="my-run is in use by another process"),
            locked(run, "training", print),
        ):
            pass


def test_a_file_that_was_removed_while_it_was_opened_locks_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and flock the holder ends and removes the file, and a third one makes it."""
    real, opened = fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        opened.append(handle)
        if len(opened) == 1:
            run.file(LOCK_FILE).unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(run, "training", print):
        assert len(opened) == 2
        assert run.file(LOCK_FILE).exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing tells when it began")
def test_a_process_that_got_the_id_of_a_dead_holder_holds_nothing(run: RunFolder) -> None:
    with locked(run, "training", print):
        assert is_held(run)
        holder = json.loads(run.file(LOCK_FILE).read_text())
        run.file(LOCK_FILE).write_text(json.dumps({**holder, "born": "an-earlier-boot 1234"}))
        assert not is_held(run)
        del holder["born"]  # written by an earlier version: its id is all that is known
        run.file(LOCK_FILE).write_text(json.dumps(holder))
        assert is_held(run)


def test_a_file_system_without_locks_is_said_and_the_work_goes_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said = Lines()
    with locked(run, "training", said.say):
        pass
    assert "knows no locks" in said.texts[0]
