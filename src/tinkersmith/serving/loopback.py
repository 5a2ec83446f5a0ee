"""httpx's requests to a server on this machine, by asyncio's streams.

httpx's own way costs more than twice the CPU time a request, and this process shares the cores with
the engine. It is for HTTP/1.1 of a server that we know; everything else goes httpx's own way.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import httpx

_MOST_IDLE = 512  # connections that are kept for the next requests
_PIECE = 1 << 16  # bytes that are read at a time
_Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_usable(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing())


class LoopbackTransport(httpx.AsyncBaseTransport):
    """Connections to servers on this machine. Used on one event loop only."""

    def __init__(self) -> None:
        self._idle: defaultdict[tuple[str, int], list[_Connection]] = defaultdict(list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        place = request.url.host, request.url.port or 80
        timeout = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        connection = await self._connect(place, timeout.get("connect"))
        try:
            body = await request.aread()
            connection.writer.write(_head_of(request, body) + body)
            async with asyncio.timeout(timeout.get("read")):
                status, headers = await _read_head(connection.reader)
        except BaseException as error:
            connection.writer.close()
            raise _as_httpx(error) from None
        return httpx.Response(
            status, headers=headers, stream=_Body(self, place, connection, headers)
        )

    async def _connect(self, place: tuple[str, int], patience: float | None) -> _Connection:
        idle = self._idle[place]
        while idle:
            # The server closes what has been idle for long.
            if (connection := idle.pop()).is_usable:
                return connection
            connection.writer.close()
        try:
            async with asyncio.timeout(patience):
                return _Connection(*await asyncio.open_connection(*place))
        except TimeoutError:
            raise httpx.ConnectTimeout("no connection in time") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None

    def keep(self, place: tuple[str, int], connection: _Connection) -> None:
        """Let the next request take a connection whose answer has been read to its end."""
        idle = self._idle[place]
        if len(idle) < _MOST_IDLE:
            idle.append(connection)
        else:
            connection.writer.close()

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.writer.close()
        self._idle.clear()


class _Body(httpx.AsyncByteStream):
    """The body of an answer, piece by piece. Only once read to its end, its connection is kept."""

    def __init__(
        self,
        transport: LoopbackTransport,
        place: tuple[str, int],
        connection: _Connection,
        headers: _Headers,
    ) -> None:
        self._transport, self._place, self._connection = transport, place, connection
        self._fields = {name.lower(): value.lower() for name, value in headers}
        self._is_whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with aclosing(cast("Any", self._pieces())) as pieces:
            try:
                async for piece in pieces:
                    yield piece
            except (OSError, EOFError, ValueError) as error:
                raise _as_httpx(error) from None
        self._is_whole = True

    async def _pieces(self) -> AsyncGenerator[bytes]:
        reader, fields = self._connection.reader, self._fields
        if fields.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                yield await reader.readexactly(size)
                await reader.readexactly(2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass  # fields behind the body
        elif b"content-length" in fields:
            left = int(fields[b"content-length"])
            while left:
                piece = await reader.read(min(left, _PIECE))
                if not piece:
                    raise EOFError
                left -= len(piece)
                yield piece
        else:
            while piece := await reader.read(_PIECE):
                yield piece

    async def aclose(self) -> None:
        connection, stays = self._connection, self._fields.get(b"connection") != b"close"
        if self._is_whole and stays and connection.is_usable:
            self._is_whole = False  # it is kept once
            self._transport.keep(self._place, connection)
        else:
            connection.writer.close()


def _head_of(request: httpx.Request, body: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % field for field in request.headers.raw]
    if body and "content-length" not in request.headers:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, _Headers]:
    """The status and the header fields of an answer.

    Raises:
        EOFError: the connection was closed before.
        ValueError: this is no HTTP.
    """
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    version, status = first.split(b" ", 2)[:2]
    if not version.startswith(b"HTTP/1."):
        raise ValueError("this is no HTTP")
    headers: _Headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("this is no HTTP")
        headers.append((name, value.strip()))
    return int(status), headers


def _as_httpx(error: BaseException) -> BaseException:
    """The error that httpx's own transport would raise."""
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout("no answer in time")
    if isinstance(error, EOFError | ValueError | asyncio.LimitOverrunError):
        return httpx.RemoteProtocolError(str(error))
    return httpx.ReadError(str(error)) if isinstance(error, OSError) else error
