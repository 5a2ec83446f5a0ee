"""Looking after other processes: whether one is gone, and waiting for a thing to happen."""

import time
from collections.abc import Callable
from pathlib import Path


def is_gone(pid: int) -> bool:
    """Ended, or only waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
