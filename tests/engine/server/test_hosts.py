"""No web page reaches the engine: Host and Origin on every route, content types, the key."""

import asyncio
import http.client
import json
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from starlette.applications import Starlette
from starlette.routing import Route

from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.processes import PATIENCE
from tests.support.raw_client import body_type, call, new_model, result
from tinkersmith.engine.scheduling.queue import EngineThread
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server.app import make_app
from tinkersmith.engine.storage.catalogue import make_catalogue
from tinkersmith.engine.storage.store import Store
from tinkersmith.guards.hosts import LOOPBACK_NAMES, allowed_hosts

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNKNOWN = ("/", "/api/v1/no_such_thing", "/api/v2/healthz", "/files/", "/favicon.ico")

FOREIGN: dict[str, list[tuple[bytes, bytes]]] = {
    "a foreign Origin": [(b"host", b"127.0.0.1:8000"), (b"origin", b"https://evil.example")],
    "Origin null": [(b"host", b"localhost:8000"), (b"origin", b"null")],
    "an empty Origin": [(b"host", b"localhost:8000"), (b"origin", b"")],
    "a good and a foreign Origin": [
        *[(b"host", b"localhost"), (b"origin", b"http://localhost")],
        (b"origin", b"http://evil.example"),
    ],
    "an Origin of another scheme": [(b"host", b"localhost"), (b"origin", b"file://localhost")],
    "an Origin with a user": [(b"host", b"localhost"), (b"origin", b"http://localhost@evil.ex")],
    "an Origin that begins like us": [
        (b"host", b"localhost"),
        (b"origin", b"http://localhost.evil.example"),
    ],
    "a rebinding Host": [(b"host", b"evil.example:8000")],
    "a Host in odd case": [(b"host", b"EVIL.example")],
    "a Host with a final dot": [(b"host", b"localhost.:8000")],
    "a Host with a user": [(b"host", b"evil@localhost:8000")],
    "a Host that begins like us": [(b"host", b"127.0.0.1.evil.example")],
    "a Host with a wrong port": [(b"host", b"localhost:8000@evil.example")],
    "another address": [(b"host", b"192.168.1.5:8000")],
    "all addresses": [(b"host", b"0.0.0.0:8000")],
    "an address of version 6": [(b"host", b"[::2]:8000")],
    "no Host": [],
    "an empty Host": [(b"host", b"")],
    "two Hosts": [(b"host", b"localhost"), (b"host", b"evil.example")],
    "a space": [(b"host", b"localhost ")],
    "bytes": [(b"host", b"\xff\xfe")],
}

OURS: dict[str, list[tuple[bytes, bytes]]] = {
    "an address and a port": [(b"host", b"127.0.0.1:8000")],
    "a name": [(b"host", b"localhost")],
    "a name in odd case": [(b"host", b"LocalHost:1")],
    "version 6": [(b"host", b"[::1]:8000")],
    "version 6, in full": [(b"host", b"[0:0:0:0:0:0:0:1]")],
    "an Origin of ours": [(b"host", b"localhost:8000"), (b"origin", b"http://127.0.0.1:3000")],
}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    store = Store(tmp_path_factory.mktemp("engine"))
    loop = asyncio.new_event_loop()
    yield Sessions(store, EngineThread(loop, lambda: pytest.fail("nothing is computed")))
    loop.close()
    store.close()


def requests(app: Any) -> list[tuple[str, str]]:
    """Each method on each route of the app, and on some that it has not."""
    while not isinstance(app, Starlette):
        app = app.app
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    assert len(paths) > 40
    return [(method, path) for path in (*paths, *UNKNOWN) for method in METHODS]


def sentence_of(answer: dict[str, Any]) -> str:
    """The sentence of a refusal in the form of Tinker's API, or of an inference API."""
    return answer["detail"] if "detail" in answer else answer["error"]["message"]


def send(
    app: Any, method: str, path: str, headers: list[tuple[bytes, bytes]], server: str = "127.0.0.1"
) -> tuple[int, bytes]:
    """Status and body of a request with exactly these headers."""
    sent: list[dict[str, Any]] = []
    fixed = {"type": "http", "http_version": "1.1", "scheme": "http", "query_string": b""}
    request = {"method": method, "path": path, "raw_path": path.encode(), "headers": headers}
    scope = fixed | request | {"root_path": "", "server": (server, 8000)}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def note(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, note))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_page_gets_403_on_every_route_and_method(sessions: Sessions, kind: str) -> None:
    app = make_app(sessions, make_catalogue([]), KEY, allowed_hosts("127.0.0.1", []))
    for method, path in requests(app):
        for key in (KEY, "tml-other"):
            headers = [*FOREIGN[kind], (b"x-api-key", key.encode())]
            status, body = send(app, method, path, headers)
            assert status == 403, (method, path)
            sentence = sentence_of(json.loads(body))
            assert "Host" in sentence or "Origin" in sentence
            assert sentence.endswith(".")


@pytest.mark.parametrize("kind", OURS)
def test_under_the_names_of_loopback_no_route_answers_403(sessions: Sessions, kind: str) -> None:
    app = make_app(sessions, make_catalogue([]), KEY, allowed_hosts("127.0.0.1", []))
    for method, path in requests(app):
        status, _ = send(app, method, path, OURS[kind])
        assert status not in (403, 500), (method, path)
    assert send(app, "GET", "/api/v1/healthz", OURS[kind])[0] == 200


