"""Valid requests of every route, made wrong by chance, and what an engine must never answer."""

import contextlib
import copy
import http.client
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zstandard

from tests.support.engine import KEY, MODEL, RunningEngine
from tests.support.processes import PATIENCE
from tests.support.raw_client import batch, body_type, call, result
from tests.support.stopwatch import Stopwatch
from tinkersmith.engine.server.wire import pb

ANSWER_WITHIN = 10.0  # seconds
WORLD_LASTS = 400  # requests, after which the session is finished and a new one made
_LEAKS = re.compile(r"engine error:|Traceback|\b[A-Z][a-z]+(?:[A-Z][a-z]+)*(?:Error|Exception)\b")

_DEEP = "<deep>"  # stands for many lists or objects in each other, which json.dumps cannot write
ODD_NUMBERS = [0, -1, 1, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, -1e308]
ODD_VALUES: list[Any] = [
    *ODD_NUMBERS,
    *(0.5, -0.0, 3.0, float("nan"), float("inf"), -float("inf"), True, False, None),
    *("", " ", "a", "\x00", "\ud800", "\U0001f600" * 50, "a" * 70_000, "../../etc", "/", ":", "%s"),
    *("tinker://a/weights/b", "tinker://", "tinker://x/../y", "true", "1", "NaN", "0001-01-01"),
    *("9999-12-31T23:59:59-23:59", "-1", "1e9", "{}", "null", "type", "__class__"),
    *([], {}, [[]], [{}], [None], [1, "a"], ["a", ["b"]], {"a": None}, {"a": {"b": []}}, {"": 1}),
    *([1] * 300, [[1], [2, 3]], {"type": "image"}, {"type": ["a"]}, {"type": {"a": 1}}),
    *([{"type": "active"}], [{"type": ["active"]}], {"data": [1], "shape": [2]}, [1.5], ["\x00"]),
    *([True], [2**40], [-5], [10**30], [float("nan")], {"rank": 10**9}, {"tokens": 7}),
]


@dataclass
class World:
    """What a valid request names: a session with its clients and checkpoints."""

    session: str
    model: str
    sampler: str
    checkpoint: str
    next_seq: int
    sampler_seq: int = 1
    left: int = WORLD_LASTS


def new_world(engine: RunningEngine) -> World:
    _, session = call(engine, "/create_session", {"tags": [], "sdk_version": "0.38.0"})
    body = {"session_id": session["session_id"], "base_model": MODEL}
    _, created = call(
        engine, "/create_model", {**body, "model_seq_id": 0, "lora_config": {"rank": 2}}
    )
    result(engine, created["request_id"])
    save = {"model_id": created["model_id"], "seq_id": 1, "path": "a"}
    _, future = call(engine, "/save_weights", save)
    path = result(engine, future["request_id"])["path"]
    _, sampler = call(engine, "/create_sampling_session", {**body, "sampling_session_seq_id": 0})
    sampling_id = sampler["sampling_session_id"]
    return World(session["session_id"], created["model_id"], sampling_id, path, 2)


