"""Requests to a judge over real HTTP: keys, faults, retries and what is said about them."""

import json
from collections.abc import Iterator

import pytest

from tests.support.judge_server import JudgeFault, StubJudge, judge_server
from tinkersmith.errors import UserError
from tinkersmith.metrics.judge_client import (
    ATTEMPTS,
    JudgeClient,
    JudgeRefused,
    is_open_to_readers,
    judge_address,
    open_judge,
)
from tinkersmith.metrics.judge_prompts import JudgePrompt

PROMPT = JudgePrompt("system", "user")


@pytest.fixture
def stub() -> Iterator[StubJudge]:
    with judge_server() as judge:
        yield judge


def client_of(stub: StubJudge, key: str = "") -> tuple[JudgeClient, list[float]]:
    pauses: list[float] = []
    client = open_judge(stub.url, "judge-1", key)
    client.pause = pauses.append
    return client, pauses


def test_a_request_has_the_model_the_messages_and_the_key(stub: StubJudge, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", " secret ")
    client = open_judge(stub.url, "judge-1")
    reply = client.ask(PROMPT)
    assert (reply.text, reply.cut, reply.prompt_tokens, reply.reply_tokens) == (
        "Score: 7",
        False,
        100,
        10,
    )
    [request] = stub.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "judge-1" and request["temperature"] == 0
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert stub.keys == ["Bearer secret"]
    assert "secret" not in repr(client)


def test_no_key_sends_no_header(stub: StubJudge, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    open_judge(stub.url, "m").ask(PROMPT)
    assert stub.keys == [None]


def test_a_key_that_cannot_be_one_is_refused_before_it_is_sent(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "钥匙")
    with pytest.raises(UserError, match="JUDGE_API_KEY holds characters"):
        open_judge("http://localhost:1/v1", "m")


@pytest.mark.parametrize(
    "fault",
    [
        JudgeFault(status=500),
        JudgeFault(status=503, body=b"busy"),
        JudgeFault(status=429, headers={"Retry-After": "7"}),
        JudgeFault(hang_up=True),
        JudgeFault(body=b"no json"),
        JudgeFault(body=b"[]"),
        JudgeFault(body=b'{"choices": []}'),
        JudgeFault(body=b'{"choices": [{"message": {"content": 3}}]}'),
    ],
)
def test_a_fault_that_passes_is_waited_for(stub: StubJudge, fault: JudgeFault):
    stub.faults = [fault, fault]
    client, pauses = client_of(stub)
    assert client.ask(PROMPT).text == "Score: 7"
    assert len(stub.requests) == 3
    assert pauses == ([7.0, 7.0] if fault.headers else [0.5, 1.0])


def test_a_judge_that_stays_away_is_one_sentence(stub: StubJudge):
    stub.always = JudgeFault(status=502)
    client, _ = client_of(stub)
    with pytest.raises(UserError, match=r"does not answer \(HTTP 502") as caught:
        client.ask(PROMPT)
    assert "JUDGE_URL" in str(caught.value) and len(stub.requests) == ATTEMPTS


def test_nobody_at_the_address_is_one_sentence():
    with judge_server() as gone:
        url = gone.url
    client = open_judge(url, "m", "")
    client.pause = lambda seconds: None
    with pytest.raises(UserError, match="does not answer"):
        client.ask(PROMPT)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "refuses the key .* Set JUDGE_API_KEY"),
        (403, "refuses the key"),
        (404, "has no model judge-1 or no such address"),
        (302, "Check JUDGE_MODEL and JUDGE_URL"),
        (402, "wants to be paid"),
    ],
)
def test_what_repeating_cannot_cure_is_asked_once(stub: StubJudge, status: int, sentence: str):
    stub.always = JudgeFault(status=status, headers={"Location": "http://localhost:1/"})
    client, pauses = client_of(stub)
    with pytest.raises(UserError, match=sentence):
        client.ask(PROMPT)
    assert len(stub.requests) == 1 and pauses == []


def test_a_text_that_is_refused_is_no_end_of_all(stub: StubJudge):
    stub.refuses = lambda body: "content filter"
    client, _ = client_of(stub)
    with pytest.raises(JudgeRefused, match="HTTP 400: content filter"):
        client.ask(PROMPT)


def test_options_that_a_server_refuses_are_left_out_and_said(stub: StubJudge):
    def refuses(body: dict) -> str:
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'."
        return "'temperature' does not support 0" if "temperature" in body else ""

    stub.refuses = refuses
    client, _ = client_of(stub)
    assert client.ask(PROMPT).text == "Score: 7"
    assert client.ask(JudgePrompt("system", "another")).text == "Score: 7"
    assert len(stub.requests) == 4, "the second request knows it"
    assert "max_completion_tokens" in stub.requests[-1]
    assert len(client.notes) == 2


def test_a_reply_without_counts_or_text_is_read_as_such(stub: StubJudge):
    content = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    stub.always = JudgeFault(body=json.dumps(content).encode())
    client, _ = client_of(stub)
    reply = client.ask(PROMPT)
    assert (reply.text, reply.cut, reply.prompt_tokens) == ("", True, None)


def test_a_lone_surrogate_in_an_answer_is_sent_as_a_question_mark(stub: StubJudge):
    client, _ = client_of(stub)
    client.ask(JudgePrompt("system", "a\ud800b"))
    assert stub.requests[0]["messages"][1]["content"] == "a?b"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://a.example/v1/chat/completions", "https://a.example/v1/chat/completions"),
        ("https://a.example", "https://a.example/chat/completions"),
    ],
)
def test_the_address_is_below_the_base(url: str, address: str):
    assert judge_address(url) == address


def test_a_key_over_plain_http_is_noticed():
    assert is_open_to_readers("http://judge.example/v1/chat/completions")
    assert not is_open_to_readers("https://judge.example/v1/chat/completions")
    assert not is_open_to_readers("http://127.0.0.1:8000/v1/chat/completions")
