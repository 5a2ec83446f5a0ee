"""Work that takes long -> lines that say it is under way, and a live line on a terminal.

Nothing that takes more than two seconds is silent. This module knows no steps, answers or servers:
the code that does the work says in words what it does.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LOOK_EVERY = 0.2  # seconds
_ONE_WAIT = 1.0  # seconds between tasks that are one wait for the reader, at most
_BAR_WIDTH = 24
_ERASE = "\r\x1b[2K"

Say = Callable[[str], None]
Clock = Callable[[], float]  # seconds


def allowed_silence(elapsed: float) -> float:
    """How many seconds may pass after a line that came `elapsed` seconds after the work began.

    They grow, so that a log of many hours stays short.
    """
    if elapsed < 10:
        return 2.0
    return 10.0 if elapsed < 60 else 30.0


@dataclass(eq=False)  # two tasks may say the same
class Task:
    """A piece of work that is under way."""

    doing: str  # completes "Still ..."
    begun: float
    reported: float  # when `reached` last made a line
    state: str = ""  # how far it is
    share: float = 0.0  # of the whole


class Progress:
    """Tells the user what is under way. Tasks nest: the innermost one is what takes time now.

    Any thread may call it.

    Args:
        say: prints a line.
        clock: the seconds that have passed since any fixed moment.
        terminal: where to draw the live line; None where the output is not a terminal.
    """

    def __init__(
        self, say: Say, *, clock: Clock = time.monotonic, terminal: TextIO | None = None
    ) -> None:
        self._say, self._clock, self._terminal = say, clock, terminal
        self._aside: Say | None = None
        self._lock = threading.RLock()
        self._tasks: list[Task] = []
        self._last_line = 0.0
        self._idle_since = clock()
        self._drawn = ""

    def say(self, text: str = "") -> None:
        """Print a line, above the live one if there is one."""
        if self._aside is not None:
            self._aside(text)
        else:
            self._print(text)

    @contextmanager
    def aside(self, say: Say) -> Generator[None, None, None]:
        """Within the block, what is said goes to `say`; how far the work is stays visible."""
        before, self._aside = self._aside, say
        try:
            yield
        finally:
            self._aside = before

    def _print(self, text: str) -> None:
        with self._lock:
            self._draw("")
            self._say(text)
            self._last_line = self._clock()

    @contextmanager
    def doing(self, what: str) -> Generator[Task, None, None]:
        """Within the block, `what` is under way: "reading the data", "training step 3"."""
        now = self._clock()
        task = Task(what, begun=now, reported=now)
        with self._lock:
            # Tasks that follow each other at once are one wait for the reader.
            if not self._tasks and now - self._idle_since > _ONE_WAIT:
                self._last_line = now
            self._tasks.append(task)
        try:
            yield task
        finally:
            with self._lock:
                self._tasks.remove(task)
                if not self._tasks:
                    self._idle_since = self._clock()
                    self._draw("")

    def reached(self, task: Task, state: str, share: float) -> None:
        """Note how far a task is; a line says so when the last such line is long ago."""
        with self._lock:
            task.state, task.share = state, share
            now = self._clock()
            due = now - task.reported >= allowed_silence(task.reported - task.begun)
            if due and self._terminal is None:
                task.reported = now
                self._print(f"  {state}")

    def state(self) -> tuple[str, float]:
        """How far the innermost task is that said so, and what share of the whole that is."""
        with self._lock:
            known = next((task for task in reversed(self._tasks) if task.state), None)
            return (known.state, known.share) if known else ("", 0.0)

    def share_of(self, doing: str) -> float | None:
        """What share of the whole a task has done, by its name; None where it is not under way."""
        with self._lock:
            return next((task.share for task in self._tasks if task.doing == doing), None)

    def look(self) -> None:
        """Say what is under way if nothing was said for too long."""
        with self._lock:
            if not self._tasks:
                return
            now, task = self._clock(), self._tasks[-1]
            seconds = now - task.begun
            if self._terminal is not None:
                self._draw(self._live_line(now))
                return
            pace, quiet = task, now - self._last_line
            if len(self._tasks) > 1:
                # Short pieces of a longer task, such as its steps, follow the pace of the whole.
                pace, quiet = self._tasks[-2], min(seconds, quiet)
            if quiet < allowed_silence(self._last_line - pace.begun):
                return
            if seconds < 1:  # the silence before it was that of other tasks
                self._print(f"  Now {task.doing}")
            else:
                self._print(f"  Still {task.doing} ({seconds:.0f} s)")

    def _live_line(self, now: float) -> str:
        task = self._tasks[-1]
        state, share = self.state()
        parts: list[str] = []
        if state:
            filled = round(_BAR_WIDTH * min(max(share, 0.0), 1.0))
            parts += ["━" * filled + "─" * (_BAR_WIDTH - filled), state]
        if not task.state and now - task.begun >= allowed_silence(0):
            parts.append(f"{task.doing} ({now - task.begun:.0f} s)")
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        if self._terminal is None:
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._drawn:
            try:
                self._terminal.write(_ERASE + line)
                self._terminal.flush()
            except (OSError, ValueError):  # the terminal is gone, which must not end the work
                self._terminal = None
            self._drawn = line


@contextmanager
def watched(
    say: Say, *, clock: Clock = time.monotonic, look_every: float = LOOK_EVERY
) -> Generator[Progress, None, None]:
    """A `Progress` that looks from a thread of its own until the block ends."""
    terminal = sys.stdout if sys.stdout.isatty() else None
    progress = Progress(say, clock=clock, terminal=terminal)
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(look_every):
            try:
                progress.look()
            except (OSError, ValueError):  # it cannot be said: the next `say` raises it
                return

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        ended.set()
        thread.join()