def valid_requests(world: World) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Method, path and JSON body of one good request for each route; None: it has no body."""
    run = f"/training_runs/{world.model}"
    numbered = {"model_id": world.model, "seq_id": world.next_seq}
    chunk = {"type": "encoded_text", "tokens": [72, 101]}
    sample = {
        "sampling_session_id": world.sampler,
        "seq_id": world.sampler_seq,
        "num_samples": 1,
        "prompt": {"chunks": [chunk]},
        "sampling_params": {
            "max_tokens": 2,
            "temperature": 1.0,
            "top_k": -1,
            "top_p": 1.0,
            "seed": 1,
            "stop": ["\n"],
        },
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
        "target_prompt_logprobs": {"data": [3], "shape": [1, 1], "dtype": "int64"},
    }
    sparse = {
        **sample,
        "target_prompt_logprobs": {
            "data": [3, 4],
            "shape": [1, 300],
            "sparse_crow_indices": [0, 2],
            "sparse_col_indices": [2, 9],
        },
        "prompt_alt_tokens_k": 2,
        "topk_sample_logprobs": 2,
    }
    adam = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0}
    search = {
        "display_name": "a b",
        "session_id": world.session,
        "user_metadata": {"a": "b"},
        "statuses": [{"type": "active"}],
        "owner": {"owner_urns": ["tml:user:local"]},
        "cursor": {"last_created_at": "2026-01-01T00:00:00+00:00", "last_session_id": "a"},
        "limit": 5,
    }
    lora = {"rank": 2, "seed": 1, "train_unembed": False, "train_mlp": True, "train_attn": True}
    session = {"session_id": world.session}
    return [
        ("POST", "/client/config", {"sdk_version": "0.38.0"}),
        ("POST", "/client/dynamic_config", {"sdk_version": "0.38.0"}),
        ("POST", "/telemetry", {"events": [{"a": 1}], "session_id": world.session}),
        ("GET", "/get_server_capabilities", None),
        ("GET", "/healthz", None),
        (
            "POST",
            "/create_session",
            {"tags": ["a"], "user_metadata": {"a": "b"}, "sdk_version": "0", "display_name": "x"},
        ),
        ("POST", "/session_heartbeat", session),
        (
            "POST",
            "/create_model",
            {
                **session,
                "model_seq_id": 0,
                "base_model": MODEL,
                "lora_config": lora,
                "user_metadata": {"tinkersmith.logprobs": "weighted"},
                "optimizer_config": {"type": "adamw"},
            },
        ),
        ("POST", "/get_info", {"model_id": world.model}),
        ("POST", "/optim_step", {**numbered, "adam_params": adam}),
        (
            "POST",
            "/save_weights",
            {
                **numbered,
                "path": "b",
                "ttl_seconds": 60,
                "overwrite": True,
                "user_metadata": {"a": "b"},
            },
        ),
        (
            "POST",
            "/save_weights_for_sampler",
            {**numbered, "sampling_session_seq_id": 5, "kind": "snapshot"},
        ),
        ("POST", "/save_weights_for_sampler", {**numbered, "path": "b", "ttl_seconds": 60}),
        (
            "POST",
            "/save_weights_external",
            {**numbered, "path": "b", "ttl_seconds": 60, "age_encryption_recipients": []},
        ),
        ("POST", "/load_weights", {**numbered, "path": world.checkpoint, "optimizer": True}),
        (
            "POST",
            "/load_weights",
            {
                **session,
                "model_seq_id": 1,
                "path": world.checkpoint,
                "optimizer": True,
                "base_model": MODEL,
                "optimizer_config": {"type": "adamw"},
            },
        ),
        (
            "POST",
            "/create_sampling_session",
            {**session, "sampling_session_seq_id": 1, "model_path": world.checkpoint},
        ),
        (
            "POST",
            "/create_sampling_session",
            {**session, "sampling_session_seq_id": 2, "base_model": MODEL},
        ),
        ("POST", "/asample", sample),
        ("POST", "/asample", sparse),
        ("POST", "/retrieve_future", {"request_id": f"{world.model}:1"}),
        ("POST", "/weights_info", {"tinker_path": world.checkpoint}),
        ("POST", "/sessions/search", search),
        ("POST", "/sessions/search", search),
        ("POST", "/copy_weights", {"source_path": world.checkpoint, "ttl_seconds": 60}),
        (
            "POST",
            "/copy_weights",
            {**session, "source_path": world.checkpoint, "model_seq_id": 77, "ttl_seconds": 60},
        ),
        ("POST", "/auth/token", {}),
        ("GET", "/auth/apikey/me", None),
        ("GET", "/training_runs?limit=2&offset=0", None),
        ("GET", "/checkpoints?limit=2&offset=1", None),
        ("GET", "/sessions?limit=2&offset=1", None),
        ("GET", f"/sessions/{world.session}", None),
        ("GET", f"/sessions/{world.session}/trace_export", None),
        ("GET", f"/samplers/{world.sampler}", None),
        ("GET", run, None),
        ("GET", f"{run}/checkpoints", None),
        ("PUT", f"{run}/checkpoints/weights/a/ttl", {"ttl_seconds": 600}),
        ("POST", f"{run}/checkpoints/weights/a/publish", {}),
        ("DELETE", f"{run}/checkpoints/weights/a/publish", {}),
        ("GET", f"{run}/checkpoints/weights/a/external_weights_urls", None),
        ("DELETE", f"{run}/checkpoints/weights/nothing", {}),
        ("POST", "/sessions/nothing/finish", {"reason": {"type": "success"}}),
        ("GET", "/billing/usage/checkpoints/current", None),
    ]


# ---- making them wrong


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value, itself included."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:20])
    return [path] + [node for key, item in items for node in _nodes(item, (*path, key))]


def wrong_json(rng: random.Random, body: Any) -> Any:
    """The body with one to three values exchanged, left out, added or wrapped."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(_nodes(body))
        if not path:
            if rng.random() < 0.1:
                body = rng.choice(ODD_VALUES)
            elif isinstance(body, dict):
                body[rng.choice(["x", "type", "model_id", "session_id", ""])] = odd_value(rng)
            continue
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        match rng.randrange(8):
            case 0 if isinstance(parent, dict):
                del parent[path[-1]]
            case 1:
                parent[path[-1]] = [parent[path[-1]]]
            case 2:
                parent[path[-1]] = {"type": parent[path[-1]]}
            case _:
                parent[path[-1]] = odd_value(rng)
    return body


