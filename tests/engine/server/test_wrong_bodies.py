"""Bodies that no SDK sends: malformed, too large, or made to grow. No other client notices them.

Each has an engine's future or status with a sentence within a second, and leaves no hole in the
sequence of its client's operations.
"""

import gzip
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clients import new_client, train
from tests.support.engine import RunningEngine, random_datums, running_engine
from tests.support.raw_client import batch, call, loss, new_model, result, stream
from tests.support.stopwatch import Stopwatch
from tests.support.wrong_bodies import BROKEN, GIB, encoding_of, memory, pieces_of, zstd
from tinkersmith.engine.server.bodies import MAX_BODY, MAX_JSON

pytestmark = pytest.mark.engine

SECOND = 1.0  # on a Stopwatch


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningEngine]:
    """An engine that only this module uses, so that its memory can be measured."""
    with running_engine(tmp_path_factory.mktemp("alone"), tiny_model) as running:
        call(
            running, "/forward_backward", batch(new_model(running), 1, [1, 2, 3])
        )  # loads everything
        yield running


@pytest.fixture
def model_id(alone: RunningEngine) -> str:
    return new_model(alone)


@contextmanager
def unmoved(alone: RunningEngine) -> Iterator[None]:
    """Another client trains meanwhile, and gets the results it gets alone, in time."""
    batches = [random_datums(2, seed=seed) for seed in range(3)]
    with alone.client() as service:
        reference = new_client(service)
        expected = [train(reference, data) for data in batches]
        client, over = new_client(service), threading.Event()
        losses, longest = [train(client, batches[0])], 0.0

        def train_on() -> None:
            nonlocal longest
            for index in itertools.count(1):
                watch = Stopwatch(alone)
                client.forward(batches[0], "cross_entropy").result()
                longest = max(longest, watch.seconds())
                if index == 2:
                    losses.append(train(client, batches[1]))
                if over.is_set() and index > 2:
                    return

        thread = threading.Thread(target=train_on)
        thread.start()
        yield
        over.set()
        thread.join()
        losses.append(train(client, batches[2]))
        assert losses == expected
        assert longest < SECOND


def works_on(engine: RunningEngine, model_id: str, seq_id: int) -> None:
    """Check that the client can go on with its next number."""
    body = batch(model_id, seq_id, [5, 6, 7], forward_only=True)
    _, future = call(engine, "/forward_backward", body)
    assert loss(result(engine, future["request_id"])) > 0
    assert engine.process.poll() is None


@pytest.fixture(scope="module")
def at_start(alone: RunningEngine) -> int:
    return memory(alone, "VmRSS")


@pytest.fixture(autouse=True)
def lean(alone: RunningEngine, at_start: int) -> Iterator[None]:
    """A refused body never takes more memory than two bodies of the largest size."""
    yield
    assert memory(alone, "VmHWM") - at_start < 2 * MAX_BODY


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_batch_fails_its_own_future(
    alone: RunningEngine, model_id: str, kind: str
) -> None:
    spoil, sentence = BROKEN[kind]
    body = spoil(batch(model_id, 1, [5, 6, 7]))
    assert len(body) < 500_000
    with unmoved(alone):
        watch = Stopwatch(alone)
        encoding = encoding_of(body)
        status, future = call(alone, "/forward_backward", body, content_encoding=encoding)
        assert status == 200, future
        failed = result(alone, future["request_id"])
        assert watch.seconds() < SECOND
    assert failed["category"] == "user" and sentence in failed["error"]
    step = {"model_id": model_id, "seq_id": 2, "adam_params": {}}
    _, future = call(alone, "/optim_step", step)
    assert "was not taken" in result(alone, future["request_id"])["error"]
    works_on(alone, model_id, 3)


