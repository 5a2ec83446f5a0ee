"""Requests without the SDK: repeated, early, malformed, too large and unknown ones."""

from typing import Any

import pytest

from tests.support.engine import MODEL, RunningEngine
from tests.support.raw_client import batch, call, loss, new_model, result

pytestmark = pytest.mark.engine


@pytest.fixture
def model_id(engine: RunningEngine) -> str:
    return new_model(engine)


def test_numbers_that_come_early_wait_and_repeated_ones_run_once(
    engine: RunningEngine, model_id: str
) -> None:
    step = {"model_id": model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.005}}
    _, early = call(engine, "/optim_step", step)
    assert call(engine, "/optim_step", step) == (200, early)
    _, last = call(engine, "/forward_backward", batch(model_id, 3, [5, 6, 7], forward_only=True))
    for _ in range(3):  # a client repeats a request if the answer is lost
        _, first = call(engine, "/forward_backward", batch(model_id, 1, [5, 6, 7]))
    before = loss(result(engine, first["request_id"]))
    assert result(engine, early["request_id"])["metrics"]["grad_norm"] > 0
    after = loss(result(engine, last["request_id"]))
    assert after < before
    assert loss(result(engine, first["request_id"])) == before  # still there for a second poll
    assert call(engine, "/optim_step", step) == (200, early)
    _, again = call(engine, "/forward_backward", batch(model_id, 4, [5, 6, 7], forward_only=True))
    assert loss(result(engine, again["request_id"])) == after


def test_a_client_is_created_once_however_often_it_is_requested(
    engine: RunningEngine, model_id: str
) -> None:
    body = {"session_id": model_id.split(":")[0], "model_seq_id": 0, "base_model": MODEL}
    status, future = call(engine, "/create_model", {**body, "lora_config": {"rank": 2}})
    assert (status, future["model_id"]) == (200, model_id)
    assert result(engine, future["request_id"])["model_id"] == model_id


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/optim_step", {"adam_params": {"learning_rate": "fast"}}),
        ("/optim_step", {"adam_params": [1]}),
        ("/optim_step", {"adam_params": {"learning_rate": -1}}),
        ("/optim_step", {"optimizer_params": {"type": "dimuon"}}),
        ("/save_weights", {"path": "a/b"}),
        ("/save_weights", {"path": "x", "ttl_seconds": -1}),
        ("/save_weights", {"path": "x", "user_metadata": 7}),
        ("/save_weights_for_sampler", {"path": ""}),
        ("/save_weights_for_sampler", {"sampling_session_seq_id": "first"}),
        ("/save_weights_external", {"path": "x", "age_encryption_recipients": ["age1nobody"]}),
        ("/load_weights", {"path": "nonsense"}),
        ("/load_weights", {"path": "tinker://a/weights/b"}),
        ("/load_weights", {}),
    ],
)
def test_a_wrong_numbered_operation_fails_its_future_never_its_status(
    engine: RunningEngine, model_id: str, path: str, body: dict
) -> None:
    status, future = call(engine, path, {"model_id": model_id, "seq_id": 1, **body})
    assert status == 200, future
    failed = result(engine, future["request_id"])
    assert failed["category"] == "user", failed
    _, future = call(engine, "/forward_backward", batch(model_id, 2, [5, 6, 7]))
    assert loss(result(engine, future["request_id"])) > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/no_such_thing", {}, 404, "has no POST /api/v1/no_such_thing"),
        ("/create_model", b"{", 400, "not JSON"),
        ("/create_model", b"[]", 400, "not a JSON object"),
        ("/create_model", {"base_model": MODEL, "lora_config": {"rank": 0}}, 400, "rank"),
        ("/create_model", {"base_model": "x/../y", "lora_config": {"rank": 1}}, 400, "offered"),
        ("/create_session", {"user_metadata": 3}, 400, "user_metadata"),
        ("/forward_backward", b"\xff\xff", 400, "not a ForwardBackwardRequest"),
        ("/forward_backward", b"", 400, "with a model_id and a seq_id"),
        ("/optim_step", {"model_id": "a:train:0", "seq_id": 1}, 410, "session a has ended"),
        ("/session_heartbeat", {"session_id": "gone"}, 410, "has ended"),
        ("/retrieve_future", {"request_id": "gone"}, 410, "is gone"),
        ("/weights_info", {"tinker_path": "tinker://a/weights/b"}, 404, "does not exist"),
        ("/billing/usage/events", {}, 400, "billing has no meaning"),
        ("/copy_weights", {}, 400, "source_path is None"),
        ("/training_runs/unknown", None, 404, "no training run unknown"),
        ("/samplers/unknown", None, 404, "no sampler unknown"),
        ("/sessions/unknown", None, 404, "no session unknown"),
        ("/training_runs?limit=many", None, 400, "limit is 'many'"),
        ("/training_runs?limit=" + "9" * 5000, None, 400, "must be a whole number"),
        ("/training_runs/%ff%00", None, 404, "no training run"),
        ("/session_heartbeat", b'{"session_id": "\\ud800"}', 400, "not JSON"),
        ("/asample", b'{"sampling_session_id": "a", "seq_id": 1e999}', 400, "seq_id is inf"),
        (
            "/asample",
            b'{"sampling_session_id":"a","seq_id":0,"sampling_params":{"temperature":NaN}}',
            400,
            "temperature is nan; it must be a finite number",
        ),
        ("/sessions/unknown/trace_export", None, 404, "no trace of session unknown"),
    ],
)
def test_everything_else_that_is_wrong_is_a_4xx_with_a_sentence(
    engine: RunningEngine, path: str, body: Any, status: int, sentence: str
) -> None:
    got, answer = call(engine, path, body)
    assert (got, sentence in answer["detail"]) == (status, True), answer


def test_after_a_session_has_ended_its_requests_are_told_so(
    engine: RunningEngine, model_id: str
) -> None:
    session_id = model_id.split(":")[0]
    _, taken = call(engine, "/forward_backward", batch(model_id, 1, [5, 6, 7]))
    assert loss(result(engine, taken["request_id"])) > 0
    _, waiting = call(engine, "/optim_step", {"model_id": model_id, "seq_id": 7})
    assert call(engine, f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})[0] == 204
    assert "has ended" in result(engine, waiting["request_id"])["error"]
    # What was delivered is not held for ten more minutes: many short sessions would add up.
    status, answer = call(engine, "/retrieve_future", taken)
    assert status == 410 and "before its session ended" in answer["detail"]
    for path, body in (
        ("/forward_backward", batch(model_id, 1, [1, 2])),
        ("/get_info", {"model_id": model_id}),
        ("/session_heartbeat", {"session_id": session_id}),
    ):
        status, answer = call(engine, path, body)
        assert status == 410 and "has ended" in answer["detail"]


def test_the_key_guards_all_but_health(engine: RunningEngine) -> None:
    for key in ("", "tml-other", "tml-localx"):
        status, answer = call(engine, "/checkpoints", X_API_Key=key)
        assert status == 401 and "API key" in answer["detail"]
    assert call(engine, "/healthz", X_API_Key="")[0] == 200
