"""Looking after other processes: whether one is gone, and waiting for a thing to happen."""

import time
from collections.abc import Callable
from pathlib import Path

# Seconds that what must happen may take: a loaded machine is slow, and no clock decides a test.
PATIENCE = 300.0


def is_gone(pid: int) -> bool:
    """Ended, or only waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether a condition becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
