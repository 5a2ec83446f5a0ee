"""Writing to disk so that a reader sees the old file or the new one, never half of either."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_umask_lock = threading.Lock()  # the umask can only be read by setting it


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write `data` beside `path`, fsync it, and rename it over `path`.

    Raises:
        OSError: the folder is not writable or the disk is full; `path` is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; other files of the user follow the umask.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
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
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~_umask())
        _fsync_folder(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_folder(path.parent)


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
