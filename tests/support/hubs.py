"""Hubs on loopback: one that has a repository, and those that nobody reaches."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.http_server import http_server

SHA = "a" * 40  # the commit that the hub says it has
UNRESOLVED = "http://no-such-host.invalid"
REFUSING = "http://127.0.0.1:9"  # nothing listens on the port of the discard protocol


@contextmanager
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@dataclass
class Hub:
    url: str
    status: int = 200  # of everything that is asked for
    asked: list[str] = field(default_factory=list)


@contextmanager
def hub_with(repository: str, folder: Path) -> Iterator[Hub]:
    """A hub with one repository: the files in `folder`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            if hub.status != 200:
                self._answer(hub.status, b"{}")
            elif self.path.startswith(f"/api/models/{repository}/tree/"):
                sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
                tree = [
                    {"type": "file", "path": name, "size": size, "oid": SHA}
                    for name, size in sizes.items()
                ]
                self._answer(200, json.dumps(tree).encode())
            elif self.path.startswith(f"/api/models/{repository}"):
                names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                body = {"id": repository, "sha": SHA, "siblings": names}
                self._answer(200, json.dumps(body).encode())
            elif self.path.startswith(f"/{repository}/resolve/"):
                file = folder / self.path.rpartition("/")[2]
                self._answer(200, file.read_bytes()) if file.is_file() else self._answer(404, b"")
            else:
                self._answer(404, b"{}")

        do_HEAD = do_GET

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http_server(Handler) as url:
        hub = Hub(url)
        yield hub
