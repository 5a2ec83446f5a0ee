"""A field that has its default value, or is null, is no error in any request that the SDK can send.

The SDK leaves such fields out. Other programs send every field of its request types.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from tinker import types

from tests.support.engine import SDK, RunningEngine
from tests.support.raw_client import batch, call, new_model, result

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(SDK < (0, 38), reason="the types are those of the newest SDK"),
]

PROMPT = types.ModelInput.from_ints([1, 2, 3])


class World:
    """A client, and what its requests name."""

    def __init__(self, engine: RunningEngine) -> None:
        self.engine = engine
        self.model = new_model(engine)
        self.session = self.model.split(":")[0]
        body = {"session_id": self.session, "sampling_session_seq_id": 0, "base_model": "tiny"}
        _, answer = call(engine, "/create_sampling_session", body)
        self.sampler = answer["sampling_session_id"]
        self.state = self.saved()

    def saved(self) -> str:
        _, answer = call(self.engine, "/save_weights", {"model_id": self.model, "path": "state"})
        return result(self.engine, answer["request_id"])["path"]


@pytest.fixture(scope="module")
def world(engine: RunningEngine) -> World:
    return World(engine)


Request = Callable[[World], Any]
# The route of each request type, and the type with no more than it must have.
REQUESTS: dict[str, tuple[str, Request]] = {
    "ClientConfigRequest": (
        "/client/config",
        lambda w: types.ClientConfigRequest(sdk_version="0.38.0"),
    ),
    "CopyWeightsRequest": (
        "/copy_weights",
        lambda w: types.CopyWeightsRequest(source_path=w.state),
    ),
    "CreateModelRequest": (
        "/create_model",
        lambda w: types.CreateModelRequest(session_id=w.session, model_seq_id=7, base_model="tiny"),
    ),
    "CreateSamplingSessionRequest": (
        "/create_sampling_session",
        lambda w: types.CreateSamplingSessionRequest(
            session_id=w.session, sampling_session_seq_id=7, base_model="tiny"
        ),
    ),
    "CreateSessionRequest": (
        "/create_session",
        lambda w: types.CreateSessionRequest(tags=[], user_metadata={}, sdk_version="0.38.0"),
    ),
    "FutureRetrieveRequest": (
        "/retrieve_future",
        lambda w: types.FutureRetrieveRequest(request_id=f"{w.model}:0"),
    ),
    "GetInfoRequest": ("/get_info", lambda w: types.GetInfoRequest(model_id=w.model)),
    "GetCurrentCheckpointStorageUsageRequest": (
        "/billing/usage/checkpoints/current",
        lambda w: types.GetCurrentCheckpointStorageUsageRequest(),
    ),
    "LoadWeightsRequest": (
        "/load_weights",
        lambda w: types.LoadWeightsRequest(
            session_id=w.session, model_seq_id=8, path=w.state, optimizer=True
        ),
    ),
    "LoadWeightsRequest of a client": (
        "/load_weights",
        lambda w: types.LoadWeightsRequest(model_id=w.model, path=w.state, optimizer=False),
    ),
    "OptimStepRequest": (
        "/optim_step",
        lambda w: types.OptimStepRequest(optim_params=types.AdamParams(), model_id=w.model),
    ),
    "SampleRequest": (
        "/asample",
        lambda w: types.SampleRequest(
            prompt=PROMPT,
            sampling_params=types.SamplingParams(),
            sampling_session_id=w.sampler,
            seq_id=0,
        ),
    ),
    "SaveWeightsExternalRequest": (
        "/save_weights_external",
        lambda w: types.SaveWeightsExternalRequest(model_id=w.model, path="external"),
    ),
    "SaveWeightsForSamplerRequest": (
        "/save_weights_for_sampler",
        lambda w: types.SaveWeightsForSamplerRequest(model_id=w.model),
    ),
    "SaveWeightsRequest": (
        "/save_weights",
        lambda w: types.SaveWeightsRequest(model_id=w.model),
    ),
    "SessionHeartbeatRequest": (
        "/session_heartbeat",
        lambda w: types.SessionHeartbeatRequest(session_id=w.session),
    ),
    "SessionSearchRequest": ("/sessions/search", lambda w: types.SessionSearchRequest()),
    "TelemetrySendRequest": (
        "/telemetry",
        lambda w: types.TelemetrySendRequest(
            events=[], platform="x", sdk_version="0.38.0", session_id=w.session, process_uuid="x"
        ),
    ),
}
# Types of requests that are refused whatever is in them, that are never sent, or that are no JSON.
OTHERS = {
    "CreateCustomLossRequest",
    "ForwardBackwardRequest",
    "ForwardRequest",
    "FuturesRetrieveRequest",
    "GetBillingUsageRequest",
    "JoinSamplingSessionRequest",
    "UnloadModelRequest",
}


def test_every_request_type_of_the_sdk_is_known_here() -> None:
    named = {
        name
        for name, value in vars(types).items()
        if inspect.isclass(value) and name.endswith("Request")
    }
    assert named == {name.split(" ")[0] for name in REQUESTS} | OTHERS


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_with_all_its_defaults_is_answered(world: World, name: str) -> None:
    path, make = REQUESTS[name]
    body = make(world).model_dump(mode="json")  # with nulls, which the SDK leaves out
    status, answer = call(world.engine, path, body)
    assert status in (200, 204), answer
    if isinstance(answer, dict) and "request_id" in answer and path != "/retrieve_future":
        ended = result(world.engine, answer["request_id"])
        assert not (isinstance(ended, dict) and "error" in ended), ended


def test_the_parameters_of_both_optimizers_are_no_errors_with_their_defaults(
    world: World,
) -> None:
    engine, session = world.engine, world.session
    config = types.DimuonOptimizerConfig().model_dump()
    body = {"session_id": session, "model_seq_id": 9, "base_model": "tiny"}
    _, answer = call(engine, "/create_model", {**body, "optimizer_config": config})
    model = result(engine, answer["request_id"])["model_id"]
    call(engine, "/forward_backward", batch(model, 1, [1, 2, 3]))
    # Two fields of earlier releases, with the defaults that they had.
    params = types.DimuonParams(learning_rate=0.01).model_dump()
    params |= {"damping": 1e-4, "rank_lr_correction_exponent": 0.175}
    step = {"model_id": model, "optimizer_params": params, "adam_params": None}
    _, answer = call(engine, "/optim_step", step)
    assert result(engine, answer["request_id"])["metrics"]["dimuon_update_norm"] > 0
    params["damping"] = 0.1
    _, answer = call(engine, "/optim_step", step)
    assert "damping = 0.1, which this engine does not support" in str(
        result(engine, answer["request_id"])
    )
