"""A local server with OpenAI's chat completions that judges as a test tells it to, with faults."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import http_server
from tests.support.processes import PATIENCE


@dataclass
class JudgeFault:
    """What the server does in place of an answer."""

    status: int = 200
    body: bytes | None = None  # in place of a chat completion
    headers: dict[str, str] = field(default_factory=dict[str, str])
    hang_up: bool = False  # close the connection without a word


@dataclass
class StubJudge:
    """What the server answers, and what it was asked."""

    url: str = ""
    reply: Callable[[str, str], str] = lambda system, user: "Score: 7"
    faults: list[JudgeFault] = field(default_factory=list[JudgeFault])  # used up one by one
    always: JudgeFault | None = None
    usage: bool = True
    finish_reason: str = "stop"
    refuses: Callable[[dict[str, Any]], str] = lambda body: ""  # the reason of a refusal
    refusal_status: int = 400
    pause: float = 0.0  # seconds before each reply
    waits_for: int = 1  # requests that must be under way at one time before the first reply
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list["str | None"])
    most_at_once: int = 0
    _at_once: int = 0
    _together: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, key: str | None, body: dict[str, Any]) -> JudgeFault:
        with self._lock:
            self.requests.append(body | {"path": path})
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if self._at_once >= self.waits_for:
                self._together.set()
            fault = self.faults.pop(0) if self.faults else self.always
        try:
            self._together.wait(PATIENCE)
            time.sleep(self.pause)
            if fault is not None:
                return fault
            if reason := self.refuses(body):
                content = json.dumps({"error": {"message": reason}}).encode()
                return JudgeFault(status=self.refusal_status, body=content)
            system, user = (message["content"] for message in body["messages"])
            completion: dict[str, Any] = {
                "choices": [
                    {
                        "message": {"role": "assistant", "content": self.reply(system, user)},
                        "finish_reason": self.finish_reason,
                    }
                ]
            }
            if self.usage:
                completion["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
            return JudgeFault(body=json.dumps(completion).encode())
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def judge_server() -> Iterator[StubJudge]:
    """A running server on a free port of this machine."""
    judge = StubJudge()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = judge.answer(self.path, self.headers.get("Authorization"), body)
            if fault.hang_up:
                self.close_connection = True
                return
            content = fault.body if fault.body is not None else b"{}"
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    with http_server(Handler) as url:
        judge.url = f"{url}/v1"
        yield judge


def text_between_marks(user: str, name: str) -> str:
    """The text of a judge's prompt that stands under a name, such as "Answer A"."""
    start = user.index(f"{name}:\n<") + len(name) + 2
    mark = user[start + 1 : user.index(">", start)]
    begin = start + len(mark) + 3
    return user[begin : user.index(f"\n</{mark}>", begin)]
