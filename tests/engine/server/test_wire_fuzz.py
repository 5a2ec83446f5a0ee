"""Wrong requests by chance: a short form of `python -m benchmarks.reliability.wire`."""

import os
from pathlib import Path

import pytest

from tests.support.engine import RunningEngine, running_engine
from tests.support.raw_client import call, new_model, result
from tests.support.wire_fuzz import Fuzzer, Sent, Tally

pytestmark = pytest.mark.engine

BODIES = int(os.environ.get("TINKERSMITH_FUZZ_BODIES", "800"))


def test_wrong_requests_get_sentences_and_leave_the_engine_as_it_was(
    tmp_path: Path, tiny_model: Path
) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(tmp_path / "engine", tiny_model, stderr=stderr) as running,
    ):
        fuzzer = Fuzzer(running, seed=20_261_127)
        for _ in range(BODIES):
            fuzzer.step()
        fuzzer.finish()
        assert running.process.poll() is None
        assert new_model(running)
    tally = fuzzer.tally
    assert tally.faults == []
    # The bodies reach all kinds of answers: they are not all refused at the door.
    assert tally.statuses[200] > BODIES // 4 and tally.statuses[400] > BODIES // 8
    assert "Traceback" not in log.read_text() and "a job failed" not in log.read_text()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, b"Internal Server Error"),
        (200, b'{"error":"engine error: TypeError: x","category":"server"}'),
        (400, b'{"detail":"unhashable: ValueError"}'),
        (200, b'{"error":"the engine could not use its disk","category":"server"}'),
    ],
)
def test_an_answer_that_must_not_be_is_a_fault(status: int, answer: bytes) -> None:
    tally = Tally()
    tally.judge(Sent("POST", "/x", b"{}", {}), status, answer, 0.1)
    assert len(tally.faults) == 1
    tally.judge(Sent("POST", "/x", b"{}", {}), 400, b'{"detail":"x is 1; it must be 2."}', 0.1)
    assert len(tally.faults) == 1
    tally.judge(Sent("POST", "/x", b"{}", {}), 400, b'{"detail":"late."}', 11.0)
    assert len(tally.faults) == 2


LISTS: list[object] = [[1], [[1]], [{}], [None], ["a", 1], {"a": 1}, 7, "a", [{"type": ["active"]}]]


@pytest.mark.parametrize("wrong", LISTS)
@pytest.mark.parametrize(
    "field", ["project_ids", "statuses", "owner", "cursor", "user_metadata", "limit", "session_id"]
)
def test_a_search_with_a_wrong_list_is_refused_or_answered(
    engine: RunningEngine, field: str, wrong: object
) -> None:
    status, answer = call(engine, "/sessions/search", {field: wrong})
    assert status in (200, 400), answer
    assert status == 200 or "Error" not in answer["detail"]
    nested = {"owner": {"owner_urns": wrong}, "user_metadata": {"a": wrong}}
    status, answer = call(engine, "/sessions/search", nested)
    assert status in (200, 400) and (status == 200 or "owner_urns" in answer["detail"])


@pytest.mark.parametrize("tokens", [7, 0, "", "a", {"a": 1}, [None], [[1]], [1.5], [True], 0.5])
def test_tokens_of_a_sampling_chunk_that_are_no_list_of_numbers_are_refused(
    engine: RunningEngine, tokens: object
) -> None:
    body = {
        "sampling_session_id": "a:sample:0",
        "seq_id": 0,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "sampling_params": {"max_tokens": 1},
    }
    status, answer = call(engine, "/asample", body)
    assert status == 400 and "must be a list of whole numbers" in answer["detail"]


@pytest.mark.parametrize("value", [[1], {"a": [1]}, 7, True, ["a"] * 999])
def test_a_session_with_odd_metadata_or_name_is_created_or_refused(
    engine: RunningEngine, value: object
) -> None:
    status, answer = call(engine, "/create_session", {"user_metadata": {"a": value}})
    assert status == 200, answer
    status, answer = call(engine, "/create_session", {"display_name": value})
    assert status == 400 and "display_name is" in answer["detail"]
    status, answer = call(engine, "/create_session", {"user_metadata": value, "tags": value})
    assert status in (200, 400)


@pytest.mark.parametrize("number", [-1, 2**31, 10**30, 1e300])
def test_a_number_that_no_sdk_counts_to_is_refused(engine: RunningEngine, number: float) -> None:
    model_id = new_model(engine)
    session = {"session_id": model_id.partition(":")[0], "base_model": "tiny"}
    for path, body in (
        ("/create_model", {**session, "model_seq_id": number, "lora_config": {"rank": 2}}),
        ("/create_sampling_session", {**session, "sampling_session_seq_id": number}),
        ("/optim_step", {"model_id": model_id, "seq_id": number, "adam_params": {}}),
    ):
        status, answer = call(engine, path, body)
        assert status == 400 and "it must be from 0 to 2,147,483,647" in answer["detail"]
    snapshot = {"model_id": model_id, "seq_id": 1, "sampling_session_seq_id": number}
    _, future = call(engine, "/save_weights_for_sampler", snapshot)
    assert "it must be from 0 to" in result(engine, future["request_id"])["error"]
