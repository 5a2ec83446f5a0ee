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
    tracks = {one["pid"]: one["args"]["name"] for one in events if one["ph"] == "M"}
    own = [one for one in events if one["ph"] == "X" and tracks[one["pid"]] == client.model_id]
    step = ["forward_backward", "optim_step"]
    assert [one["name"] for one in own] == ["create_model", *step * 3]
    ends = [one["ts"] + one["dur"] for one in own]
    assert all(end <= after["ts"] for end, after in zip(ends, own[1:], strict=False))
    assert not any(one["args"]["failed"] for one in own)
    assert "sample" in [one["name"] for one in events if one["ph"] == "X"]
    assert sum(one["ph"] == "b" for one in events) == sum(one["ph"] == "e" for one in events)


def test_the_address_of_a_trace_is_good_for_this_trace_only(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine
) -> None:
    own = new_client(service).model_id.partition(":")[0]
    other = new_client(engine.client()).model_id.partition(":")[0]
    address = rest.export_session_trace(own).result()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address.replace(own, other), timeout=10)


def test_only_the_newest_spans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkersmith.engine.scheduling.traces.SPANS_KEPT", 3)
    monkeypatch.setattr("tinkersmith.engine.scheduling.traces.SESSIONS_KEPT", 2)
    traces = Traces()
    for session in "abc":
        for second in range(5):
            traces.add(Span(f"{session}:train:0", str(second), second, second, second + 1, False))
    assert [one["name"] for one in traces.events("c") if one["ph"] == "X"] == ["2", "3", "4"]
    with pytest.raises(NotFound, match="no trace of session a"):
        traces.events("a")
