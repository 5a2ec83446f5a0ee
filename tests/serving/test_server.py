"""`tinkersmith serve` as a process of its own, asked by OpenAI's client."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.serving import running_serve
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.bundled import BUNDLED_MODELS

pytestmark = [pytest.mark.engine, pytest.mark.long]
[BUNDLED] = BUNDLED_MODELS


def test_the_command_serves_answers_that_follow_a_schema(tmp_path: Path) -> None:
    no_proxy_for_loopback()
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    asked: Any = {
        "model": BUNDLED,
        "messages": [{"role": "user", "content": "3 + 4?"}],
        "response_format": form,
        "max_tokens": 64,
        "temperature": 0,
    }
    with running_serve(BUNDLED, tmp_path) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == [BUNDLED]
        whole = client.chat.completions.create(**asked).choices[0]
        chunks = client.chat.completions.create(stream=True, **asked)
        streamed = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert whole.finish_reason == "stop" and streamed == whole.message.content
    value = json.loads(streamed)
    assert list(value) == ["answer"] and 0 <= value["answer"] <= 99
