"""How much memory a process takes, as the kernel counts it."""

import os
from pathlib import Path


def resident_gb(what: str, process: int | None = None) -> float:
    """Now (`what` is VmRSS), or at most so far (VmHWM); of this process if none is named.

    Not ru_maxrss: a process begins with that of the process that started it.
    """
    for line in Path(f"/proc/{process or os.getpid()}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise ValueError(f"no {what}")
