"""The real clients on `serve` before an engine at a URL: thoughts and tools."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engine import KEY
from tests.support.inference import (
    ANSWER,
    CALL,
    TALKER,
    THOUGHT,
    TOOL,
    InferenceEngine,
    running_inference,
)
from tests.support.serving import anthropic_of, openai_of, serving
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.server import RunningServer
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.long]
SUM: Any = [{"role": "user", "content": "3 + 4?"}]
GREEDY: Any = {"temperature": 0, "max_tokens": 80}
HIDDEN_GREEDY: Any = {"max_tokens": 80, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceEngine]:
    with running_inference(tmp_path_factory.mktemp("clients")) as running:
        yield running


def _served(inference: InferenceEngine, **values: Any) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_BASE_URL", inference.url)
        patch.setenv("TINKER_API_KEY", KEY)
        settings = settings_from({"BACKEND": "tinker", **values})
        models = models_to_serve([f"tuned={inference.talker}"], settings, base_model=TALKER)
        with serving(models) as server:
            assert server.upstream.url == inference.url and server.upstream.kind != "embedded"
            yield server


@pytest.fixture(scope="module")
def plain(inference: InferenceEngine) -> Iterator[RunningServer]:
    """The base model's template is known to the engine alone."""
    yield from _served(inference)


@pytest.fixture(scope="module")
def trained(inference: InferenceEngine) -> Iterator[RunningServer]:
    """The template of training is known, thoughts and all."""
    folder = inference.engine.folder.parent / TALKER
    yield from _served(inference, PROMPT_TEMPLATE="chat", THINKING="keep", TOKENIZER=str(folder))


def ask(server: RunningServer, messages: Any = SUM, **asked: Any) -> Any:
    asked = {"model": "tuned", "messages": messages, **GREEDY, **asked}
    return openai_of(server).chat.completions.create(**asked)


def read_stream(chunks: Any) -> tuple[str, str, str, list[Any]]:
    """The thought, the answer, the reason of the end, and the calls of a streamed chat."""
    thought = answer = reason = ""
    calls: list[Any] = []
    for chunk in chunks:
        [choice] = chunk.choices
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        answer += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return thought, answer, reason, calls


@pytest.mark.parametrize("templates", [True, False])
def test_a_thought_of_training_is_told_apart_whole_and_streamed(
    trained: RunningServer, templates: bool
) -> None:
    trained.upstream.takes_templates = templates
    try:
        [whole] = ask(trained).choices
        streamed = read_stream(ask(trained, stream=True))
        cut = ask(trained, max_tokens=12).choices[0]
    finally:
        trained.upstream.takes_templates = True
    assert (whole.message.reasoning_content, whole.message.content) == (THOUGHT, ANSWER)
    assert streamed == (THOUGHT, ANSWER, "stop", [])
    assert cut.message.content == "" and THOUGHT.startswith(cut.message.reasoning_content)
    assert cut.finish_reason == "length"


def test_thoughts_are_blocks_for_anthropics_client(plain: RunningServer) -> None:
    client = anthropic_of(plain)
    asked: Any = {"model": "tuned", "messages": SUM, **HIDDEN_GREEDY}
    blocks: Any = client.messages.create(**asked).content
    thought, answer = blocks
    assert (thought.type, thought.thinking, answer.text) == ("thinking", THOUGHT, ANSWER)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == ANSWER
        whole: Any = stream.get_final_message().content
    [first, _] = whole
    assert first.thinking == THOUGHT
    [only] = client.messages.create(**asked, thinking={"type": "disabled"}).content
    assert only.text == ANSWER


def test_anthropics_client_uses_a_tool_and_gives_its_result(plain: RunningServer) -> None:
    client = anthropic_of(plain)
    tool: Any = {"name": "add", "input_schema": TOOL["function"]["parameters"]}
    tool["description"] = TOOL["function"]["description"]
    asked: Any = {"model": "tuned", "tools": [tool], **HIDDEN_GREEDY}
    message = client.messages.create(messages=SUM, **asked)
    blocks: Any = message.content
    text, call = blocks
    assert (text.text, message.stop_reason) == ("I add.", "tool_use")
    assert (call.name, call.input) == ("add", CALL)
    with client.messages.stream(messages=SUM, **asked) as stream:
        whole: Any = stream.get_final_message().content
    [*_, last] = whole
    assert last.input == CALL
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "7"}
    said = [block.model_dump(exclude_none=True) for block in message.content]
    past: Any = [*SUM, {"role": "assistant", "content": said}]
    after = client.messages.create(messages=[*past, {"role": "user", "content": [result]}], **asked)
    assert after.usage.input_tokens > message.usage.input_tokens
