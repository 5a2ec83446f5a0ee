"""Answers to prompts that are written here: thoughts told apart, however the text is cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.serving.rendered import (
    RenderedChat,
    ThoughtReader,
    chat_events,
    whole_answer,
)

THINKS = RenderedChat({}, "tuned")
INSIDE = RenderedChat({}, "tuned", inside=True)
FRAGMENTS = ("<think>", "</think>", "<thi", "</th", "nk>", "\n", "\n\n", " ", "a", "你好", "<", ">")


def read(chat: RenderedChat, pieces: Sequence[str]) -> tuple[str, str]:
    reader = ThoughtReader(chat)
    parts = [reader.add(piece) for piece in pieces] + [reader.add("", last=True)]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("chat", "text", "expected"),
    [
        (THINKS, "<think>\nThree and four.\n</think>\n\nSeven.", ("Three and four.", "Seven.")),
        (THINKS, "\n<think>\n\nNot yet", ("Not yet", "")),
        (THINKS, "Seven. <think>no</think>", ("", "Seven. <think>no</think>")),
        (THINKS, "<thinking", ("", "<thinking")),
        (THINKS, "<think></think>Seven.", ("", "Seven.")),
        (
            INSIDE,
            "Three and four.\n</think>\nSeven.</think>",
            ("Three and four.", "Seven.</think>"),
        ),
        (INSIDE, "\nThree </thin", ("Three </thin", "")),
    ],
)
def test_a_thought_is_told_apart_letter_by_letter(
    chat: RenderedChat, text: str, expected: tuple[str, str]
) -> None:
    assert read(chat, [text]) == expected
    assert read(chat, list(text)) == expected


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.booleans(), st.data())
def test_how_a_text_is_cut_does_not_change_what_is_read(
    fragments: list[str], inside: bool, data: st.DataObject
) -> None:
    chat, text = INSIDE if inside else THINKS, "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    places = [0, *cuts, len(text)]
    pieces = [text[one:other] for one, other in pairwise(places)]
    assert read(chat, pieces) == ThoughtReader(chat).add(text, last=True)


def events_of(chat: RenderedChat, sent: bytes, size: int) -> list[Any]:
    """What a client reads of a completion's stream that comes in pieces of so many bytes."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), size):
            yield sent[start : start + size]

    async def everything() -> bytes:
        return b"".join([event async for event in chat_events(chat, pieces())])

    blocks = asyncio.run(everything()).decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def completion(text: str, reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
    value = {"id": "cmpl-1", "created": 7, "model": "other", "choices": [choice]}
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_of_a_completion_become_those_of_a_chat(size: int) -> None:
    texts = ["<thi", "nk>", "\nThree", " and four.\n", "</think>", "\n\n", "Sieben 七", "."]
    sent = b"".join(completion(text) + completion("Seven.", index=1) for text in texts)
    sent += completion("", "stop") + completion("", "length", 1) + b"data: [DONE]\n\n"
    *events, done = events_of(THINKS, sent, size)
    assert done == "[DONE]"
    assert {(event["object"], event["model"], event["id"]) for event in events} == {
        ("chat.completion.chunk", "tuned", "cmpl-1")
    }
    choices = [choice for event in events for choice in event["choices"]]
    first = [choice for choice in choices if choice["index"] == 0]
    thought = "".join(choice["delta"].get("reasoning_content", "") for choice in first)
    answer = "".join(choice["delta"].get("content", "") for choice in first)
    assert (thought, answer) == ("Three and four.", "Sieben 七.")
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
        "stop",
        "length",
    ]
    value = {"choices": [{"index": 0, "text": "".join(texts), "finish_reason": "stop"}]}
    [whole] = whole_answer(THINKS, value)["choices"]
    assert whole["message"]["content"] == answer
    assert whole["message"]["reasoning_content"] == thought


def test_an_error_in_a_stream_passes_as_it_is() -> None:
    error = {"error": {"message": "the answer broke off.", "code": 503}}
    sent = completion("Sev") + b"data: " + json.dumps(error).encode() + b"\n\n"
    assert events_of(THINKS, sent, 5)[-1] == error
