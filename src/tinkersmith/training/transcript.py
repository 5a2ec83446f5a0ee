"""What the user sees: lines on the terminal and the same in train.log; live progress."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Transcript:
    """Lines are kept until the log file is known."""

    def __init__(self) -> None:
        self._waiting: list[str] | None = []
        self._log: Path | None = None

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        if self._waiting is not None:
            self._waiting.append(text)
        else:
            self._write([text])

    def attach(self, log: Path) -> None:
        self._log = log
        waiting, self._waiting = self._waiting or [], None
        self._write(waiting)

    @contextmanager
    def progress(self, first: int, total: int) -> Iterator["Progress"]:
        progress = Progress(self, first, total)
        try:
            yield progress
        finally:
            progress.close()

    def _write(self, lines: list[str]) -> None:
        assert self._log is not None
        with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(line + "\n" for line in lines)


class Progress:
    """A live line on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, transcript: Transcript, first: int, total: int) -> None:
        self._transcript = transcript
        self._first, self._total = first, total
        self._start = time.monotonic()
        self._said = self._start
        self._tokens = 0
        self._live = sys.stdout.isatty()
        self._bar = None
        if self._live:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, completed=first, state="")
            self._bar.start()

    def step(self, step: int, loss: float, tokens: int) -> float:
        """Show that `step` steps are done; returns the tokens per second so far."""
        self._tokens += tokens
        now = time.monotonic()
        elapsed = max(now - self._start, 1e-6)
        rate = self._tokens / elapsed
        left = elapsed / max(step - self._first, 1) * (self._total - step)
        state = f"loss {loss:.4f}  {rate:,.0f} tokens/s  {_clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, state=state)
        elif now - self._said > _PLAIN_EVERY or step == self._total:
            self._said = now
            self._transcript.say(f"  step {step:,}/{self._total:,}  {state}")
        return rate

    def say(self, text: str) -> None:
        """A line above the live one."""
        if self._bar is not None:
            self._bar.stop()
        self._transcript.say(text)
        if self._bar is not None:
            self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
