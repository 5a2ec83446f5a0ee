"""The trace of a session: when each request waited and ran, downloaded without a key."""

import json
import urllib.error
import urllib.request

import pytest
import tinker

from tests.support.clients import new_client, train
from tests.support.engine import MODEL, RunningEngine, random_datums
from tinkersmith.engine.errors import NotFound
from tinkersmith.engine.scheduling.traces import Span, Traces

pytestmark = pytest.mark.engine


def test_a_trace_holds_every_request_of_a_session_in_the_order_in_which_they_ran(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    client = new_client(service)
    for _ in range(3):
        train(client, random_datums(2))
    sampler = service.create_sampling_client(base_model=MODEL).result()
    prompt, params = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=2)
    sampler.sample(prompt, 1, params).result()
    session_id = client.model_id.partition(":")[0]
    address = rest.export_session_trace(session_id).result()
    with urllib.request.urlopen(address, timeout=10) as answer:
        events = json.load(answer)["traceEvents"]
    tracks = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    runs = [event for event in events if event["ph"] == "X"]
    trained = [event for event in runs if tracks[event["pid"]] == client.model_id]
    step = ["forward_backward", "optim_step"]
    assert [event["name"] for event in trained] == ["create_model", *step * 3]
    ends = [event["ts"] + event["dur"] for event in trained]
    assert all(end <= after["ts"] for end, after in zip(ends, trained[1:], strict=False))
    assert not any(event["args"]["failed"] for event in trained)
    assert "sample" in [event["name"] for event in runs]
    kinds = [event["ph"] for event in events]
    assert kinds.count("b") == kinds.count("e")


def test_the_address_of_a_trace_is_valid_for_this_trace_only(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine
) -> None:
    session_id = new_client(service).model_id.partition(":")[0]
    other = new_client(engine.client()).model_id.partition(":")[0]
    address = rest.export_session_trace(session_id).result()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address.replace(session_id, other), timeout=10)


def test_only_the_newest_spans_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkersmith.engine.scheduling.traces.MAX_SPANS", 3)
    monkeypatch.setattr("tinkersmith.engine.scheduling.traces.MAX_SESSIONS", 2)
    traces = Traces()
    for session in "abc":
        for second in range(5):
            traces.add(Span(f"{session}:train:0", str(second), second, second, second + 1, False))
    assert [event["name"] for event in traces.events("c") if event["ph"] == "X"] == ["2", "3", "4"]
    with pytest.raises(NotFound, match="no trace of session a"):
        traces.events("a")
