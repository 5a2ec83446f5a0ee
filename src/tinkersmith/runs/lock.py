"""One process at a time works on a run: a lock that ends with the process, however it ends."""

import contextlib
import datetime as dt
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tinkersmith.errors import UserError
from tinkersmith.files import read_json_object
from tinkersmith.runs.folder import SAMPLES_FILE, RunFolder

LOCK_FILE = "run.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(run: RunFolder, doing: str, say: Callable[[str], None]) -> Generator[None, None, None]:
    """Within the block, no other process may write to the run.

    The system drops the lock when the process ends. The file names the process, for the sentence
    that another one is refused with; it is removed at the end, and a kill leaves it without a lock.
    A file system that knows no locks is said to be one, and the work goes on.

    Args:
        doing: completes "is in use by process 7, which is ...": "training".

    Raises:
        UserError: another process works on the run.
    """
    path = run.file(LOCK_FILE)
    try:
        handle = _lock(path)
    except BlockingIOError:
        raise UserError(f"{run.name} is in use {_holder(path)}. Wait until that ends.") from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        say(
            f"The file system of {run.path} knows no locks. Make sure that no other process works "
            f"on {run.name}."
        )
        yield
        return
    try:
        started = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        _remove_half_written(run)
        pid = os.getpid()
        holder = {"pid": pid, "host": socket.gethostname(), "since": started, "doing": doing}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({**holder, "born": _birth(pid)}).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the run's folder may have been removed
            path.unlink()
        os.close(handle)


def _remove_half_written(run: RunFolder) -> None:
    """Remove what a killed process had not yet renamed to its name: see files.py."""
    for path in run.path.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """A file descriptor that holds the lock.

    Raises:
        BlockingIOError: another process holds it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since we opened it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _holder(path: Path) -> str:
    """ "by process 7 on host since ...", from what the holder wrote into the file."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        since = str(holder["since"]).replace("T", " ")
        return (
            f"by process {holder['pid']} on {holder['host']} since {since}, "
            f"which is {holder['doing']}"
        )
    except (OSError, ValueError, TypeError, KeyError):  # it is about to write that, or to remove it
        return "by another process"


def run_state(run: RunFolder, diverged: bool, step: int, total: int, *, apart_from: int = 0) -> str:
    """ "running", "diverged", "finished", "stopped early" or "interrupted".

    Args:
        diverged: whether the last line of metrics.jsonl says so.
        step: the last step that was recorded, of `total`.
        apart_from: see `is_held`.
    """
    if is_held(run, apart_from):
        return "running"
    if diverged:
        return "diverged"
    if run.file(SAMPLES_FILE).is_file():  # the last file that a run writes
        return "finished" if step >= total else "stopped early"
    return "interrupted"


def is_held(run: RunFolder, apart_from: int = 0) -> bool:
    """Whether a process other than `apart_from` works on the run, by what run.lock says.

    The lock itself is not tried: that would refuse a process that takes it in this moment.
    """
    try:
        holder = read_json_object(run.file(LOCK_FILE), 10_000)
    except (OSError, ValueError):
        return False
    process = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int):
        return True  # on another machine: nobody can tell from here
    if process == apart_from:
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    # A process id is used again, sooner or later: after a restart of the machine, often at once.
    born, now = holder.get("born"), _birth(process)
    return born is None or now is None or born == now


def _birth(process: int) -> str | None:
    """When a process began, as no other process with its id did; None where nothing tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended, or this system is no Linux
        return None
    ticks = status.rpartition(")")[2].split()[19]  # since the machine started: proc(5), field 22
    return f"{boot} {ticks}"
