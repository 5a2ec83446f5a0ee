"""The real clients on `serve` before an engine at a URL: thoughts, tools and JSON schemas."""

import json
from collections.abc import Iterator
from typing import Any

import openai
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
TWICE: Any = [{"role": "user", "content": "3 + 4, twice?"}]
DIGIT = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
DIGIT_FORM: Any = {"type": "json_schema", "json_schema": {"name": "digit", "schema": DIGIT}}
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


def written(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


@pytest.fixture(params=["plain", "trained"])
def either(request: pytest.FixtureRequest) -> RunningServer:
    return request.getfixturevalue(request.param)


def test_openais_client_calls_tools_and_a_stream_says_the_same(either: RunningServer) -> None:
    [choice] = ask(either, tools=[TOOL]).choices
    assert (choice.message.content, choice.finish_reason) == ("I add.", "tool_calls")
    assert written(choice.message.tool_calls) == [("add", CALL)]
    _, text, reason, calls = read_stream(ask(either, tools=[TOOL], stream=True))
    assert (text, reason, written(calls)) == ("I add.", "tool_calls", [("add", CALL)])


def test_openais_client_gets_parallel_calls(plain: RunningServer) -> None:
    asked: Any = {"tools": [TOOL], "max_tokens": 160, "parallel_tool_calls": True}
    [choice] = ask(plain, TWICE, **asked).choices
    both = [("add", CALL), ("add", CALL)]
    assert written(choice.message.tool_calls) == both
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    asked |= {"temperature": 0, "model": "tuned", "messages": TWICE}
    with openai_of(plain).chat.completions.stream(**asked) as stream:
        whole = stream.get_final_completion().choices[0]
    assert written(whole.message.tool_calls) == both
    assert len({call.id for call in whole.message.tool_calls or []}) == 2


def test_openais_client_gives_a_tools_result(either: RunningServer) -> None:
    called = ask(either, tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "7"}
    past = [*SUM, called.model_dump(exclude_none=True)]
    after = ask(either, [*past, result], tools=[TOOL]).choices[0]
    assert (after.message.content, after.finish_reason) == (ANSWER, "stop")
    streamed = read_stream(ask(either, [*past, result], tools=[TOOL], stream=True))
    assert streamed == ("", ANSWER, "stop", [])


def test_a_choice_of_tools_is_followed_or_refused(either: RunningServer) -> None:
    [auto] = ask(either, tools=[TOOL], tool_choice="auto").choices
    assert auto.finish_reason == "tool_calls"
    [none] = ask(either, tools=[TOOL], tool_choice="none").choices
    assert none.message.tool_calls is None and none.message.content == ANSWER
    named = {"type": "function", "function": {"name": "add"}}
    for choice in ("required", named):
        [forced] = ask(either, tools=[TOOL], tool_choice=choice).choices
        assert (forced.message.content, forced.finish_reason) == (None, "tool_calls")
        assert written(forced.message.tool_calls) == [("add", CALL)]
        stream = ask(either, tools=[TOOL], tool_choice=choice, stream=True)
        _, text, reason, calls = read_stream(stream)
        assert (text, reason, written(calls)) == ("", "tool_calls", [("add", CALL)])
    named["function"] = {"name": "sub"}
    with pytest.raises(openai.BadRequestError, match="be one of") as caught:
        ask(either, tools=[TOOL], tool_choice=named)
    assert (caught.value.param, caught.value.type) == ("tool_choice", "invalid_request_error")


ADD = TOOL["function"]


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ([{"type": "web_search"}], "must be of type function"),
        ([{"type": "function", "function": {}}], "has no name"),
        ([{"type": "function", "function": {**ADD, "parameters": 5}}], "parameters is 5"),
        (
            [
                {
                    "type": "function",
                    "function": {**ADD, "parameters": {"type": "array"}, "strict": True},
                }
            ],
            'must be "object"',
        ),
        ([TOOL, TOOL], "two tools have the name 'add'"),
        (5, "must be a list of objects"),
    ],
)
def test_wrong_tools_are_an_error_in_openais_form(
    plain: RunningServer, tools: Any, sentence: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=sentence) as caught:
            ask(plain, tools=tools, stream=stream)
        assert (caught.value.param, caught.value.type) == ("tools", "invalid_request_error")


def test_a_schema_is_followed_behind_a_url(either: RunningServer) -> None:
    [whole] = ask(either, response_format=DIGIT_FORM).choices
    assert whole.message.reasoning_content == THOUGHT
    assert list(json.loads(whole.message.content)) == ["a"]
    streamed = read_stream(ask(either, response_format=DIGIT_FORM, stream=True))
    assert streamed == (THOUGHT, whole.message.content, "stop", [])
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    for form, asked, sentence in (
        (wrong, {}, "the JSON schema cannot be followed: Invalid type: objekt."),
        (DIGIT_FORM, {"tools": [TOOL]}, "not both"),
        ({"type": "grammar"}, {}, "its type must be text, json_object or json_schema"),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence) as caught:
            ask(either, response_format=form, **asked)
        assert caught.value.param == "response_format"


def test_a_message_follows_a_schema_behind_a_url(plain: RunningServer) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": DIGIT}}
    asked: Any = {"model": "tuned", "messages": SUM, "output_config": config, **HIDDEN_GREEDY}
    [_, text] = anthropic_of(plain).messages.create(**asked).content
    assert list(json.loads(text.text)) == ["a"]


@pytest.mark.parametrize(
    "asked",
    [{"response_format": DIGIT_FORM}, {"tools": [TOOL]}, {"logprobs": True}],
    ids=["schema", "tools", "logprobs"],
)
def test_what_plain_prompts_cannot_do_is_refused_before_a_foreign_server(
    trained: RunningServer, asked: Any
) -> None:
    """Of a server that takes no chat template, such as the cloud, only completions are asked."""
    trained.upstream.takes_templates = False
    try:
        with pytest.raises(openai.BadRequestError, match="cannot be used with tuned") as caught:
            ask(trained, **asked)
    finally:
        trained.upstream.takes_templates = True
    assert caught.value.param == next(iter(asked))
