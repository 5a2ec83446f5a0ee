"""metrics.jsonl, while it grows -> the values that trackers show, step by step."""

import json
import os
import zlib
from array import array
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import unreadable
from tinkersmith.files import open_regular
from tinkersmith.trackers.protocol import StepValues

_MOST_AT_ONCE = 4_000_000  # bytes
# What the names in metrics.jsonl are called in a tracker. "eval/..." keeps its name; numbers that
# are missing here say nothing as a curve.
_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "epoch": "train/epoch",
    "epoch_loss": "train/epoch_loss",
    "validation_loss": "validation/loss",
}


class MetricsFollower:
    """Reads the lines of metrics.jsonl that are new, as often as it is asked.

    A run that lost its server cuts the file and writes some steps again. The lines that were read
    are therefore compared by their checksums with those that are there.
    """

    def __init__(self, file: Path, skip: int = 0) -> None:
        self._file = file
        self._skip = skip  # lines at the beginning that the tracker has
        self._ends = array("Q")  # bytes from the beginning of the file to each line's end
        self._sums = array("I")  # a checksum of each line

    @property
    def lines(self) -> int:
        """How many whole lines were read, the skipped ones included."""
        return len(self._ends)

    def new_points(self) -> list[StepValues]:
        """The values of the lines that came since the last call; at most some thousand.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open_regular(self._file) as file:
                while self._ends and not self._is_there(file.fileno()):
                    self._ends.pop()
                    self._sums.pop()
                file.seek(self._ends[-1] if self._ends else 0)
                data = file.read(_MOST_AT_ONCE)
        except FileNotFoundError:  # no step is done yet
            return []
        except OSError as error:
            raise unreadable(self._file, error) from None
        points: list[StepValues] = []
        for line in data.split(b"\n")[:-1]:  # the last one has no end yet
            if self.lines >= self._skip and (point := _point_in(line)) is not None:
                points.append(point)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(line) + 1)
            self._sums.append(zlib.crc32(line))
        return points

    def _is_there(self, file: int) -> bool:
        """Whether the last line that was read is still where it was."""
        start = self._ends[-2] if len(self._ends) > 1 else 0
        line = os.pread(file, self._ends[-1] - start, start)
        return line.endswith(b"\n") and zlib.crc32(line[:-1]) == self._sums[-1]


def line_count(file: Path) -> int:
    """The whole lines of a file; 0 where it does not exist.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(file) as opened:
            return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise unreadable(file, error) from None


def _point_in(line: bytes) -> StepValues | None:
    """The values of a line of metrics.jsonl; None for one without any, and for a damaged one.

    A damaged line ends the training itself, with a sentence about it.
    """
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    values = cast("dict[str, Any]", record)
    step = values.get("step")
    shown = {_shown_name(name): value for name, value in values.items() if _is_shown(name, value)}
    return StepValues(step, shown) if isinstance(step, int) and shown else None


def _shown_name(name: str) -> str:
    return _NAMES.get(name, name)


def _is_shown(name: str, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (name in _NAMES or name.startswith("eval/"))
