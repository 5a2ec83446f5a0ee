"""Connections that come to nothing: requests that do not arrive, answers that nobody takes.

uvicorn closes a connection that is idle after an answer. It waits for ever for the rest of a
request, and for a client to read. It also logs each connection that fails for want of file handles.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import time
from collections import Counter
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tinkersmith.engine.log import log

REQUEST_PATIENCE = 20.0  # seconds for a request's head; for its body, these and what its bytes buy
SLOWEST_BODY = 1024.0  # bytes per second: each second of a body beyond the patience
ANSWER_PATIENCE = 60.0  # seconds in which a client must read some of its answer
IDLE_PATIENCE = 120  # seconds that a connection stays open after an answer
RESERVED_HANDLES = 64  # file handles that connections leave to the engine's own files
_SAY_EVERY = 60.0  # seconds between two lines of one kind in the log
_HANDLES_GONE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n"
    b"connection: close\r\ncontent-length: 68\r\n\r\n"
    b'{"detail": "the engine has no file handle left; try again in a bit"}'
)


class SeldomLog:
    """Logs what may happen a thousand times a second: each kind at most once a minute."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}  # monotonic seconds
        self._unsaid = Counter[str]()

    def warn(self, sentence: str) -> None:
        """Log `sentence`, or count it, if it was logged in the last minute."""
        now = time.monotonic()
        if now - self._said.get(sentence, -_SAY_EVERY) < _SAY_EVERY:
            self._unsaid[sentence] += 1
            return
        self._said[sentence] = now
        more = self._unsaid.pop(sentence, 0)
        log.warning("%s%s", sentence, f" ({more:,} more since the last such line)" if more else "")


seldom = SeldomLog()


class Connection(H11Protocol):
    """uvicorn's connection, closed when its client is late or the file handles run out."""

    _turn: tuple[object, ...] = ()  # what is waited for
    _since = 0.0  # monotonic seconds
    _received = 0  # bytes of this turn
    _unread = 0  # bytes of the answer that wait for the client
    _unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._turn, self._since = self._waits_for(), time.monotonic()
        handle = transport.get_extra_info("socket").fileno()
        # The system gives the lowest free number.
        if handle >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_HANDLES:
            self._make_place()

    def _make_place(self) -> None:
        """Close the connection that has waited longest for its request; without one, this one."""
        seldom.warn(
            "file handles run short: connections without a whole request are closed for new ones. "
            "Start the engine with more: ulimit -n 65536"
        )
        others = cast("set[Connection]", self.connections)
        waiting = [other for other in others if other is not self and other._is_incomplete()]
        if waiting:
            # A body that arrives is worth more than silence.
            oldest = min(waiting, key=lambda one: (one._has_head(), one._since))
            oldest.transport.abort()
        else:
            self.transport.write(_BUSY)
            self.transport.close()

    def _is_incomplete(self) -> bool:
        return not self.transport.is_closing() and (
            self._has_head() or self.conn.their_state is h11.IDLE
        )

    def _has_head(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless another answer has begun: then only close."""
        if self.cycle:
            self.cycle.disconnected = True  # the app's own answer would come second
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if its client is late at `now` (monotonic seconds)."""
        turn = self._waits_for()
        if turn != self._turn or self.flow.read_paused:  # paused: the engine is the late one
            self._turn, self._since, self._received = turn, now, 0
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread or not unread:
            self._unread, self._unread_since = unread, now
        if now - self._unread_since > ANSWER_PATIENCE:
            seldom.warn("a connection was closed: its client did not read the answer")
            self.transport.abort()
            return
        patience = REQUEST_PATIENCE
        if self._has_head():
            patience += self._received / SLOWEST_BODY
        elif self.conn.their_state is not h11.IDLE or (self.cycle and not self._begun()):
            return  # the request is complete, or uvicorn's own limit for idle connections holds
        if now - self._since > patience:
            seldom.warn("a connection was closed: its request did not arrive in time")
            self.transport.abort()

    def _waits_for(self) -> tuple[object, ...]:
        return self.conn.their_state, self.cycle, self._begun()

    def _begun(self) -> bool:
        """Whether a request's head has arrived in part."""
        return bool(self.conn.trailing_data[0])


async def watch(state: ServerState, every: float = 1.0) -> None:
    """Check all connections of a server, which are `Connection`s, for as long as it runs."""
    while True:
        await asyncio.sleep(every)
        now = time.monotonic()
        for connection in list(cast("set[Connection]", state.connections)):
            try:
                connection.check(now)
            except Exception as error:  # the other connections are checked all the same
                seldom.warn(f"a connection could not be checked: {error!r}")


def use_all_handles() -> None:
    """Raise the limit of open files to what the system allows this process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop reports, such as 2,000 failed accepts a second."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _HANDLES_GONE:
        seldom.warn(
            "no connection can be accepted: the file handles are used up. Clients wait until some "
            "are free; start the engine with more: ulimit -n 65536"
        )
        return
    loop.default_exception_handler(context)


class SeldomFilter(logging.Filter):
    """Lets each sentence of uvicorn pass once a minute: any client can cause them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        seldom.warn(record.getMessage())
        return False
