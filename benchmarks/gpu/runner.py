"""Blocks of a benchmark, each in a process of its own, within one time budget -> their outcomes.

Knows nothing of GPUs or models. A process imports what its block needs while other blocks still
run, and waits for its turn.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu import ROOT, SOURCES

Figures = dict[str, Any]
Status = Literal["ok", "wrong", "failed", "not run"]

NO_TIME = "no time left"
_POLL = 0.05  # seconds
_LOG = 6000  # characters of a block's output that an outcome keeps: the last ones


class Wrong(Exception):
    """A block raises it when what it measured is outside its limits."""


def reason_of(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind


@dataclass(frozen=True, slots=True)
class Block:
    """A generator function of a module, and what it is called with.

    `work` yields its figures so far; each yield replaces the last. It is named to the process by
    its module, so it must stand at the top level of one.
    """

    name: str
    kind: str
    work: Callable[..., Iterator[Figures]]
    arguments: Mapping[str, Any] = field(default_factory=dict)  # as JSON can hold them
    limit: float = 60  # seconds, after which it is ended; it begins only if half of them are left
    side_by_side: bool = False  # may run while others of this sort do
    why_not: str = ""  # why it cannot run here


@dataclass(frozen=True, slots=True)
class Outcome:
    block: Block
    status: Status
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    reason: str = ""  # one line, unless the status is "ok"
    log: str = ""  # the end of what the block wrote to its output


def run(blocks: Sequence[Block], deadline: float, at_once: int = 1) -> Iterator[Outcome]:
    """Yield the outcome of each block as it ends.

    `deadline` is a time of time.monotonic(), when whatever still runs is ended. At most `at_once`
    blocks run side by side, and as many more are made ready.
    """
    waiting, ready, running = deque(blocks), deque[_Process](), list[_Process]()
    with tempfile.TemporaryDirectory(prefix="tinkersmith-gpu-") as folder:
        try:
            while waiting or ready or running:
                while waiting and len(ready) < at_once:
                    block = waiting.popleft()
                    if block.why_not:
                        yield Outcome(block, "not run", reason=block.why_not)
                    elif not _is_time_for(block, deadline):
                        yield Outcome(block, "not run", reason=NO_TIME)
                    else:
                        ready.append(_Process(block, Path(folder) / str(len(waiting))))
                while ready and _may_begin(ready[0].block, running, at_once):
                    process = ready.popleft()
                    if _is_time_for(process.block, deadline):
                        process.begin(deadline)
                        running.append(process)
                    else:
                        process.end()
                        yield Outcome(process.block, "not run", reason=NO_TIME)
                for process in [process for process in running if process.has_ended()]:
                    running.remove(process)
                    yield process.outcome()
                time.sleep(_POLL)
        finally:
            for process in (*ready, *running):
                process.end()


def _is_time_for(block: Block, deadline: float) -> bool:
    return deadline - time.monotonic() >= block.limit / 2


def _may_begin(block: Block, running: Sequence["_Process"], at_once: int) -> bool:
    if not running:
        return True
    blocks = [block, *(process.block for process in running)]
    return all(block.side_by_side for block in blocks) and len(running) < at_once


class _Process:
    """The process of a block: started, then told to begin, then over."""

    def __init__(self, block: Block, files: Path) -> None:
        self.block = block
        self.result, self.output = files.with_suffix(".json"), files.with_suffix(".log")
        self.began = self.allowed = 0.0
        self.overran = False
        work = f"{block.work.__module__}:{block.work.__qualname__}"
        arguments = json.dumps(dict(block.arguments))
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker", str(self.result), work, arguments],
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, which can be ended as a whole
            )

    def begin(self, deadline: float) -> None:
        self.began = time.monotonic()
        self.allowed = min(self.block.limit, deadline - self.began)
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it may have ended already
            self.popen.stdin.write(b"begin\n")
            self.popen.stdin.flush()

    def has_ended(self) -> bool:
        if self.popen.poll() is not None:
            return True
        self.overran = time.monotonic() - self.began > self.allowed
        return self.overran

    def end(self) -> None:
        """End it and all processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()

    def outcome(self) -> Outcome:
        seconds = time.monotonic() - self.began
        self.end()
        log = self.output.read_text(encoding="utf-8", errors="replace")
        result: dict[str, Any] = {"status": "running", "figures": {}}
        with contextlib.suppress(FileNotFoundError):
            result = json.loads(self.result.read_text(encoding="utf-8"))
        status, reason = result["status"], result.get("reason", "")
        if status == "running":  # it did not come to its end
            status, reason = "failed", self._why_it_broke_off(log)
        return Outcome(self.block, status, seconds, result["figures"], reason, log[-_LOG:])

    def _why_it_broke_off(self, log: str) -> str:
        if self.overran:
            return f"no end within {self.allowed:.0f} s"
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        code = self.popen.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"{how}: {lines[-1]}" if lines else how


def _environment() -> dict[str, str]:
    """The same code as here, no hub, and output that is not held back."""
    folders = [str(SOURCES), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
