"""Bytes of a request's body before they are parsed: their limits, and whose operation they are.

A few kilobytes can stand for gigabytes (zstd), and an empty protobuf message takes thirty times its
bytes in memory: both are counted before anything is made of them.
"""

import re
from collections.abc import Iterator

import zstandard

from tinkersmith.engine.errors import Refused

MAX_BODY = 256 * 2**20  # bytes, before and after decompression
MAX_JSON = 32 * 2**20  # bytes; the longest prompts with all that can be asked about them have 20 MB
MAX_PARTS = 100_000  # of a batch: datums, and their inputs and pieces of text
HEAD = 256 * 2**10  # bytes of a refused body that are kept: two blocks, should it be compressed
_ADDRESS = 4096  # bytes in which a batch's model_id and seq_id surely lie
_STEP = 2**20  # bytes decompressed at a time


def decompress(body: bytes, encoding: str, limit: int = MAX_BODY) -> bytes:
    """The body as it was before `encoding` ("" or "zstd"), of at most `limit` bytes."""
    if encoding in ("", "identity"):
        return body
    if encoding != "zstd":
        raise Refused(f"content-encoding {encoding!r} is not supported; send zstd or none.")
    try:
        size = zstandard.frame_content_size(body)
        if size < 0:  # the frame does not say: it is only counted first, and nothing kept
            size = 0
            for piece in _unzstd(body):
                size += len(piece)
                if size > limit:
                    break
        if size > limit:
            raise Refused(f"the body is larger than {limit >> 20} MiB when decompressed.")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Refused(f"the body is not valid zstd: {error}.") from None


def _unzstd(body: bytes) -> Iterator[bytes]:
    return zstandard.ZstdDecompressor().read_to_iter(body, write_size=_STEP)


def batch_address(head: bytes, encoding: str) -> tuple[str, int] | None:
    """model_id and seq_id of a batch whose body begins with `head`: the SDK writes them first."""
    try:
        if encoding == "zstd":
            head = next(_unzstd(head), b"")
        head = head[:_ADDRESS]
        number, start, end = _field(head, 0)
        model_id = head[start:end].decode()
        sequence, start, end = _field(head, end)
    except (zstandard.ZstdError, ValueError):  # also of UTF-8
        return None
    if (number, sequence) != (1, 2) or not model_id:
        return None
    return model_id, _varint(head, start)[0]


def json_address(head: bytes) -> tuple[str, int] | None:
    """The same of a JSON body that is too large or broken."""
    model_id = re.search(rb'"model_id"\s*:\s*"([\x20-\x7e]+?)"', head)
    seq_id = re.search(rb'"seq_id"\s*:\s*(\d{1,18})\b', head)
    return (model_id[1].decode(), int(seq_id[1])) if model_id and seq_id else None


def check_parts(body: bytes, limit: int = MAX_PARTS) -> None:
    """Raises: Refused: a batch of more parts. One that is broken is left to its parser."""
    try:
        for count, _ in enumerate(_parts(body)):
            if count >= limit:
                raise Refused(f"the batch has more than {limit:,} parts: send smaller batches.")
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
