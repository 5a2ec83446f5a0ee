"""Models -> a running server of OpenAI's and Anthropic's API, in a thread of this process."""

import asyncio
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError
from tinkersmith.guards.hosts import address_in_url, allowed_hosts, is_wildcard, listen
from tinkersmith.progress import Progress
from tinkersmith.serving.app import MOST_REQUESTS, make_serving_app
from tinkersmith.serving.models import ServedModels
from tinkersmith.serving.upstream import Upstream, running_upstream

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

_START_PATIENCE = 30.0  # seconds
_IDLE_PATIENCE = 120  # seconds that a connection stays open after an answer
_END_PATIENCE = 2  # seconds for open requests


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url` with `/v1/...`."""

    url: str
    key: str | None = field(repr=False)
    models: ServedModels
    upstream: Upstream

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    _thread: threading.Thread = field(repr=False, default_factory=threading.Thread)


@contextmanager
def running_server(
    models: ServedModels,
    progress: Progress,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    names: Sequence[str] = (),
    most_requests: int = MOST_REQUESTS,
) -> Generator[RunningServer, None, None]:
    """Serve the models until the block ends.

    Args:
        port: 0 is any free one.
        key: what clients must send; None: every program on this machine may ask.
        names: other names and addresses by which clients reach this server.
        most_requests: how many may be open at once.

    Raises:
        UserError: the address is taken, or the server behind cannot be reached.
    """
    hosts = allowed_hosts(host, names)
    listener = listen(host, port)
    try:
        with running_upstream(models, progress) as upstream:
            app = make_serving_app(
                models,
                upstream,
                key=key,
                hosts=hosts,
                any_own_address=is_wildcard(host),
                most_requests=most_requests,
            )
            reached = "127.0.0.1" if is_wildcard(host) else host
            url = f"http://{address_in_url(reached, listener.getsockname()[1])}"
            with _serving(app, listener) as thread:
                yield RunningServer(url, key, models, upstream, thread)
    finally:
        listener.close()


@contextmanager
def _serving(app: "ASGIApp", listener: "socket.socket") -> Generator[threading.Thread, None, None]:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_IDLE_PATIENCE,
            timeout_graceful_shutdown=_END_PATIENCE,
        )
    )
    started = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="serving", daemon=True)
    thread.start()
    if not started.wait(_START_PATIENCE) or not server.started:
        server.should_exit = True
        raise UserError("The server did not start. Try another --port.")
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(_END_PATIENCE + 3)