def odd_value(rng: random.Random) -> Any:
    return _DEEP if rng.random() < 0.03 else copy.deepcopy(rng.choice(ODD_VALUES))


def wrong_bytes(rng: random.Random, body: bytes) -> bytes:
    """The bytes cut, changed, repeated, or replaced by something that is hard to parse."""
    place = rng.randrange(len(body) + 1)
    match rng.randrange(9):
        case 0:
            return body[:place]
        case 1:
            return body[:place] + rng.randbytes(rng.randrange(1, 9)) + body[place:]
        case 2:
            changed = bytearray(body)
            for _ in range(rng.randrange(1, 6)):
                if changed:
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 3:
            return body[:place] + body[rng.randrange(len(body) + 1) :]
        case 4:
            return body + body
        case 5:
            return rng.choice([b"[", b'{"a":', b"\x1a\x00", b"\xff"]) * rng.choice(
                [10, 3000, 50000]
            )
        case 6:
            return rng.randbytes(rng.randrange(600))
        case 7:
            return (
                b"\xef\xbb\xbf" + body
                if rng.random() < 0.5
                else body.decode("latin-1").encode("utf-16")
            )
        case _:
            return body.replace(b"1", b"1" * rng.choice([20, 5000]), 1)


def wrong_batch(rng: random.Random, world: World) -> bytes:
    """A ForwardBackwardRequest with odd fields, odd tensors, or spoiled bytes."""
    message = pb.ForwardBackwardRequest()
    message.ParseFromString(batch(world.model, world.next_seq, [5, 6, 7, 8], copies=2))
    datum = message.data[rng.randrange(2)]
    tensor = datum.loss_fn_inputs[rng.choice(["target_tokens", "weights"])]
    odd: list[Callable[[], object]] = [
        lambda: setattr(tensor, "dtype", rng.choice([0, 1, 2, 3, 4, 5, 77])),
        lambda: setattr(tensor, "dense", rng.randbytes(rng.choice([0, 1, 8, 12, 24, 64]))),
        lambda: setattr(tensor, "dense", struct.pack("<3f", float("nan"), float("inf"), -1e38)),
        lambda: setattr(tensor, "dense", struct.pack("<3q", 2**62, -(2**63), 10**6)),
        lambda: tensor.shape.__setitem__(0, rng.choice([0, -1, 1, 2, 2**31, 2**62, -(2**63)])),
        lambda: (setattr(tensor, "dense", b""), tensor.shape.__setitem__(0, 0)),
        lambda: tensor.shape.extend(rng.choice([[1], [0], [-1], [3, 1], [2**40], [2**62, 2**62]])),
        lambda: (tensor.shape.extend([3]), setattr(tensor.sparse_csr, "values", bytes(12))),
        lambda: (
            tensor.shape.extend([rng.choice([0, 3, 2**33])]),
            setattr(tensor.sparse_csr, "values", bytes(rng.choice([0, 8, 12]))),
            setattr(tensor.sparse_csr, "crow_indices", rng.randbytes(8 * rng.randrange(5))),
            setattr(tensor.sparse_csr, "col_indices", bytes(rng.choice([0, 8, 24]))),
        ),
        lambda: datum.loss_fn_inputs.pop(rng.choice(["target_tokens", "weights"])),
        lambda: datum.loss_fn_inputs.__getitem__(rng.choice(["x", "", "logprobs", "advantages"])),
        lambda: setattr(
            datum.model_input[0].encoded_text,
            "tokens",
            rng.choice(
                [b"", b"a", bytes(12), b"\xff" * 12, struct.pack("<3i", 2**31 - 1, -5, 10**6)]
            ),
        ),
        lambda: datum.model_input.add(),
        lambda: datum.ClearField("model_input"),
        lambda: message.ClearField("data"),
        lambda: message.data.add(),
        lambda: setattr(
            message, "loss_fn", rng.choice(["", "x", "ppo", "dro", "\x00", "a" * 9000])
        ),
        lambda: setattr(message, "forward_only", True),
        lambda: message.loss_fn_config.__setitem__("beta", rng.choice([float("nan"), -1e300, 0.0])),
        lambda: setattr(message.loss_fn_config_v2[rng.choice(["", "beta"])], "text", "x" * 50),
        lambda: setattr(message.loss_fn_config_v2["clip_low_threshold"], "number", float("inf")),
        lambda: setattr(message, "seq_id", rng.choice([0, -1, 2**31 - 1, world.next_seq])),
        lambda: setattr(message, "model_id", rng.choice(["", "a:train:0", "x" * 5000, ":", "a/b"])),
    ]
    for change in rng.sample(odd, rng.choice([1, 1, 2, 3])):
        with contextlib.suppress(IndexError, KeyError, ValueError):  # after another change, or
            change()  # more than the field can hold
    body = message.SerializeToString()
    return wrong_bytes(rng, body) if rng.random() < 0.3 else body


