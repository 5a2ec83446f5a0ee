"""Serves the dashboard until a signal ends it."""

import asyncio
import contextlib
import os
import signal
import webbrowser
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tinkersmith.guards.hosts import (
    address_in_url,
    allowed_hosts,
    is_loopback,
    is_wildcard,
    listen,
)
from tinkersmith.guards.keys import choose_key

DASHBOARD_KEY = "TINKERSMITH_DASHBOARD_KEY"  # an environment variable
DEFAULT_PORT = 8080
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_PATIENCE = 2  # seconds for open requests


@dataclass(frozen=True, slots=True)
class DashboardAddress:
    """Where a dashboard listens, and for whom."""

    host: str
    port: int
    allow_hosts: Sequence[str]
    key_file: Path | None


def serve_dashboard(
    output_dir: Path,
    place: DashboardAddress,
    language: str,
    say: Callable[[str], None],
    *,
    opens: bool,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        opens: open the page in the browser.

    Raises:
        UserError: the address, the port or the key cannot be used.
    """
    hosts = allowed_hosts(place.host, place.allow_hosts)
    key, _ = choose_key(
        DASHBOARD_KEY,
        os.environ.get(DASHBOARD_KEY, ""),
        place.key_file,
        loopback=is_loopback(place.host),
        warn=say,
        server="dashboard",
    )
    with listen(place.host, place.port) as listener:
        port = listener.getsockname()[1]
        reached = "127.0.0.1" if is_wildcard(place.host) else place.host
        name = place.allow_hosts[0] if place.allow_hosts else reached
        address = f"http://{address_in_url(name, port)}/?key={quote(key)}"
        say(f"The runs in {output_dir.resolve()}: {address}")
        if not is_loopback(place.host):
            say(
                "Warning: whoever listens on the network can read the key and the pages. Listen on "
                f"127.0.0.1, and reach it by: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
            )
        say("Ctrl-C ends the dashboard.")

        async def serve() -> None:
            import uvicorn

            from tinkersmith.dashboard.app import make_dashboard
            from tinkersmith.dashboard.watch import Watch

            stopping = asyncio.Event()
            app = make_dashboard(
                Watch(output_dir),
                language,
                key,
                hosts,
                stopping,
                any_own_address=is_wildcard(place.host),
                cookie=f"tinkersmith-dashboard-{port}",
            )
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    http="h11",
                    ws="none",
                    log_level="error",
                    access_log=False,
                    lifespan="off",
                    timeout_graceful_shutdown=_EXIT_PATIENCE,
                )
            )
            server.capture_signals = _no_handlers  # or uvicorn's replace ours

            def end() -> None:
                stopping.set()
                server.should_exit = True

            for number in _STOP_SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, end)
            await server.serve(sockets=[listener])

        if opens:
            webbrowser.open(address)
        asyncio.run(serve())


@contextlib.contextmanager
def _no_handlers() -> Generator[None, None, None]:
    yield
