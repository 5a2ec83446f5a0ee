"""A hub on loopback that takes uploads by the routes that huggingface_hub calls."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import http_server

TOKEN = "a-token-of-the-tests"


@dataclass
class UploadHub:
    """What the hub was sent.

    `refuses` has the status of answers to paths that contain a text, with `words` of the hub.
    `pages` and `cuts` name such texts: a web page is answered, or the connection ends.
    """

    url: str
    refuses: dict[str, int] = field(default_factory=dict[str, int])
    words: str = "no"
    pages: str = ""
    cuts: str = ""
    delay: float = 0.0  # seconds before each answer to a POST
    role: str = "write"  # of the token
    created: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    asked: list[str] = field(default_factory=list[str])


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    blobs: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._may():
                return
            if self.path == "/api/whoami-v2":
                auth = {"type": "access_token", "accessToken": {"role": hub.role}}
                self._answer({"name": "somebody", "type": "user", "auth": auth})
            else:
                self._answer({"error": "no such repository"}, 404)

        def do_PUT(self) -> None:
            if status := hub.refuses.get("PUT", 0):
                self._body()
                self._answer({"error": hub.words}, status)
                return
            blobs[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            time.sleep(hub.delay)
            if not self._may():
                return
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                made = hub.created[-1]
                name = f"{made['organization']}/{made['name']}"
                self._answer({"url": f"{hub.url}/{name}", "name": name})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/blob/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                place = self.path.removeprefix("/api/models").partition("/commit/")[0]
                self._commit([json.loads(line) for line in body.splitlines() if line])
                self._answer({"commitUrl": f"{hub.url}{place}/commit/1", "commitOid": "1" * 40})
            else:
                self._answer({"error": self.path}, 404)

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = blobs[value["oid"]]

        def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith((".safetensors", ".gguf"))
            mode = "lfs" if large else "regular"
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

        def _may(self) -> bool:
            hub.asked.append(self.path)
            status = next((s for path, s in hub.refuses.items() if path in self.path), 0)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status = 401
            if hub.cuts and hub.cuts in self.path:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return False
            if hub.pages and hub.pages in self.path:
                self._send(b"<html>Log in first</html>", 200, "text/html")
                return False
            if status:
                self._answer({"error": hub.words}, status)
            return not status

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, value: object, status: int = 200) -> None:
            self._send(json.dumps(value).encode(), status, "application/json")

        def _send(self, body: bytes, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http_server(Handler) as url:
        hub = UploadHub(url)
        yield hub
