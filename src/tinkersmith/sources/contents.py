"""A file, compressed or not -> its bytes: in order, or whole as far as the memory allows.

This module does not handle encodings or records.
"""

import io
import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import open_regular
from tinkersmith.paths import is_hub_name
from tinkersmith.sources.packed import GZIP_MARK, PackedFile

_WHOLE_AT_MOST = 1_000_000_000  # bytes that are read whole on any machine (9 GB of memory)
_MEMORY_PER_BYTE = 10  # bytes of memory for a byte of a file that is read whole, at most
_PIECE = 1 << 20  # unpacked bytes that are read at a time
_PACKED_PIECE = 1 << 16  # packed bytes that are read at a time
# zstd unpacks all that it is given: 4 bytes make 128 kB at most, so 2 kB stay below 64 MB.
_ZSTD_PIECE = 1 << 11
_LARGEST_WINDOW = 1 << 27  # bytes of memory to unpack with: the limit of the program zstd, too
# Usual text packs to a tenth. More than this is no data, but something to fill a disk with.
_BOMB_RATIO, _BOMB_SIZE = 1000, 1_000_000_000  # unpacked per packed byte; unpacked bytes
_MARKS = (
    (GZIP_MARK, "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
LONGEST_MARK = 6  # bytes
_UNPACK_WITH = {"gzip": "gunzip -k", "zstd": "zstd -d", "bzip2": "bunzip2 -k", "xz": "unxz -k"}


def compression_of(start: bytes) -> str:
    """How a file is compressed that begins so: "gzip", "zstd", "bzip2", "xz", or not: ""."""
    if start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F:
        return "zstd"  # a frame to be skipped, with which parallel programs begin
    return next((name for mark, name in _MARKS if start.startswith(mark)), "")


@contextmanager
def open_content(path: Path) -> Generator[BinaryIO, None, None]:
    """The file's unpacked bytes in order. The stream can seek only if the file is not compressed.

    Raises:
        UserError: it cannot be read, or is no regular file. Reading raises it if it is damaged.
    """
    try:
        with open_regular(path) as file:
            compression = compression_of(file.read(LONGEST_MARK))
            file.seek(0)
            if not compression:
                yield file
            elif compression == "gzip":
                unpacking = PackedFile(path).unpacking(file, remember=False)
                yield cast("BinaryIO", io.BufferedReader(unpacking, _PIECE))
            else:
                yield cast(
                    "BinaryIO", io.BufferedReader(_Unpacked(path, file, compression), _PIECE)
                )
    except OSError as error:
        raise unreadable(path, error) from None


def read_content(path: Path, most: int) -> bytes:
    """All unpacked bytes of a file, which may be `most`.

    Raises:
        UserError: it cannot be read, is damaged, or would not fit into the memory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name the files in it.")
    with open_content(path) as file:
        packed = not file.seekable()
        if not packed and os.fstat(file.fileno()).st_size > most:
            raise too_large(path, most)
        if not packed:
            data = file.read(most + 1)
            if len(data) > most:  # it grows while it is read
                raise too_large(path, most)
            return data
        pieces: list[bytes] = []
        size = 0
        while piece := file.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise UserError(
                    f"{path} unpacks to more than {most / 1e9:.0f} GB, which would not fit into "
                    f"this machine's memory. {_how_to_stream(path)}"
                )
        return b"".join(pieces)


def most_bytes() -> int:
    """The size up to which a file is read whole: what is known to fit into the memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        memory = 0
    return max(_WHOLE_AT_MOST, memory // _MEMORY_PER_BYTE)


def too_large(path: Path, most: int) -> UserError:
    """The sentence about a file that does not fit into the memory."""
    return UserError(
        f"{path} has more than {most / 1e9:.0f} GB, which would not fit into this machine's memory "
        f"as a whole. {_how_to_stream(path)}"
    )


def command_to_convert(path: Path | str) -> str:
    """The command that writes a file of any kind as JSON Lines, which are read as a stream."""
    name = Path(path)
    if is_hub_name(name.as_posix()):
        name = Path(name.name.partition(":")[0])
    while name.suffix:
        name = name.with_suffix("")
    out = f"{name}-converted.jsonl"
    return f"tinkersmith convert {shlex.quote(str(path))} --out {shlex.quote(out)}"


def _how_to_stream(path: Path) -> str:
    return f"Write it as JSON Lines, which are read as a stream: {command_to_convert(path)}"


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of an open zstd, bzip2 or xz file."""

    def __init__(self, path: Path, file: BinaryIO, compression: str) -> None:
        super().__init__()
        self._path, self._file, self._compression = path, file, compression
        self._decompressor = _decompressor(path, compression)
        self._packed = b""  # bytes that are read and not yet unpacked
        self._ready = memoryview(b"")  # unpacked bytes that nobody has asked for yet
        self._size = 0  # unpacked bytes so far
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            if not self._unpack(len(view)):
                return 0
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, most: int) -> bool:
        """Unpack some more; False at the end."""
        if self._decompressor.eof and not self._next_frame():
            return False
        hungry = getattr(self._decompressor, "needs_input", True)
        if not self._packed and hungry:
            size = _ZSTD_PIECE if self._compression == "zstd" else _PACKED_PIECE
            self._packed = self._file.read(size)
            if not self._packed:
                raise self._damaged("it ends before its content does")
        packed, self._packed = self._packed, b""
        # zlib's cousins raise each their own error, one of them OSError.
        try:
            if self._compression == "zstd":
                unpacked = self._decompressor.decompress(packed)
            else:
                unpacked = self._decompressor.decompress(packed, most)
        except MemoryError:
            raise self._damaged("it needs too much memory") from None
        except Exception as error:
            reason = str(error)
            if "too much memory" in reason or "Memory usage limit" in reason:
                raise UserError(
                    f"{self._path} needs more than {_LARGEST_WINDOW / 1e6:.0f} MB of memory to be "
                    f"unpacked. Pack it again with the usual options of {self._compression}."
                ) from None
            raise self._damaged(reason) from None
        self._ready = memoryview(unpacked)
        self._size += len(unpacked)
        if self._size > _BOMB_SIZE and self._size > _BOMB_RATIO * self._file.tell():
            unpack = f"{_UNPACK_WITH[self._compression]} {shlex.quote(str(self._path))}"
            raise UserError(
                f"{self._path} unpacks to more than {_BOMB_RATIO:,} times its size, as no usual "
                f"text does. If that is what it should hold, unpack it with: {unpack}"
            )
        return True

    def _next_frame(self) -> bool:
        """Begin the next frame, stream or member; False if there is none."""
        data = bytes(self._decompressor.unused_data) + self._packed
        data = data or self._file.read(_ZSTD_PIECE)
        while data and not data.strip(b"\0"):  # zeros may fill the file up
            data = self._file.read(_ZSTD_PIECE)
        if not data:
            return False
        data = data.lstrip(b"\0")
        if len(data) < LONGEST_MARK:
            data += self._file.read(LONGEST_MARK)
        if compression_of(data) != self._compression:
            raise self._damaged("other bytes follow after its end")
        self._packed = data
        self._decompressor = _decompressor(self._path, self._compression)
        return True

    def _damaged(self, reason: str) -> UserError:
        kind = self._compression
        return UserError(
            f"{self._path} is a damaged {kind} file ({reason.rstrip('.')}). Make it again."
        )


def _decompressor(path: Path, compression: str) -> Any:
    """An object of zstandard, bz2 or lzma, which agree in what `_Unpacked` uses."""
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
    try:  # some builds of Python lack them
        if compression == "bzip2":
            import bz2

            return bz2.BZ2Decompressor()
        import lzma

        return lzma.LZMADecompressor(memlimit=_LARGEST_WINDOW)
    except ImportError:
        raise UserError(
            f"{path} is a {compression} file, which this build of Python cannot unpack. Unpack it "
            f"with: {_UNPACK_WITH[compression]} {shlex.quote(str(path))}"
        ) from None
