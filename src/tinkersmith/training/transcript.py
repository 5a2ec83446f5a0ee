"""The lines that the user sees, on the terminal and in the run's train.log."""

import errno
import re
import sys
import threading
from pathlib import Path

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Transcript:
    """Prints lines, unless told not to, and logs them. They are held until the file is known.

    The log has every line, also where they cannot be printed: a full disk behind the output, or a
    terminal that is gone, is said once on standard error. A reader that has gone, as in `| head`,
    ends the work: `say` raises that once, in the thread that made the transcript.

    Args:
        prints: False for the log alone.
    """

    def __init__(self, *, prints: bool = True) -> None:
        self._held: list[str] = []
        self._log: Path | None = None
        self._prints = prints
        self._reader_gone: BrokenPipeError | None = None  # until it is raised
        self._thread = threading.get_ident()

    def say(self, text: str = "") -> None:
        """Log and print a line.

        Raises:
            BrokenPipeError: nobody reads the output any more; raised once.
            OSError: the log cannot be written to.
        """
        if self._log is None:
            self._held.append(text)
        else:
            _append(self._log, [text])
        if self._prints:
            self._print(text)
        if self._reader_gone is not None and threading.get_ident() == self._thread:
            error, self._reader_gone = self._reader_gone, None
            raise error

    def attach(self, log: Path) -> None:
        """Log to this file from now on, beginning with the lines so far."""
        _append(log, self._held)
        self._log, self._held = log, []

    def _print(self, text: str) -> None:
        try:
            print(_showable(text), flush=True)
        except BrokenPipeError as error:
            self._prints, self._reader_gone = False, error
        except (OSError, ValueError) as error:  # ValueError: the output was closed
            self._prints = False
            if isinstance(error, OSError) and error.errno == errno.EIO:
                return  # the terminal is gone, and standard error with it
            reason = getattr(error, "strerror", None) or error
            try:
                print(
                    f"The output cannot be written ({reason}). The run goes on; its train.log has "
                    "every line.",
                    file=sys.stderr,
                )
            except (OSError, ValueError):
                return


def _showable(text: str) -> str:
    """The text with "?" for what standard output cannot show, where it would refuse that."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


def _append(log: Path, lines: list[str]) -> None:
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(_COLOUR.sub("", line) + "\n" for line in lines)