@pytest.mark.parametrize("declared", [True, False])
def test_a_compressed_batch_is_read_whether_its_size_is_declared_or_not(
    alone: RunningEngine, model_id: str, declared: bool
) -> None:
    good = [batch(model_id, seq_id, [5, 6, 7], copies=2000) for seq_id in (1, 2)]
    packed = zstd(good[1], declared=declared)
    losses = []
    for body, encoding in ((good[0], "identity"), (packed, "zstd")):
        _, future = call(alone, "/forward_backward", body, content_encoding=encoding)
        losses.append(loss(result(alone, future["request_id"])))
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize(
    ("body", "encoding", "sentence"),
    [
        (os.urandom(2000), "", "not a ForwardBackwardRequest"),
        (os.urandom(2000), "zstd", "not valid zstd"),
        (gzip.compress(batch("a:train:0", 1, [1, 2])), "gzip", "'gzip' is not supported"),
        (b"", "", "with a model_id and a seq_id"),
    ],
)
def test_a_batch_that_does_not_say_whose_it_is_is_a_4xx(
    alone: RunningEngine, body: bytes, encoding: str, sentence: str
) -> None:
    with unmoved(alone):
        status, answer = call(alone, "/forward_backward", body, content_encoding=encoding)
    assert status == 400 and sentence in answer["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/optim_step", b'{"model_id": "%b", "seq_id": 1, "adam_params": {'),
        (
            "/save_weights",
            b'{"model_id":"%b","path":"x","seq_id":1,"user_metadata":{"a":"\\ud800"}}',
        ),
        ("/save_weights_external", b'{"model_id":"%b","path":"x","seq_id":1,"a":' + b"[" * 10**6),
        ("/load_weights", b'{"model_id":"%b","path":"x","seq_id":1,"a":"\xff"}'),
    ],
)
def test_a_broken_json_operation_fails_its_own_future(
    alone: RunningEngine, model_id: str, path: str, body: bytes
) -> None:
    with unmoved(alone):
        status, future = call(alone, path, body.replace(b"%b", model_id.encode()))
        assert status == 200, future
        failed = result(alone, future["request_id"])
    assert failed == {"error": "the body is not JSON.", "category": "user"}
    works_on(alone, model_id, 2)


def test_a_gigabyte_is_refused_by_its_length_before_it_is_read(
    alone: RunningEngine, model_id: str
) -> None:
    pieces = itertools.islice(pieces_of(batch(model_id, 1, [5, 6, 7])), 2)
    with unmoved(alone):
        answer = stream(alone, "/forward_backward", pieces, GIB)
        failed = result(alone, answer.body["request_id"])
    assert (answer.status, failed["category"]) == (200, "user")
    assert "the body has 1,024 MiB; the limit is 256 MiB" in failed["error"]
    assert answer.sent < 2 * 2**20 and answer.seconds_running < SECOND
    works_on(alone, model_id, 2)


def test_a_gigabyte_of_unknown_length_is_refused_where_the_limit_is_passed(
    alone: RunningEngine, model_id: str
) -> None:
    pieces = itertools.islice(pieces_of(batch(model_id, 1, [5, 6, 7])), 1024)
    with unmoved(alone):
        answer = stream(alone, "/forward_backward", pieces)
        failed = result(alone, answer.body["request_id"])
    assert (answer.status, failed["category"]) == (200, "user")
    assert "the body has more than 256 MiB" in failed["error"]
    assert answer.sent < MAX_BODY + 64 * 2**20 and answer.seconds_running < SECOND
    works_on(alone, model_id, 2)


def test_a_client_that_sends_its_gigabyte_to_the_end_sees_the_answer(
    alone: RunningEngine, model_id: str
) -> None:
    """Simple clients read no answer before they have sent everything."""
    pieces = itertools.islice(pieces_of(batch(model_id, 1, [5, 6, 7])), 1024)
    with unmoved(alone):
        answer = stream(alone, "/forward_backward", pieces, stubborn=True)
        failed = result(alone, answer.body["request_id"])
    assert answer.sent > 1000 * 2**20 and answer.seconds_running < SECOND
    assert "the limit is 256 MiB" in failed["error"]
    works_on(alone, model_id, 2)


@pytest.mark.parametrize("length", [None, GIB])
@pytest.mark.parametrize("path", ["/create_model", "/asample", "/create_session", "/optim_step"])
def test_a_gigabyte_of_json_is_refused_sooner(
    alone: RunningEngine, path: str, length: int | None
) -> None:
    pieces = pieces_of(b'{"a": "', b" " * 2**20)
    with unmoved(alone):
        answer = stream(alone, path, itertools.islice(pieces, 8 if length else 1024), length)
    assert answer.status == 400 and "the limit is 32 MiB" in answer.body["detail"]
    assert answer.sent < MAX_JSON + 64 * 2**20 and answer.seconds_running < SECOND


def test_a_wrong_key_is_refused_before_its_gigabyte_is_read(alone: RunningEngine) -> None:
    pieces = itertools.islice(pieces_of(b""), 1, 3)
    answer = stream(alone, "/forward_backward", pieces, GIB, key="tml-other")
    assert answer.status == 401 and answer.sent < 3 * 2**20 and answer.seconds_running < SECOND
