"""Requests that never end, answers that nobody reads, file handles that run out."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import KEY, RunningEngine, running_engine
from tests.support.processes import PATIENCE, eventually
from tests.support.raw_client import batch, call, loss, new_model, result
from tests.support.stopwatch import Stopwatch

pytestmark = pytest.mark.engine

HALF_SENT = {
    "nothing": b"",
    "half a request line": b"POST /api/v1/opt",
    "half the headers": b"POST /api/v1/optim_step HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Ke",
    "half a body": (
        b"POST /api/v1/optim_step HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{" % KEY.encode()
    ),
    "half a body in chunks": (
        b"POST /api/v1/forward_backward HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: %b\r\n"
        b"Content-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na"
        % KEY.encode()
    ),
    "half a body that is refused": (
        b"POST /api/v1/optim_step HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
    ),
    "a second request, half": b"GET /api/v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /api",
}
COPIES = 143  # of each of the seven
GONE = 60.0  # seconds, after the last of them was sent, on a Stopwatch


@contextlib.contextmanager
def half_sent(port: int, *, dripping: bool) -> Iterator[list[socket.socket]]:
    """1,001 requests that are not sent to their end; some go on with a byte every second."""
    connections: list[socket.socket] = []
    over = threading.Event()
    try:
        for kind in HALF_SENT.values():
            for _ in range(COPIES):
                connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
                connection.sendall(kind)
                connection.setblocking(False)
                connections.append(connection)

        def drip() -> None:
            while not over.wait(1.0):
                for connection in connections[1::2]:
                    with contextlib.suppress(OSError):
                        connection.send(b"a")

        if dripping:
            threading.Thread(target=drip, daemon=True).start()
        yield connections
    finally:
        over.set()
        for connection in connections:
            connection.close()


def is_open(connection: socket.socket) -> bool:
    """Whether the other side has not closed the connection."""
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@pytest.mark.slow
def test_a_thousand_half_sent_requests_go_within_a_minute_and_others_are_served(
    tmp_path: Path, tiny_model: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    log = tmp_path / "log"
    try:
        with (
            log.open("wb") as stderr,
            running_engine(tmp_path / "engine", tiny_model, stderr=stderr) as running,
        ):
            port = int(running.url.rpartition(":")[2])
            handles = Path(f"/proc/{running.process.pid}/fd")
            model_id = new_model(running)
            before = len(list(handles.iterdir())) if handles.exists() else 0
            with half_sent(port, dripping=True) as connections:
                begin, watch, served = time.monotonic(), Stopwatch(running), 0
                while any(map(is_open, connections)):
                    assert watch.seconds() < GONE
                    served += 1
                    body = batch(model_id, served, [5, 6, 7], forward_only=True)
                    _, future = call(running, "/forward_backward", body)
                    assert loss(result(running, future["request_id"])) > 0
                    time.sleep(0.5)
            assert served > 1, "the first one was answered while the connections were open"
            assert time.monotonic() - begin > 10  # a client may be slow
            if before:
                assert len(list(handles.iterdir())) <= before + 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    text = log.read_text()
    assert "Traceback" not in text
    assert 1 <= text.count("did not arrive in time") <= 2


@pytest.mark.long
def test_a_slow_client_that_sends_enough_is_not_cut_off(engine: RunningEngine) -> None:
    model_id = new_model(engine)
    body = batch(model_id, 1, [5, 6, 7], copies=300)
    port = int(engine.url.rpartition(":")[2])
    head = (
        f"POST /api/v1/forward_backward HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n"
        f"Content-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())
        step = -(-len(body) // 24)
        for start in range(0, len(body), step):  # 24 seconds in all
            time.sleep(1.0)
            connection.sendall(body[start : start + step])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_out_of_file_handles_is_a_line_in_the_log_and_passes(
    tmp_path: Path, tiny_model: Path
) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(tmp_path / "engine", tiny_model, stderr=stderr) as running,
    ):
        model_id = new_model(running)
        port = int(running.url.rpartition(":")[2])
        handles = len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))
        usual = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        for limit, sentence in (
            (handles + 80, "are closed for new ones"),  # connections stop short of the limit
            (handles + 1, "no connection can be accepted"),  # nothing is left
        ):
            resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (limit, usual[1]))
            connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
            assert eventually(lambda said=sentence: said in log.read_text())
            if limit > handles + 1:  # others are served meanwhile
                for _ in range(20):
                    assert call(running, "/healthz")[0] == 200
                _, future = call(running, "/forward_backward", batch(model_id, 1, [5, 6, 7]))
                assert loss(result(running, future["request_id"])) > 0
            time.sleep(3.0)
            for connection in connections:
                connection.close()
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, usual)

        def is_reached() -> bool:
            with contextlib.suppress(OSError):
                return call(running, "/healthz")[0] == 200
            return False

        assert eventually(is_reached)
        _, future = call(running, "/forward_backward", batch(model_id, 2, [5, 6, 7]))
        assert loss(result(running, future["request_id"])) > 0
    text = log.read_text()
    assert "Traceback" not in text
    assert text.count("file handles") <= 4


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nhelloXX\r\n"])
@pytest.mark.parametrize("host", [b"evil.example", b"localhost"])
@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_body_that_is_no_http_is_refused_without_a_traceback(
    spoiled: tuple[RunningEngine, Path],
    chunks: bytes,
    host: bytes,
    pause: float,
) -> None:
    running, log = spoiled
    port = int(running.url.rpartition(":")[2])
    head = b"POST /api/v1/healthz HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head % host)
        time.sleep(pause)
        connection.sendall(chunks)
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert call(running, "/healthz")[0] == 200
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def spoiled(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[tuple[RunningEngine, Path]]:
    folder = tmp_path_factory.mktemp("spoiled")
    log = folder / "log"
    with (
        log.open("wb") as stderr,
        running_engine(folder / "engine", tiny_model, stderr=stderr) as running,
    ):
        yield running, log
