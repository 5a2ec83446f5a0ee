"""A server that is no engine, whose answers are bytes that a test gives and end where it says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import http_server

STREAM = "text/event-stream"
JSON = "application/json"


@dataclass
class CutServer:
    """What the server answers to each POST."""

    url: str = ""
    owner: str = "tinkersmith"  # of its model; a server of ours takes chat templates
    status: int = 200
    content_type: str = STREAM
    pieces: list[bytes] = field(default_factory=list[bytes])
    # How the answer ends: "whole", or cut by closing the connection "within" a chunked body, or
    # "silently" in one that has no length, as proxies do.
    ending: str = "whole"
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@contextmanager
def cut_server() -> Iterator[CutServer]:
    server = CutServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            models = {"data": [{"id": "a", "owned_by": server.owner}]}
            content = json.dumps(models).encode()
            self.send_response(200)
            self.send_header("content-type", JSON)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            server.requests.append(json.loads(self.rfile.read(length)))
            self.close_connection = True
            self.send_response(server.status)
            self.send_header("content-type", server.content_type)
            is_chunked = server.ending != "silently"
            kind, value = (
                ("transfer-encoding", "chunked") if is_chunked else ("connection", "close")
            )
            self.send_header(kind, value)
            self.end_headers()
            for piece in server.pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
                self.wfile.flush()
            if server.ending == "whole":
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http_server(Handler) as server.url:
        yield server
