"""Bytes of a request's body before they are parsed: their limits, and whose operation they are.

A few kilobytes can expand to gigabytes (zstd), and an empty protobuf message takes thirty times its
bytes in memory: both are counted before anything is made of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from tinkersmith.engine.errors import Refused

MAX_BODY = 256 * 2**20  # bytes, before and after decompression
MAX_JSON = (
    32 * 2**20
)  # bytes; the longest prompt with everything that can be requested about it has 20 MB
MAX_PARTS = 100_000  # of a batch: datums, and their inputs and pieces of text
HEAD = 256 * 2**10  # bytes of a refused body that are read: two zstd blocks
_ADDRESS_BYTES = 4096  # within which the address of a batch is looked for
_STEP = 2**20  # bytes decompressed at a time


class Address(NamedTuple):
    """Which operation a body belongs to: its future can fail even if the rest is unreadable."""

    model_id: str
    seq_id: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """A batch whose limits are checked and which is not yet parsed."""

    address: Address
    plain: bytes | Refused  # decompressed; Refused: why it cannot be read


def open_batch(body: bytes, encoding: str = "") -> Envelope:
    """Decompress and measure a forward_backward body, and read its address.

    Raises:
        Refused: the body has no address, so that no future can fail with the reason.
    """
    try:
        plain = _decompress(body, encoding)
        _check_parts(plain)
    except Refused as refusal:
        return refused_batch(body, encoding, str(refusal))
    address = _batch_address(plain)
    if address is None:
        raise Refused(
            "the body is not a ForwardBackwardRequest protobuf message with a model_id and a "
            "seq_id of at least 1."
        )
    return Envelope(address, plain)


def refused_batch(head: bytes, encoding: str, reason: str) -> Envelope:
    """A batch that cannot be read, addressed by the beginning of its body.

    Raises:
        Refused: with `reason`, if there is no address in it.
    """
    try:
        plain = next(_unzstd(head), b"") if encoding == "zstd" else head
    except zstandard.ZstdError:
        raise Refused(reason) from None
    address = _batch_address(plain)
    if address is None:
        raise Refused(reason)
    return Envelope(address, Refused(reason))


def _decompress(body: bytes, encoding: str) -> bytes:
    """Undo `encoding` ("", "identity" or "zstd").

    Raises:
        Refused: the encoding is unknown, the body is not valid, or it is too large.
    """
    if encoding in ("", "identity"):
        return body
    if encoding != "zstd":
        raise Refused(f"content-encoding {encoding!r} is not supported; send zstd or none.")
    try:
        size = zstandard.frame_content_size(body)
        if size < 0:  # not declared: count the bytes first, and store none
            size = 0
            for piece in _unzstd(body):
                size += len(piece)
                if size > MAX_BODY:
                    break
        if size > MAX_BODY:
            raise Refused(f"the body is larger than {MAX_BODY >> 20} MiB when decompressed.")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Refused(f"the body is not valid zstd: {error}.") from None


def _unzstd(body: bytes) -> Iterator[bytes]:
    return zstandard.ZstdDecompressor().read_to_iter(body, write_size=_STEP)


def json_address(head: bytes) -> Address | None:
    """The address in a JSON body that is too large or malformed, from its first bytes."""
    model_id = re.search(rb'"model_id"\s*:\s*"([\x20-\x7e]+?)"', head)
    seq_id = re.search(rb'"seq_id"\s*:\s*(\d{1,18})\b', head)
    return Address(model_id[1].decode(), int(seq_id[1])) if model_id and seq_id else None


def _batch_address(head: bytes) -> Address | None:
    """Fields 1 and 2 of a ForwardBackwardRequest, which protobuf writes before all others."""
    head = head[:_ADDRESS_BYTES]
    try:
        number, start, end = _field(head, 0)
        model_id = head[start:end].decode()
        sequence, start, _ = _field(head, end)
        seq_id, _ = _varint(head, start)
    except ValueError:  # also of UTF-8
        return None
    return Address(model_id, seq_id) if (number, sequence) == (1, 2) and model_id else None


def _check_parts(body: bytes) -> None:
    """Count the parts of a batch, as far as it is well-formed.

    Raises:
        Refused: there are too many.
    """
    try:
        for count, _ in enumerate(_parts(body)):
            if count >= MAX_PARTS:
                raise Refused(f"the batch has more than {MAX_PARTS:,} parts: send smaller batches.")
    except ValueError:
        return


def _parts(body: bytes) -> Iterator[None]:
    for number, start, end in _fields(body, 0, len(body)):
        yield
        if number == 3:  # a datum
            for _ in _fields(body, start, end):
                yield


def _fields(body: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    while place < end:
        field = _field(body, place)
        yield field
        place = field[2]


def _field(body: bytes, place: int) -> tuple[int, int, int]:
    """A protobuf field's number, and where its value begins and ends.

    Raises:
        ValueError: there is none.
    """
    tag, place = _varint(body, place)
    match tag & 7:
        case 0:
            end = _varint(body, place)[1]
        case 1:
            end = place + 8
        case 2:
            length, place = _varint(body, place)
            end = place + length
        case 5:
            end = place + 4
        case _:
            raise ValueError
    return tag >> 3, place, end


def _varint(body: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    for byte in body[place : place + 10]:
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError
