"""SIGINT, SIGTERM and SIGHUP -> a run that ends in order. This module saves nothing itself.

The first signal is held back while the loop is between two safe points, so that it can finish and
save the steps that it has sent. The second one is never held back.
"""

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tinkersmith.progress import Clock

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_REQUEST = 1.0  # seconds: a terminal that closes sends SIGHUP, and its shell sends it again


class Interruption:
    """Whether a signal asked the run to end, and what happens when one arrives."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._number = 0  # of the last signal
        self._first_at = 0.0  # of the clock
        self._held_back = False
        self._pending = False  # a signal arrived, and nobody has `seen` it yet

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: end the program's work here, or at the loop's next safe point.

        Raises:
            KeyboardInterrupt: on SIGINT.
            SystemExit: on another signal, with the exit code that shells expect.
        """
        now, first = self._clock(), not self._number
        if first:
            self._first_at = now
        elif number != signal.SIGINT and now - self._first_at < _ONE_REQUEST:
            return  # the first one once more; a second Ctrl-C is meant
        self._number = number
        self._pending = True
        if not (first and self._held_back):
            raise _ending(number)

    def request(self, number: int) -> None:
        """Ask a run in another thread to end, as a signal would: at its next safe point."""
        self._number, self._pending = number, True

    def check(self) -> None:
        """A safe point: raise what `receive` held back, or what was swallowed on its way.

        Python calls handlers anywhere, also in callbacks whose exceptions are only printed.
        """
        if self._pending:
            raise _ending(self._number)

    def seen(self) -> None:
        """Note that the exception has arrived: `check` does not raise it again."""
        self._pending = False

    @contextmanager
    def held_back(self) -> Generator[None, None, None]:
        """Within the block, the first signal waits for a safe point; the block's end is one."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        self.check()

    @contextmanager
    def at_once(self) -> Generator[None, None, None]:
        """A part of a `held_back` block that may take long and leaves nothing half done."""
        before, self._held_back = self._held_back, False
        try:
            self.check()
            yield
        finally:
            self._held_back = before


@contextmanager
def interruption() -> Generator[Interruption, None, None]:
    """Within the block, signals go to the `Interruption`; afterwards to whom they went before.

    A signal that is ignored (as by nohup) or that the program handles itself is left alone, and so
    are all outside the main thread, where Python handles none. Blocks may be nested.
    """
    received = Interruption()
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            is_ours = isinstance(getattr(handler, "__self__", None), Interruption)
            if is_ours or handler in (signal.SIG_DFL, signal.default_int_handler):
                former[number] = handler
                signal.signal(number, received.receive)
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
