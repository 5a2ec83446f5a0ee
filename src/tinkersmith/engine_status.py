"""The file in which a running engine says what it does, for programs on the same machine.

The engine writes it (engine/server/status.py), and the dashboard reads it. It holds no key.
"""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinkersmith.files import read_json_object

STATUS_VERSION = 1
HEARTBEAT = 30.0  # seconds after which an engine writes the file again, even if nothing changed
SILENCE = 3 * HEARTBEAT  # seconds after which it counts as gone, on whatever machine it runs
_NAME = re.compile(r"status-(\d{1,10})\.json")
_LARGEST = 10_000_000  # bytes


def status_file(folder: Path, pid: int) -> Path:
    """Where the engine with this process id writes, in its folder. Several may share a folder."""
    return folder / f"status-{pid}.json"


def engine_statuses(folder: Path) -> list[dict[str, Any]]:
    """What the engines that run in this folder say, the newest first."""
    statuses = [status for _, status in _read_all(folder) if is_alive(status)]
    return sorted(statuses, key=lambda status: -_number(status.get("started")))


def is_alive(status: dict[str, Any]) -> bool:
    """Whether the engine that wrote this still runs."""
    if not time.time() - _number(status.get("updated")) <= SILENCE:  # nor if that is NaN
        return False
    if status.get("host") != socket.gethostname():  # its process ids mean nothing here
        return True
    try:
        os.kill(int(_number(status.get("pid"))) or -1, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def remove_stale(folder: Path) -> None:
    """Remove the files of engines that were killed."""
    for file, status in _read_all(folder):
        if not is_alive(status):
            with suppress(OSError):
                file.unlink()


def _read_all(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    found: list[tuple[Path, dict[str, Any]]] = []
    for file in folder.glob("status-*.json"):
        match = _NAME.fullmatch(file.name)
        with suppress(OSError, ValueError):  # removed by its engine, or not written by one
            status = read_json_object(file, _LARGEST)
            if match and status.get("pid") == int(match[1]):
                found.append((file, status))
    return found


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    with suppress(OverflowError):  # a damaged file may have an integer of any length
        return float(value)
    return 0.0
