"""Clocks that do not depend on how busy the machine is, and lines that a test can wait for."""

import itertools
import threading
from collections.abc import Callable

from tests.support.processes import PATIENCE


def hurried_clock() -> Callable[[], float]:
    """A clock that is a second further at each look."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


class Lines:
    """What was said, line by line."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._changed = threading.Condition()

    def say(self, text: str) -> None:
        with self._changed:
            self.texts.append(text)
            self._changed.notify_all()

    def wait_for(self, words: str, after: int = 0, timeout: float = PATIENCE) -> bool:
        """Wait until `words` stand in a line that came after the first `after` ones."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(words in text for text in self.texts[after:]), timeout
            )
