"""Bytes of a stream, however they are cut -> whole events, and whether the last one ends an answer.

This module does not handle requests, and reads of an event only what it needs to judge that.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

_END = b"[DONE]"  # OpenAI's
_LAST_TYPES = ("message_stop", "error")  # Anthropic's


class BrokenStream(Exception):
    """A stream that ends before its answer does. What came of a last event is not passed on."""


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of a stream, each piece with whole events only.

    A client that gets half an event reads the next one as its end, be it an error.

    Raises:
        BrokenStream: the stream ends within an event, or without one that ends an answer.
    """
    rest, last = b"", b""
    async with aclosing(cast("Any", pieces)):
        async for piece in pieces:
            rest += piece
            # An event ends with an empty line; lines end with \n or \r\n.
            end = max(rest.rfind(b"\n\n") + 2, rest.rfind(b"\n\r\n") + 3)
            if end < 3:  # there is none
                continue
            events, rest = rest[:end], rest[end:]
            last = _last_data(events) or last
            yield events
    if rest.strip():
        # Some servers leave out the empty line after their last event.
        data = _last_data(rest)
        if not _ends_answer(data):
            raise BrokenStream
        yield rest.rstrip() + b"\n\n"
    elif not _ends_answer(last):
        raise BrokenStream


def _last_data(events: bytes) -> bytes:
    """The data of the last event that has any; empty if none has."""
    start = max(events.rfind(b"\ndata:") + 1, 0 if events.startswith(b"data:") else -1)
    if not events.startswith(b"data:", start):
        return b""
    return events[start + 5 :].split(b"\n", 1)[0].strip()


def _ends_answer(data: bytes) -> bool:
    """Whether no more is to come after an event with this data."""
    if data == _END:
        return True
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, object]", value)
    return "error" in fields or fields.get("type") in _LAST_TYPES