@dataclass(frozen=True)
class Sent:
    """One request as it goes over the wire."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    length: int | None = None  # declared; None: the right one


def wrong_request(rng: random.Random, world: World) -> Sent:
    """A request to a route chosen by chance, wrong in one or a few ways."""
    headers: dict[str, str] = {}
    if rng.random() < 0.3:
        path, method = "/forward_backward", "POST"
        body = wrong_batch(rng, world)
        if rng.random() < 0.3:
            headers["Content-Encoding"] = "zstd"
            body = zstandard.compress(body)
            if rng.random() < 0.7:
                body = wrong_bytes(rng, body)
    else:
        method, path, value = rng.choice(valid_requests(world))
        body = b"" if value is None else _json(rng, value)
    kind = rng.random()
    if kind < 0.06:
        path = _wrong_path(rng, path)
    elif kind < 0.08:
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
    elif kind < 0.12:
        name, text = rng.choice(_ODD_HEADERS)
        headers[name] = text
    length = None
    if kind > 0.98 and body:
        length = rng.choice([0, len(body) // 2, len(body) + 7, 2**40, -1, 10**25])
    return Sent(method, path, body, {"Content-Type": body_type(path), **headers}, length)


_ODD_HEADERS = [
    *[("Content-Encoding", name) for name in ("gzip", "zstd", "", "br, zstd", "\xff")],
    *[("Content-Type", name) for name in ("text/plain", "application/json; charset=x", "")],
    *[("X-Idempotency-Key", name) for name in ("", "a" * 9000, "\xff\xfe", "../..")],
    *[("X-Api-Key", name) for name in ("", "a.b.c", "\xff", "e30.e30.e30", "a" * 9000)],
    *[("Host", name) for name in ("evil.example", "", "a b", "[", "localhost:99999999")],
    *[("Origin", name) for name in ("null", "http://[", "https://evil.example", "\xff")],
    *[("Transfer-Encoding", name) for name in ("chunked", "gzip", "identity")],
    *[("Expect", "100-continue"), ("Range", "bytes=0-"), ("Connection", "Upgrade")],
    *[("Accept", "application/x-protobuf"), ("X-Forwarded-Proto", "\xff"), ("Cookie", "a" * 12000)],
]


def _json(rng: random.Random, value: Any) -> bytes:
    wrong = wrong_json(rng, value)
    # A number as JSON has none: json.dumps writes NaN and Infinity, which json.loads reads.
    text = json.dumps(wrong, ensure_ascii=rng.random() < 0.5)
    depth, (opened, closed) = rng.choice([5, 90, 900, 9000]), rng.choice(["[]", ('{"a":', "}")])
    text = text.replace(f'"{_DEEP}"', f"{opened * depth}1{closed * depth}")
    body = text.encode("utf-8", "surrogatepass")
    return wrong_bytes(rng, body) if rng.random() < 0.15 else body


def _wrong_path(rng: random.Random, path: str) -> str:
    parts = re.split(r"(?<=[/=])", path)
    odd = ["%00", "%ff", "..", "%2e%2e%2f", "a" * 3000, "9" * 5000, "-1", "", "%d8%00", "+", "1e3"]
    parts[rng.randrange(len(parts))] = rng.choice(odd)
    changed = "".join(parts)
    return changed if changed.startswith("/") else f"/{changed}"


# ---- sending them, and judging the answers


@dataclass
class Tally:
    """What came back, and what must never come back."""

    bodies: int = 0
    statuses: Counter[int] = field(default_factory=Counter[int])
    faults: list[str] = field(default_factory=list[str])
    slowest: float = 0.0  # seconds

    def judge(self, sent: Sent, status: int, answer: bytes, seconds: float) -> None:
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        text = answer.decode("utf-8", "replace")
        why = ""
        if status >= 500:
            why = f"status {status}"
        elif seconds > ANSWER_WITHIN:
            why = f"answered after {seconds:.1f} s"
        elif match := _LEAKS.search(text):
            why = f"contains {match[0]!r}"
        elif '"category":"server"' in text:
            why = "fails as if the engine were at fault"
        if why:
            self.faults.append(
                f"{why}: {sent.method} {sent.path[:200]} {sent.headers} {sent.body[:600]!r} -> "
                f"{text[:300]!r}"
            )


class Fuzzer:
    """Sends wrong requests to an engine over one connection, and follows their futures."""

    def __init__(self, engine: RunningEngine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.tally = Tally()
        self.world = new_world(engine)
        self._port = int(engine.url.rpartition(":")[2])
        self._connection: http.client.HTTPConnection | None = None

    def step(self) -> None:
        """Send one wrong request; if it is taken as an operation, wait for its result."""
        world = self.world
        sent = wrong_request(self.rng, world)
        status, answer = self._send(sent)
        self.tally.bodies += 1
        if status == 200 and b'"request_id"' in answer and "retrieve" not in sent.path:
            self._follow(json.loads(answer)["request_id"])
        world.left -= 1
        if world.left <= 0 or (status == 410 and world.session.encode() in answer):
            self._renew()

    def finish(self) -> None:
        call(self.engine, f"/sessions/{self.world.session}/finish", {})
        if self._connection is not None:
            self._connection.close()

    def _renew(self) -> None:
        """A new session: the old one is ended, so that what it holds does not add up."""
        call(self.engine, f"/sessions/{self.world.session}/finish", {})
        self.world = new_world(self.engine)

    def _follow(self, request_id: str) -> None:
        owner, _, number = request_id.rpartition(":")
        if owner == self.world.model:
            if number != str(self.world.next_seq):
                return  # an early number waits for those before it, which may never come
            self.world.next_seq += 1
        elif owner == self.world.sampler:
            self.world.sampler_seq += 1
        body = json.dumps({"request_id": request_id}).encode()
        poll = Sent("POST", "/retrieve_future", body, {"Content-Type": "application/json"})
        status, answer = self._send(poll)
        if status not in (200, 410):
            self.tally.faults.append(f"{request_id} has no result: {status} {answer[:300]!r}")

    def _send(self, sent: Sent) -> tuple[int, bytes]:
        """Status and body; status 0: the engine closed the connection without an answer."""
        watch = Stopwatch(self.engine)
        status, answer = self._exchange(sent)
        self.tally.judge(sent, status, answer, watch.seconds())
        return status, answer

    def _exchange(self, sent: Sent) -> tuple[int, bytes]:
        fresh = sent.length is not None or "Transfer-Encoding" in sent.headers
        if self._connection is None or fresh:
            if self._connection is not None:
                self._connection.close()
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        connection = self._connection
        length = len(sent.body) if sent.length is None else sent.length
        names = {"Host": f"127.0.0.1:{self._port}", "X-Api-Key": KEY, **sent.headers}
        if sent.body or sent.method != "GET":
            names["Content-Length"] = str(length)
        path = f"/api/v1{sent.path}"
        lines = [f"{sent.method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in names.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        keep = False
        try:
            if connection.sock is None:
                connection.connect()
            assert connection.sock is not None
            connection.sock.sendall(head + sent.body)
            if fresh:  # the engine may wait for more: tell it that nothing comes
                with contextlib.suppress(OSError):  # it has answered and closed already
                    connection.sock.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection.sock, method=sent.method)
            response.begin()
            answer = response.read()
            keep = not (fresh or response.will_close)
            return response.status, answer
        except (http.client.HTTPException, ConnectionError):
            return 0, b""
        except TimeoutError:
            return 0, b"Traceback: no answer"  # judged as too slow
        finally:
            if not keep:
                connection.close()
                self._connection = None
