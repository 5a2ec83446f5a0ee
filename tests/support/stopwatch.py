"""Time limits that hold on a busy machine as well: waiting for a core does not count."""

import os
import subprocess
import time
from pathlib import Path

from tests.support.engine import RunningEngine


class Stopwatch:
    """Seconds since its start, less the time that this process and others waited for a core.

    On a quiet machine that is the time on the clock. Beside other programs it does not grow with
    what they compute.
    """

    def __init__(self, *others: RunningEngine | subprocess.Popen) -> None:
        processes = [one.process if isinstance(one, RunningEngine) else one for one in others]
        self._pids = (os.getpid(), *(process.pid for process in processes))
        self._waited = self._waits()
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        elapsed = time.perf_counter() - self._begin
        waits = self._waits()
        return elapsed - sum(wait - self._waited.get(thread, 0.0) for thread, wait in waits.items())

    def _waits(self) -> dict[str, float]:
        """Seconds that each thread has waited for a core; empty if the system reports none."""
        waits: dict[str, float] = {}
        for pid in self._pids:
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    waits[file.parent.name] = int(file.read_text().split()[1]) / 1e9
                except OSError:  # the thread has ended meanwhile
                    continue
        return waits
