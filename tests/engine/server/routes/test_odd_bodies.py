"""Odd values in any field of the inference APIs get a sentence as an answer, never a 500."""

import copy
from typing import Any

import httpx
import pytest

from tests.support.engine import KEY
from tests.support.inference import BUNDLED, TOOL, InferenceEngine
from tests.support.processes import PATIENCE

pytestmark = pytest.mark.engine

ODD: list[Any] = [[], {}, "", "x", 1.5, True, -1, 10**30, [[]], [{}], [None], {"type": "x"}, ["a"]]
ASKED: dict[str, Any] = {"model": BUNDLED, "max_tokens": 1}
CHAT = {
    **ASKED,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}], "name": "n"},
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "t",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    ],
    "tools": [TOOL],
    "stream_options": {"include_usage": True},
    "n": 1,
    "temperature": 0,
    "top_p": 1,
    "top_k": 1,
    "seed": 1,
    "stop": ["x"],
    "stream": True,
    "logprobs": True,
    "top_logprobs": 1,
    "tool_choice": "auto",
    "reasoning_effort": "none",
    "chat_template_kwargs": {"enable_thinking": True},
    "max_completion_tokens": 1,
}
COMPLETION = {**ASKED, "prompt": ["a", "b"], "echo": True, "logprobs": 1, "best_of": 1, "n": 1}
MESSAGE = {
    **ASKED,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "tool_use", "id": "1", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}],
        },
    ],
    "tools": [{"name": "add", "description": "d", "input_schema": {}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "disabled"},
    "top_k": 1,
    "top_p": 1,
    "stop_sequences": ["x"],
    "stream": True,
    "temperature": 0,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [(*path, key) for key, _ in inner]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


def with_odd(body: Any, path: tuple[Any, ...], odd: Any) -> Any:
    changed = copy.deepcopy(body)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = odd
    return changed


@pytest.mark.parametrize("model", [BUNDLED, "talker", "plain"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/oai/api/v1/chat/completions", CHAT),
        ("/oai/api/v1/completions", COMPLETION),
        ("/anthropic/api/v1/messages", MESSAGE),
        ("/anthropic/api/v1/messages/count_tokens", MESSAGE),
    ],
)
def test_no_odd_value_is_an_error_of_the_engine(
    inference: InferenceEngine, path: str, body: dict, model: str
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {**body, "model": model}
    if path.endswith("count_tokens"):
        kept = ("model", "messages", "system", "tools", "tool_choice", "thinking")
        body = {name: body[name] for name in kept}
    odd_values = ODD if model == BUNDLED else ODD[:4]
    with httpx.Client(base_url=inference.url, headers=headers, timeout=PATIENCE) as http:
        for place in places(body):
            for odd in odd_values:
                answer = http.post(path, json=with_odd(body, place, odd))
                assert answer.status_code in (200, 400, 404), (place, odd, answer.text)
                if answer.status_code != 200:
                    assert answer.json()["error"]["message"].endswith("."), (place, answer.text)
