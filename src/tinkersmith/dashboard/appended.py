"""A file that grows line by line -> its new lines. Only what is new is read."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import open_regular

_BLOCK = 1 << 20  # bytes that are read at a time
_REMEMBERED = 256  # bytes before the offset, by which a file that was cut and grew again is known
_LONGEST = 16 << 20  # bytes of a line: a longer one is none of ours


@dataclass(frozen=True, slots=True)
class NewLines:
    """What a look at a file gave."""

    lines: list[bytes]  # whole ones, without their ends
    restarted: bool  # the file was cut or replaced: `lines` are all that it has


class AppendedLines:
    """Reads the lines that were added to a file since the last look.

    A resumed run cuts its files and writes on: then everything is read again. The last line
    counts once its end is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0  # behind the last whole line that was read
        self._before = b""  # the bytes before it
        self._identity: tuple[int, int] | None = None
        self.bytes_read = 0

    def read(self, most_at_first: int | None = None) -> NewLines:
        """The new lines; none while the file is missing.

        Args:
            most_at_first: begin a file at the whole lines within its last so many bytes.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            file = open_regular(self._path)
        except FileNotFoundError:
            restarted = self._identity is not None
            self._forget()
            return NewLines([], restarted)
        with file:
            status = os.fstat(file.fileno())
            restarted = False
            if (status.st_dev, status.st_ino) != self._identity:
                restarted = self._identity is not None
                self._forget()
            elif status.st_size < self._offset or not self._is_continued(file.fileno()):
                restarted = True
                self._forget()
            self._identity = (status.st_dev, status.st_ino)
            if status.st_size == self._offset:
                return NewLines([], restarted)
            skips = False  # the line that the first look begins in the middle of
            if not self._offset and most_at_first is not None and status.st_size > most_at_first:
                self._offset, skips = status.st_size - most_at_first, True
            lines: list[bytes] = []
            rest = b""
            while block := os.pread(file.fileno(), _BLOCK, self._offset + len(rest)):
                self.bytes_read += len(block)
                data = rest + block
                end = data.rfind(b"\n") + 1
                lines += data[:end].split(b"\n")[:-1]
                self._offset += end
                self._before = (self._before + data[:end])[-_REMEMBERED:]
                rest = data[end:]
                if len(rest) > _LONGEST:  # no line of ours: the next look goes on behind it
                    self._offset += len(rest)
                    self._before = rest[-_REMEMBERED:]
                    break
        return NewLines(lines[1:] if skips else lines, restarted)

    def _is_continued(self, handle: int) -> bool:
        """Whether the bytes before the offset are those that were read."""
        length = len(self._before)
        self.bytes_read += length
        return os.pread(handle, length, self._offset - length) == self._before

    def _forget(self) -> None:
        self._offset, self._before, self._identity = 0, b"", None


def record_of(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds; None for a line that is damaged."""
    value: object = None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:  # it may hold NaN, which json reads
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def last_records(path: Path, most: int = 65_536) -> list[dict[str, Any]]:
    """The records of the whole lines within the last `most` bytes of a file.

    Raises:
        UserError: the file cannot be read, or has lines there and none is a record.
    """
    try:
        lines = AppendedLines(path).read(most_at_first=most).lines
    except OSError as error:
        raise unreadable(path, error) from None
    whole = [line for line in lines if line.strip()]
    records = [record for line in whole if (record := record_of(line)) is not None]
    if whole and not records:
        raise UserError(f"{path} is damaged: no line at its end is a JSON object.")
    return records
