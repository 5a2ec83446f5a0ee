"""Malformed request bodies, and the memory that an engine uses to read them."""

import os
from collections.abc import Iterator
from pathlib import Path

import zstandard

from tests.support.engine import RunningEngine

GIB = 2**30


def zstd(data: bytes, filling: bytes = b"", *, declared: bool = True) -> bytes:
    """`data` followed by 2 GiB of `filling`, if any, compressed."""
    pieces = 2 * GIB // len(filling) if filling else 0
    size = len(data) + pieces * len(filling) if declared else -1
    compressor = zstandard.ZstdCompressor().compressobj(size)
    blocks = [compressor.compress(data), *(compressor.compress(filling) for _ in range(pieces))]
    packed = b"".join([*blocks, compressor.flush()])
    assert zstandard.frame_content_size(packed) == size
    return packed


def encoding_of(body: bytes) -> str:
    return "zstd" if body[:4] == zstandard.FRAME_HEADER else "identity"


def memory(engine: RunningEngine, name: str) -> int:
    """Bytes that the engine uses now (VmRSS), or has used at most (VmHWM)."""
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


ZEROS = bytes(2**20)

BROKEN = {
    "cut off": (lambda good: good[:-9], "not a ForwardBackwardRequest"),
    "followed by noise": (lambda good: good + b"\xff" * 99, "not a ForwardBackwardRequest"),
    "zstd, cut off": (
        lambda good: zstd(good + os.urandom(300_000))[:-20],
        "not valid zstd",
    ),
    "zstd bomb of declared size": (lambda good: zstd(good, ZEROS), "when decompressed"),
    "zstd bomb of unknown size": (
        lambda good: zstd(good, ZEROS, declared=False),
        "when decompressed",
    ),
    "a bomb of empty datums": (lambda good: zstd(good + b"\x1a\x00" * 10**7), "100,000 parts"),
    "a bomb of empty texts": (
        lambda good: zstd(good + b"\x1a\x80\xda\xc4\x09" + b"\x0a\x00" * 10**7),
        "100,000 parts",
    ),
}


def pieces_of(head: bytes, filling: bytes = ZEROS) -> Iterator[bytes]:
    yield head
    while True:
        yield filling
