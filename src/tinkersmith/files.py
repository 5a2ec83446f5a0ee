"""Reading that neither waits nor fills the memory, and writing that leaves no half of a file."""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

LARGEST_JSON_FILE = 200_000_000  # bytes: larger JSON files are not read whole

_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a named pipe, which can be read only once"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)
# How they begin today, and how they did in the first versions.
_LFS_POINTERS = (
    b"version https://git-lfs.github.com/spec",
    b"version https://hawser.github.com/spec",
)
LFS_POINTER = "a pointer of Git LFS to the file, and not the file"
_UNLOCKED = 5.0  # seconds within which a new folder is locked for sure
_umask_lock = threading.Lock()  # the umask can only be read by setting it


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read its bytes. Never waits for somebody to write to it.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe, a socket or a device; `strerror`
            says so.
    """
    try:
        # Before it is opened: opening may wait, or act on a device.
        _check_kind(os.stat(path), path)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except ValueError as error:  # a name with a NUL
        raise OSError(errno.EINVAL, f"its name cannot be one ({error})", str(path)) from None
    try:
        _check_kind(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path | str, largest: int) -> bytes:
    """The bytes of a file, which may have at most `largest`.

    Raises:
        OSError: it has more, or cannot be read; see `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > largest else file.read(largest + 1)
    if size > largest or len(data) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return data


def read_json_object(path: Path | str, largest: int = LARGEST_JSON_FILE) -> dict[str, Any]:
    """The object that a JSON file holds, in UTF-8 with or without BOM.

    Raises:
        OSError: the file cannot be read, or is none; see `open_regular`.
        ValueError: it holds something else; the text says what, and begins with "it" or a place.
    """
    data = read_regular(path, largest)
    if is_lfs_pointer(data):
        raise ValueError(f"it is {LFS_POINTER} (git lfs pull)")
    try:
        value: object = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start:,}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        what = "it is empty" if not data.strip() else f"it is not JSON at {place}: {error.msg}"
        raise ValueError(what) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # Python refuses a number with thousands of digits
        raise ValueError("it has a number with too many digits") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {kind_of_json(value)} instead of an object")
    return cast("dict[str, Any]", value)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so is a pointer of Git LFS to a file that was not fetched."""
    return start[:100].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_LFS_POINTERS)


def kind_of_json(value: object) -> str:
    """What a value read from JSON is, in words: "a list", "the number 3", "null"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number_in_words(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def write_atomically(path: Path | str, data: bytes | str | Iterable[bytes]) -> None:
    """Write `data`, whole or in parts, beside `path`, fsync it, and rename it over `path`.

    Raises:
        OSError: the folder is not writable or the disk is full; `path` is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of a file that is not UTF-8 has unpaired surrogates, which JSON can hold escaped.
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    parts = [content] if isinstance(content, bytes) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; other files of the user follow the umask.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise
    _fsync_folder(path.parent)


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def new_folder(path: Path | str, overwrite: bool = False) -> Generator[Path, None, None]:
    """Yield a temporary folder beside `path`, which becomes `path` if the block raises nothing.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise _exists(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(path) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~_umask())
        _fsync_folder(temporary)
        if not path.exists():
            os.rename(temporary, path)
        elif not overwrite:  # another process was faster
            raise _exists(path)
        else:
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
    _fsync_folder(path.parent)


@contextmanager
def folder_beside(path: Path) -> Generator[Path, None, None]:
    """A temporary folder beside `path`: its disk may have more space than the system's.

    Those that killed processes left beside `path` are removed.
    """
    _remove_half_made(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    lock = _locked(temporary)  # the system drops it when the process ends
    try:
        yield temporary
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)  # it may have been renamed


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "it exists already", str(path))


def _remove_half_made(path: Path) -> None:
    """Remove temporary folders of `path` that no process has any more: see `folder_beside`."""
    names = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}\.tmp")
    for folder in path.parent.iterdir():
        if not names.fullmatch(folder.name):
            continue
        with suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - folder.stat().st_mtime <= _UNLOCKED:
                continue  # it may not be locked yet
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A handle that locks a folder; None where another process has, or the system has no locks."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _check_kind(info: os.stat_result, path: Path | str) -> None:
    """Raise OSError unless `info` is that of a regular file."""
    if not stat.S_ISREG(info.st_mode):
        what = next((words for is_it, words in _KINDS if is_it(info.st_mode)), "it is no file")
        raise OSError(errno.EINVAL, what, str(path))


def _number_in_words(value: float) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out thousands of digits
        return "a number"
    return f"the number {text}" if len(text) < 40 else "a number"


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    with _umask_lock:
        current = os.umask(0)
        os.umask(current)
    return current
