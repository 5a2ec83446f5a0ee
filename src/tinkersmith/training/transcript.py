"""The lines that the user sees, on the terminal and in the run's train.log."""

from pathlib import Path


class Transcript:
    """Prints lines and logs them. Lines are held until the log file is known."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._log: Path | None = None

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        if self._log is None:
            self._held.append(text)
        else:
            _append(self._log, [text])

    def attach(self, log: Path) -> None:
        """Log to this file from now on, beginning with the lines so far."""
        _append(log, self._held)
        self._log, self._held = log, []


def _append(log: Path, lines: list[str]) -> None:
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(line + "\n" for line in lines)
