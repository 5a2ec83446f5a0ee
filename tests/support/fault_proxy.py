"""A reverse proxy that breaks a share of the requests between the SDK and a real engine.

Seeded; every route is broken alike, health checks and downloads included.
"""

import asyncio
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.processes import PATIENCE

STATUSES = ("408", "429", "429 with retry-after", "500", "502", "503", "504")
KINDS = (
    *STATUSES,
    "reset",  # before the server got the request
    "reset in mid-body",  # the server did it
    "stall",  # no answer for a while; then an answer, or none
    "duplicate",  # the server gets the request twice
    "lost answer",  # the server did it, and the connection breaks
)


@dataclass
class FaultProxy:
    """One kind of fault for a share of the requests to `target`."""

    target: str
    kind: str
    share: float
    stall: float  # seconds
    chance: random.Random
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)  # by route
    broken: Counter[str] = field(default_factory=Counter)
    # What is called with the route, the head and the body of each request.
    listen: Callable[[str, bytes, bytes], None] = lambda route, head, body: None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client: request after request, until a fault or its end."""
        try:
            while (message := await _read_message(reader, request=True)) is not None:
                if not await self._answer(message, writer):
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client or the whole proxy has ended
        finally:
            with suppress(OSError):
                writer.close()

    async def _answer(self, message: tuple[bytes, bytes], writer: asyncio.StreamWriter) -> bool:
        """Answer a request; False where the connection has been broken."""
        route = _route(message[0])
        self.requests[route] += 1
        self.listen(route, *message)
        if self.chance.random() >= self.share:
            return await self._pass_on(message, writer)
        self.broken[route] += 1
        if self.kind in STATUSES:
            writer.write(_refusal(self.kind))
            await writer.drain()
            return True
        if self.kind == "reset":
            return _break(writer)
        if self.kind == "stall":
            ends = self.chance.random() < 0.5
            await asyncio.sleep(self.stall)
            return _break(writer) if ends else await self._pass_on(message, writer)
        answer = await self._forward(message)
        if self.kind == "lost answer" or answer is None:
            return _break(writer)
        if self.kind == "duplicate":
            answer = await self._forward(message) or answer
            writer.write(answer[0] + answer[1])
            await writer.drain()
            return True
        assert self.kind == "reset in mid-body"
        writer.write(answer[0] + answer[1][: len(answer[1]) // 2])
        await writer.drain()
        return _break(writer)

    async def _pass_on(self, message: tuple[bytes, bytes], writer: asyncio.StreamWriter) -> bool:
        answer = await self._forward(message)
        if answer is None:
            return _break(writer)
        writer.write(answer[0] + answer[1])
        await writer.drain()
        return True

    async def _forward(self, message: tuple[bytes, bytes]) -> tuple[bytes, bytes] | None:
        """The server's answer, head and body; None where the server cannot be reached."""
        target = urlsplit(self.target)
        try:
            reader, writer = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            return None
        try:
            writer.write(message[0] + message[1])
            await writer.drain()
            return await _read_message(reader, request=False)
        except (OSError, asyncio.IncompleteReadError):
            return None
        finally:
            writer.close()


@contextmanager
def fault_proxy(
    target: str, kind: str, share: float, *, stall: float = 12.0, seed: int = 0
) -> Iterator[FaultProxy]:
    """A proxy before the server at `target`, on a thread of its own; its address is `url`."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    proxy = FaultProxy(target, kind, share, stall, random.Random(seed))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    started = asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 16)
    server = asyncio.run_coroutine_threadsafe(started, loop).result(PATIENCE)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:

        async def end() -> None:
            server.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


async def _read_message(
    reader: asyncio.StreamReader, *, request: bool
) -> tuple[bytes, bytes] | None:
    """Head and body of the next HTTP message; None where the connection has ended before it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return head, await _read_chunks(reader)
    if b"content-length" in headers:
        return head, await reader.readexactly(int(headers[b"content-length"]))
    bodiless = request or head.split(b" ", 2)[1] in (b"204", b"304")
    return head, b"" if bodiless else await reader.read()


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it came, with its framing."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return body


def _route(head: bytes) -> str:
    """The method and the first part of the path that names what is done."""
    method, path = head.split(b" ", 2)[:2]
    parts = path.decode().partition("?")[0].strip("/").split("/")
    name = parts[2] if parts[:2] == ["api", "v1"] and len(parts) > 2 else parts[0]
    return f"{method.decode()} {name}"


def _refusal(kind: str) -> bytes:
    body = json.dumps({"detail": "made by the fault proxy"}).encode()
    extra = "retry-after: 1\r\n" if kind.endswith("retry-after") else ""
    head = (
        f"HTTP/1.1 {kind[:3]} Fault\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _break(writer: asyncio.StreamWriter) -> bool:
    """Reset the connection; always False, which says that it is broken."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()
    return False
