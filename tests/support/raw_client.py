"""Requests without the SDK, which would not send them, or would repeat them forever."""

import contextlib
import http.client
import json
import select
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.engine import KEY, MODEL, RunningEngine
from tests.support.processes import PATIENCE
from tests.support.stopwatch import Stopwatch
from tinkersmith.engine.server.http import JSON, PROTOBUF
from tinkersmith.engine.server.wire import pb


def call(
    engine: RunningEngine, path: str, body: Any = None, *, method: str = "", **headers: str
) -> tuple[int, Any]:
    """Status and JSON (or bytes) of one request."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"X-Api-Key": KEY, "Content-Type": body_type(path)}
    request = urllib.request.Request(
        f"{engine.url}/api/v1{path}",
        data,
        {**sent, **{name.replace("_", "-").title(): value for name, value in headers.items()}},
        method=method or ("GET" if body is None else "POST"),
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, _read(response)
    except urllib.error.HTTPError as error:
        return error.code, _read(error)


def body_type(path: str) -> str:
    """The content-type that the SDK sends to this route."""
    return PROTOBUF if path.startswith("/forward_backward") else JSON


def _read(response: Any) -> Any:
    content = response.read()
    json_type = "json" in (response.headers.get("content-type") or "")
    return json.loads(content) if json_type else content


def result(engine: RunningEngine, request_id: str) -> Any:
    """The result of a future, polled like the SDK does: 408 means that it is pending."""
    status = 408
    while status == 408:
        status, answer = call(engine, "/retrieve_future", {"request_id": request_id})
    assert status == 200, answer
    return answer


def new_model(engine: RunningEngine, rank: int = 2) -> str:
    """The id of a new training client in a new session."""
    _, session = call(engine, "/create_session", {"tags": [], "sdk_version": "0.38.0"})
    body = {"session_id": session["session_id"], "model_seq_id": 0, "base_model": MODEL}
    status, future = call(engine, "/create_model", {**body, "lora_config": {"rank": rank}})
    assert status == 200, future
    assert result(engine, future["request_id"])["model_id"] == future["model_id"]
    return future["model_id"]


def batch(
    model_id: str, seq_id: int, tokens: list[int], *, copies: int = 1, **changes: Any
) -> bytes:
    """A forward_backward body: next-token prediction over `tokens`, `copies` times."""
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray(tokens[:-1], "<i4").tobytes()
    for name, dtype, values in (
        ("target_tokens", pb.DTYPE_INT64, np.asarray(tokens[1:], "<i8")),
        ("weights", pb.DTYPE_FLOAT32, np.ones(len(tokens) - 1, "<f4")),
    ):
        tensor = datum.loss_fn_inputs[name]
        tensor.dtype, tensor.dense = dtype, values.tobytes()
        tensor.shape.append(len(values))
    message.data.extend([datum] * (copies - 1))
    for name, value in changes.items():
        setattr(message, name, value)
    return message.SerializeToString()


def loss(answer: bytes) -> float:
    message = pb.ForwardBackwardOutput()
    message.ParseFromString(answer)
    return message.metrics["loss:sum"]


@dataclass
class Answer:
    status: int
    body: Any
    sent: int  # bytes of the request's body before the answer
    seconds: float  # from the last sent byte to the answer
    seconds_running: float  # the same without the time spent waiting for a core


def stream(
    engine: RunningEngine,
    path: str,
    pieces: Iterable[bytes],
    length: int | None = None,
    *,
    key: str = KEY,
    stubborn: bool = False,
) -> Answer:
    """POST a body piece by piece until an answer arrives; chunked unless `length` is given.

    A `stubborn` client sends everything before it looks for an answer.
    """
    port = int(engine.url.rpartition(":")[2])
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    ) as connection:
        connection.putrequest("POST", f"/api/v1{path}")
        connection.putheader("X-API-Key", key)
        connection.putheader("Content-Type", body_type(path))
        header = ("Content-Length", str(length)) if length else ("Transfer-Encoding", "chunked")
        connection.putheader(*header)
        connection.endheaders()
        sent, last = 0, time.perf_counter()
        for piece in pieces:
            connection.send(piece if length else b"%x\r\n%b\r\n" % (len(piece), piece))
            sent, last = sent + len(piece), time.perf_counter()
            if not stubborn and select.select([connection.sock], [], [], 0)[0]:
                break
        else:
            if not length:
                connection.send(b"0\r\n\r\n")
        watch = Stopwatch(engine)
        response = connection.getresponse()
        body, seconds = _read(response), time.perf_counter() - last
        return Answer(response.status, body, sent, seconds, watch.seconds())
