"""Streams and answers that a server behind cuts anywhere, as the real clients see them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cut_server import JSON, STREAM, CutServer, cut_server
from tests.support.processes import PATIENCE
from tests.support.serving import anthropic_of, openai_of, serving
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.server import RunningServer
from tinkersmith.serving.streams import BrokenStream, whole_events
from tinkersmith.settings.reading import settings_from

[BUNDLED] = BUNDLED_MODELS
ASKED: Any = {"model": "tuned", "messages": [{"role": "user", "content": "3 + 4?"}]}
TEXTS = ("Sieben, ", "七 🙂", ".")


def events_of(path: str) -> list[bytes]:
    """The events of one answer, in the form of the API at `path`."""
    if path == "/v1/messages":
        return [
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":'
            b'"message","role":"assistant","model":"a","content":[],"stop_reason":null,'
            b'"stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":0}}}\n\n',
            b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            b'"content_block":{"type":"text","text":""}}\n\n',
            *(
                _event(
                    {
                        "type": "content_block_delta",
                        "index": 0,
                        "delta": {"type": "text_delta", "text": text},
                    },
                    "content_block_delta",
                )
                for text in TEXTS
            ),
            _event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
            _event(
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 5},
                },
                "message_delta",
            ),
            _event({"type": "message_stop"}, "message_stop"),
        ]
    chat = path == "/v1/chat/completions"
    events = [
        _event(
            {
                "id": "c",
                "object": "chat.completion.chunk" if chat else "text_completion",
                "created": 1,
                "model": "a",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": reason,
                        "logprobs": None,
                        **({"delta": {"content": text}} if chat else {"text": text}),
                    }
                ],
            }
        )
        for text, reason in [*((text, None) for text in TEXTS), ("", "stop")]
    ]
    return [*events, b"data: [DONE]\n\n"]


def _event(value: dict[str, Any], name: str = "") -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    return f"{f'event: {name}' + chr(10) if name else ''}data: {text}\n\n".encode()


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
_WHOLE = b"".join(events_of(PATHS[0]))
# Where the stream of a chat may be cut: at the headers, within a word, within a character, before
# an event's empty line, between two events, and before the last.
PLACES = {
    "after the headers": 0,
    "within a line": _WHOLE.index(b"Sieben") + 3,
    "within a character": _WHOLE.index("七".encode()) + 1,
    "before an empty line": _WHOLE.index(b"\n\n") + 1,
    "between two events": _WHOLE.index(b"\n\n") + 2,
    "before the last event": _WHOLE.index(b"data: [DONE]"),
    "within the last event": _WHOLE.index(b"[DONE]") + 2,
}


@pytest.fixture(scope="module")
def behind() -> Iterator[CutServer]:
    with cut_server() as server:
        yield server


def _serving(behind: CutServer, template: str) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_BASE_URL", behind.url)
        patch.setenv("TINKER_API_KEY", "tml-of-this-test")
        settings = settings_from({"PROMPT_TEMPLATE": template, "BACKEND": "tinker"})
        path = "tuned=tinker://a/sampler_weights/last"
        with serving(models_to_serve([path], settings, base_model=BUNDLED)) as server:
            yield server


@pytest.fixture(scope="module")
def server(behind: CutServer) -> Iterator[RunningServer]:
    yield from _serving(behind, "chat")


@pytest.fixture(scope="module")
def writing(behind: CutServer) -> Iterator[RunningServer]:
    """A server that writes prompts itself, since the one behind takes no templates."""
    behind.owner = "somebody"
    yield from _serving(behind, "alpaca")


def ask(server: RunningServer, path: str = PATHS[0], **more: Any) -> httpx.Response:
    asked = {**ASKED, "prompt": "3 + 4?"} if path == PATHS[1] else {**ASKED, "max_tokens": 9}
    if path == PATHS[1]:
        del asked["messages"]
    return httpx.post(f"{server.url}{path}", json={**asked, **more}, timeout=PATIENCE)


def blocks_of(answer: httpx.Response) -> list[Any]:
    """The data of a stream's events, each of which must be whole."""
    assert answer.status_code == 200 and answer.text.endswith("\n\n")
    lines = [line for line in answer.text.split("\n") if line.startswith("data:")]
    assert len(lines) == answer.text.count("\n\n")
    return [line if line == "data: [DONE]" else json.loads(line[5:]) for line in lines]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ending", ["within", "silently"])
def test_a_cut_stream_ends_with_a_whole_event_that_says_so(
    server: RunningServer, behind: CutServer, place: str, ending: str
) -> None:
    behind.content_type, behind.status, behind.ending = STREAM, 200, ending
    behind.pieces = [_WHOLE[: PLACES[place]]] if PLACES[place] else []
    *events, error = blocks_of(ask(server, stream=True))
    assert error["error"]["message"].startswith("the answer broke off: The server behind closed")
    assert error["error"]["code"] == "service_unavailable"
    assert len(events) == behind.pieces[0].count(b"\n\n") if behind.pieces else events == []
    with pytest.raises(openai.APIError, match="the answer broke off"):
        list(openai_of(server).chat.completions.create(stream=True, **ASKED))


@pytest.mark.parametrize("path", PATHS)
def test_no_cut_within_a_stream_passes_for_its_end(
    server: RunningServer, behind: CutServer, path: str
) -> None:
    behind.content_type, behind.status, behind.ending = STREAM, 200, "silently"
    events = events_of(path)
    whole = b"".join(events)
    behind.pieces = [whole]
    assert ask(server, path, stream=True).content == whole
    for cut in range(5, len(whole) - len(events[-1]), 61):
        behind.pieces = [whole[:cut]]
        answer = ask(server, path, stream=True)
        [*_, last] = blocks_of(answer)
        assert "the answer broke off" in last["error"]["message"]
        assert ("\n\nevent: error\ndata: " in f"\n\n{answer.text}") == (path == PATHS[2])