def test_a_name_that_is_allowed_is_one_as_host_and_origin(sessions: Sessions) -> None:
    hosts = allowed_hosts("192.168.1.5", ["Engine.Example", "fd00::5"])
    app = make_app(sessions, make_catalogue([]), KEY, hosts)
    for host in (b"engine.example", b"ENGINE.example:8000", b"[fd00::5]:1", b"192.168.1.5"):
        for origin in (b"https://" + host, b"http://localhost"):
            headers = [(b"host", host), (b"origin", origin)]
            assert send(app, "GET", "/api/v1/healthz", headers)[0] == 200
    status, body = send(app, "GET", "/api/v1/healthz", [(b"host", b"other.example")])
    assert status == 403
    assert "start the engine with --allow-host other.example" in json.loads(body)["detail"]


def test_an_engine_on_all_addresses_is_known_by_the_one_that_a_connection_reached(
    sessions: Sessions,
) -> None:
    hosts = allowed_hosts("0.0.0.0", [])
    assert hosts == LOOPBACK_NAMES
    app = make_app(sessions, make_catalogue([]), KEY, hosts, any_own_address=True)
    path = "/api/v1/healthz"
    for server in ("192.168.1.5", "::ffff:192.168.1.5"):
        assert send(app, "GET", path, [(b"host", b"192.168.1.5:8000")], server)[0] == 200
        for host in (b"192.168.1.6", b"evil.example", b"0.0.0.0"):
            assert send(app, "GET", path, [(b"host", host)], server)[0] == 403


@pytest.mark.engine
def test_a_request_of_http_1_0_without_a_host_is_refused(engine: RunningEngine) -> None:
    port = int(engine.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /api/v1/healthz HTTP/1.0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 403") and b"Host header" in answer


@pytest.mark.engine
def test_a_web_page_cannot_open_a_websocket(engine: RunningEngine) -> None:
    port = int(engine.url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": "https://evil.example"}
    connection.request("GET", "/api/v1/healthz", headers=upgrade)
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.engine
@pytest.mark.parametrize("sent", ["text/plain", "application/x-www-form-urlencoded", "", "text/x"])
def test_what_a_form_or_a_simple_request_can_send_is_415_on_every_route(
    engine: RunningEngine, sessions: Sessions, sent: str
) -> None:
    app = make_app(sessions, make_catalogue([]), KEY, LOOPBACK_NAMES)
    inner: Any = app
    while not isinstance(inner, Starlette):
        inner = inner.app
    for route in inner.routes:
        assert isinstance(route, Route)
        for method in (route.methods or set()) & {"POST", "PUT", "DELETE"}:
            if "/files/" in route.path:  # the address is a secret, and PUT is no simple request
                continue
            path = route.path.removeprefix("/api/v1").replace("{", "").replace("}", "")
            url = engine.url + route.path.replace("{", "").replace("}", "").replace(":path", "")
            headers = {"x-api-key": KEY, "content-type": sent}
            answer = httpx.request(method, url, content=b"{}", headers=headers)
            assert answer.status_code == 415, (method, path, answer.text)
            assert body_type(path) in sentence_of(answer.json())


@pytest.mark.engine
def test_tokens_and_download_addresses_work_under_a_name_that_is_allowed(
    tmp_path: Path, tiny_model: Path
) -> None:
    name = "engine.example:8443"
    with running_engine(tmp_path, tiny_model, "--allow-host", "engine.example") as running:
        _, answer = call(running, "/auth/token", {}, Host=name)
        model_id = new_model(running)
        body = {"model_id": model_id, "seq_id": 1, "path": "out"}
        _, future = call(
            running, "/save_weights_external", body, Host=name, X_Api_Key=answer["jwt"]
        )
        assert "path" in result(running, future["request_id"])
        path = f"/training_runs/{model_id}/checkpoints/external_weights/out/external_weights_urls"
        _, answer = call(running, path, Host=name)
        address = urllib.parse.urlsplit(answer["urls"]["adapter_config.json"])
        assert (address.scheme, address.netloc) == ("http", name)
        connection = http.client.HTTPConnection("127.0.0.1", int(running.url.rpartition(":")[2]))
        for host, status in ((name, 200), ("evil.example", 403)):
            connection.request("GET", address.path, headers={"Host": host})
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.close()


@pytest.mark.engine
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_the_sdk_reaches_an_engine_that_listens_on_all_addresses(
    tmp_path: Path, tiny_model: Path
) -> None:
    key = f"tml-{'k' * 28}"
    with running_engine(tmp_path, tiny_model, "--host", "0.0.0.0", key=key) as running:
        url = running.url.replace("127.0.0.1", "127.0.0.2")
        with tinker.ServiceClient(base_url=url, api_key=key) as service:
            client = service.create_lora_training_client(base_model=MODEL, rank=2).result()
            path = client.save_weights_external("out").result().path
            urls = service.create_rest_client().get_external_weights_urls(path).result().urls
    assert urls and all(address.startswith(f"{url}/files/") for address in urls.values())
