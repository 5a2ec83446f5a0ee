"""A gzip file -> its unpacked bytes, in order or from any place, without holding them.

This module does not handle lines or records.
"""

import io
import shlex
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tinkersmith.errors import UserError
from tinkersmith.files import open_regular

GZIP_MARK = b"\x1f\x8b"
_PIECE = 1 << 16  # packed bytes that are read at a time
_APART = 16_000_000  # unpacked bytes between two places; each takes about 40 kB of memory
_GZIP_FORM = 31  # tells zlib to expect gzip's header, and to check its sum
# Text packs to a tenth, or to a fiftieth where it repeats itself. gzip's utmost is a thousandth.
_BOMB_RATIO, _BOMB_SIZE = 200, 1_000_000_000  # unpacked per packed byte; unpacked bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """How to go on unpacking from somewhere."""

    start: int  # unpacked byte
    packed: int  # byte of the file
    inflating: Any  # zlib's state; None at the start of the file. Only copies of it are used.


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A gzip file of one or several members, and the places that it can be unpacked from.

    `unpacking` finds the places. Any thread may `read` what has been unpacked once.
    """

    path: Path
    places: list[_Place] = field(default_factory=lambda: [_Place(0, 0, None)])

    def unpacking(self, file: BinaryIO, *, remember: bool = True) -> "Unpacking":
        """The unpacked bytes of the open file, from the beginning.

        Args:
            remember: find the places for `read`.
        """
        return Unpacking(self, file, self.places[0], remember=remember)

    def read(self, start: int, size: int) -> bytes:
        """`size` unpacked bytes from `start`; fewer at the end.

        Raises:
            OSError: the file cannot be read.
            UserError: it is damaged.
        """
        place = self.places[bisect_right(self.places, start, key=lambda place: place.start) - 1]
        with open_regular(self.path) as file:
            unpacked = io.BufferedReader(Unpacking(self, file, place, remember=False), _PIECE)
            before = start - place.start
            while before > 0 and (skipped := len(unpacked.read(min(before, 1 << 20)))):
                before -= skipped
            return unpacked.read(size)


class Unpacking(io.RawIOBase):
    """The unpacked bytes of an open gzip file."""

    def __init__(
        self, packed: PackedFile, file: BinaryIO, place: _Place, *, remember: bool
    ) -> None:
        super().__init__()
        self._packed, self._file, self._remember = packed, file, remember
        self._inflating = zlib.decompressobj(_GZIP_FORM)
        if place.inflating is not None:
            self._inflating = place.inflating.copy()
        file.seek(place.packed)
        self._data = b""  # packed bytes that are read and not yet unpacked
        self._start = place.start  # unpacked bytes so far

    @property
    def packed_bytes(self) -> int:
        """How many bytes of the file are unpacked."""
        return self._file.tell() - len(self._data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._unpack(len(view))
        view[: len(piece)] = piece
        self._start += len(piece)
        self._check_ratio()
        is_due = self._start >= self._packed.places[-1].start + _APART
        if self._remember and is_due and not self._inflating.eof:
            state = self._inflating.copy()
            self._packed.places.append(_Place(self._start, self.packed_bytes, state))
        return len(piece)

    def _unpack(self, most: int) -> bytes:
        """The next unpacked bytes, at least one; b"" at the end."""
        while True:
            if self._inflating.eof and not self._next_member():
                return b""
            # Bytes that did not fit before come out without new packed ones.
            try:
                piece = self._inflating.decompress(self._data, most)
            except zlib.error as error:
                raise damaged_gzip(self._packed.path, str(error)) from None
            rest = self._inflating.unused_data if self._inflating.eof else None
            self._data = self._inflating.unconsumed_tail if rest is None else rest
            if piece:
                return piece
            if not self._inflating.eof and not self._data:
                self._data = self._file.read(_PIECE)
                if not self._data:
                    raise damaged_gzip(self._packed.path, "it ends before its content does")

    def _next_member(self) -> bool:
        """Begin the next member; False if there is none."""
        while not (data := self._data.lstrip(b"\0")):  # zeros may fill the file up
            self._data = self._file.read(_PIECE)
            if not self._data:
                return False
        self._data = data + self._file.read(1) if len(data) == 1 else data
        if not self._data.startswith(GZIP_MARK):
            raise damaged_gzip(self._packed.path, "other bytes follow after its end")
        self._inflating = zlib.decompressobj(_GZIP_FORM)
        return True

    def _check_ratio(self) -> None:
        if self._start > _BOMB_SIZE and self._start > _BOMB_RATIO * self.packed_bytes:
            raise UserError(
                f"{self._packed.path} unpacks to more than {_BOMB_RATIO} times its size, as no "
                "usual text does. If that is what it should hold, unpack it with: gunzip -k "
                f"{shlex.quote(str(self._packed.path))}"
            )


def damaged_gzip(path: Path, reason: str) -> UserError:
    """The sentence about a gzip file that cannot be unpacked."""
    return UserError(f"{path} is a damaged gzip file ({reason.rstrip('.')}). Make it again.")