def test_the_real_clients_read_what_came_before_the_cut(
    server: RunningServer, behind: CutServer
) -> None:
    behind.content_type, behind.status, behind.ending = STREAM, 200, "within"
    behind.pieces = [b"".join(events_of(PATHS[1]))[: -len("data: [DONE]\n\n") - 9]]
    said = ""
    with pytest.raises(openai.APIError, match="the answer broke off"):
        for chunk in openai_of(server).completions.create(
            model="tuned", prompt="3 + 4?", stream=True
        ):
            said += chunk.choices[0].text
    assert said == "".join(TEXTS)
    message = b"".join(events_of(PATHS[2]))
    behind.pieces = [message[: message.index("🙂".encode()) + 2]]
    said = ""
    with (
        pytest.raises(anthropic.APIError, match="the answer broke off"),
        anthropic_of(server).messages.stream(**ASKED, max_tokens=9) as stream,
    ):
        for text in stream.text_stream:
            said += text
    assert said == TEXTS[0]


@pytest.mark.parametrize("place", PLACES)
def test_a_chat_that_is_written_here_breaks_off_in_its_own_form(
    writing: RunningServer, behind: CutServer, place: str
) -> None:
    behind.content_type, behind.status, behind.ending = STREAM, 200, "within"
    whole = b"".join(events_of(PATHS[1]))
    scale = PLACES[place] / len(_WHOLE)
    behind.pieces = [whole[: int(scale * (len(whole) - 20))] or b": wait\n\n"]
    *events, error = [
        block
        for block in ask(writing, stream=True).text.split("\n\n")
        if block and block != ": wait"
    ]
    assert "prompt" in behind.requests[-1]
    assert "the answer broke off" in json.loads(error[6:])["error"]["message"]
    assert all(json.loads(event[6:])["object"] == "chat.completion.chunk" for event in events)


@pytest.mark.parametrize("ending", ["within", "silently"])
@pytest.mark.parametrize("size", [0, 30, 71])
def test_a_whole_answer_that_is_cut_is_an_error(
    server: RunningServer, writing: RunningServer, behind: CutServer, ending: str, size: int
) -> None:
    behind.content_type, behind.status, behind.ending = JSON, 200, ending
    message = {"role": "assistant", "content": "七 🙂 seven"}
    choice = {"index": 0, "message": message, "text": "七 🙂", "finish_reason": "stop"}
    content = json.dumps({"choices": [choice]}, ensure_ascii=False).encode()
    behind.pieces = [content[:size]] if size else []
    for asked in (server, writing):
        answer = ask(asked)
        assert answer.status_code == (503 if ending == "within" else 502)
        assert "error" in answer.json()
        with pytest.raises(openai.InternalServerError, match=r"broke off|not in the form"):
            openai_of(asked).chat.completions.create(**ASKED)


@pytest.mark.parametrize(
    ("status", "content_type", "content"),
    [
        (200, "text/html", b"<html>Log in</html>"),
        (502, "text/html", b"<html>Bad gateway</html>"),
        (301, "text/html", b""),
        (200, JSON, b"[]"),
        (500, JSON, b"\xff\xfe"),
        (503, STREAM, b"data: x\n\n"),
    ],
)
def test_what_is_no_answer_of_the_api_becomes_an_error_of_it(
    server: RunningServer, behind: CutServer, status: int, content_type: str, content: bytes
) -> None:
    behind.content_type, behind.status, behind.ending = content_type, status, "whole"
    behind.pieces = [content] if content else []
    for path in PATHS:
        answer = ask(server, path, stream=True)
        assert answer.status_code == (status if status >= 400 else 502)
        assert f"answers with HTTP status {status} and not" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b'{"choices": [{}]}', b'{"choices": 7}', b'{"text": "seven"}', b'{"choices": [7]}'],
)
def test_events_and_answers_of_another_form_are_an_error_too(
    writing: RunningServer, behind: CutServer, content: bytes
) -> None:
    behind.status, behind.ending = 200, "whole"
    behind.content_type, behind.pieces = JSON, [content]
    assert ask(writing).status_code == 502
    behind.content_type, behind.pieces = STREAM, [b"data: " + content + b"\n\n"]
    [*_, last] = blocks_of(ask(writing, stream=True))
    assert "error" in last


def read(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """What comes out of a stream, and whether it ended as one does."""

    async def given_pieces() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def everything() -> tuple[list[bytes], bool]:
        events: list[bytes] = []
        try:
            async for event in whole_events(given_pieces()):
                events.append(event)
        except BrokenStream:
            return events, False
        return events, True

    return asyncio.run(everything())


@given(st.sampled_from(PATHS), st.sampled_from([b"\n", b"\r\n"]), st.integers(0, 3), st.data())
def test_events_stay_whole_however_the_bytes_are_cut(
    path: str, line_end: bytes, missing: int, data: st.DataObject
) -> None:
    whole = b": wait\n\n" + b"".join(events_of(path))
    whole = whole.replace(b"\n", line_end)
    end = len(whole) - missing  # the end of the last event may be missing
    cuts = sorted(data.draw(st.lists(st.integers(0, end), max_size=9)))
    pieces = [whole[one:other] for one, other in pairwise([0, *cuts, end])]
    events, ended = read(pieces)
    assert all(event.endswith((b"\n\n", b"\n\r\n")) for event in events)
    assert b"".join(events).rstrip() == whole[:end].rstrip() or not ended
    assert ended == (missing <= 2 * len(line_end))
