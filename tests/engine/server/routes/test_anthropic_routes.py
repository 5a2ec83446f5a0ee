"""Anthropic's API on a real engine, through the `anthropic` client and raw."""

import asyncio
import base64
from typing import Any

import anthropic
import pytest

from tests.support.engine import KEY
from tests.support.inference import (
    ANSWER,
    BUNDLED,
    CALL,
    PLAIN,
    SEEING,
    TALKER,
    THOUGHT,
    TOOL,
    WORLD,
    InferenceEngine,
)
from tests.support.seeing_models import SQUARE, WIDE

pytestmark = pytest.mark.engine

SUM: Any = [{"role": "user", "content": "3 + 4?"}]
MESSAGES = "/anthropic/api/v1/messages"
GREEDY: Any = {"extra_body": {"temperature": 0}}
ADD: Any = {
    "name": "add",
    "description": TOOL["function"]["description"],
    "input_schema": TOOL["function"]["parameters"],
}


@pytest.fixture(scope="module")
def client(inference: InferenceEngine) -> anthropic.Anthropic:
    return inference.anthropic()


def ask(client: anthropic.Anthropic, model: str, messages: Any = SUM, **asked: Any) -> Any:
    asked = {"max_tokens": 80, **GREEDY, **asked}
    return client.messages.create(model=model, messages=messages, **asked)


def test_a_message_is_the_chat_completion_of_the_same_messages(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    message = ask(client, BUNDLED)
    completion = inference.openai().chat.completions.create(
        model=BUNDLED, messages=SUM, temperature=0, max_tokens=80
    )
    assert [block.text for block in message.content] == [completion.choices[0].message.content]
    assert completion.usage is not None
    assert message.usage.input_tokens == completion.usage.prompt_tokens
    assert message.usage.output_tokens == completion.usage.completion_tokens
    assert (message.role, message.model, message.stop_reason) == ("assistant", BUNDLED, "end_turn")


def image_block(data: bytes, kind: str = "image/png") -> dict:
    source = {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def asked_about(*blocks: dict) -> list:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "Which?"}]}]


def test_images_of_a_message_are_those_of_a_chat(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    message = ask(client, SEEING, asked_about(image_block(WIDE)), max_tokens=8)
    url = "data:image/png;base64," + base64.b64encode(WIDE).decode()
    chat: Any = asked_about({"type": "image_url", "image_url": {"url": url}})
    completion = inference.openai().chat.completions.create(
        model=SEEING, messages=chat, temperature=0, max_tokens=8
    )
    assert [block.text for block in message.content] == [completion.choices[0].message.content]
    assert completion.usage is not None
    assert message.usage.input_tokens == completion.usage.prompt_tokens
    blocks: Any = asked_about(image_block(WIDE))
    with client.messages.stream(model=SEEING, messages=blocks, max_tokens=8, **GREEDY) as stream:
        last: Any = stream.get_final_message()
    assert [block.text for block in last.content] == [block.text for block in message.content]
    assert last.usage.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("model", "block", "sentence"),
    [
        (BUNDLED, image_block(WIDE), "reads text only"),
        (SEEING, image_block(WIDE[:300]), "is damaged"),
        (SEEING, image_block(b"GIF89a", "image/gif"), "has format 'gif'; it must be png or jpeg"),
        (
            SEEING,
            {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
            "fetches no images",
        ),
        (SEEING, {"type": "image", "source": {"type": "base64"}}, "needs a source with"),
    ],
)
def test_an_image_of_a_message_that_cannot_be_read_is_refused(
    client: anthropic.Anthropic, model: str, block: dict, sentence: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=sentence):
        ask(client, model, asked_about(block))


def test_the_tokens_of_images_are_counted_without_sampling(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    for images in ([WIDE], [WIDE, SQUARE]):
        blocks: Any = asked_about(*map(image_block, images))
        count = client.messages.count_tokens(model=SEEING, messages=blocks).input_tokens
        answer = ask(client, SEEING, blocks, max_tokens=1)
        assert count == answer.usage.input_tokens > len(images) * 9
    for model, data, sentence in (
        (BUNDLED, WIDE, "reads text only"),
        (SEEING, WIDE[:300], "is damaged"),
    ):
        blocks = asked_about(image_block(data))
        with pytest.raises(anthropic.BadRequestError, match=sentence):
            client.messages.count_tokens(model=model, messages=blocks)


@pytest.mark.parametrize("tools", [[], [ADD]])
def test_a_streamed_message_is_the_whole_one(
    inference: InferenceEngine, client: anthropic.Anthropic, tools: list
) -> None:
    asked: Any = {"tools": tools} if tools else {}
    whole = ask(client, inference.talker, **asked)
    with client.messages.stream(
        model=inference.talker, messages=SUM, max_tokens=80, **GREEDY, **asked
    ) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2

    def without_ids(message: Any) -> list[dict]:
        blocks = [block.model_dump(exclude_none=True) for block in message.content]
        return [{key: block[key] for key in block if key != "id"} for block in blocks]

    assert without_ids(last) == without_ids(whole)
    assert last.stop_reason == whole.stop_reason
    assert last.usage.output_tokens == whole.usage.output_tokens


def test_a_system_text_and_contents_may_have_parts(client: anthropic.Anthropic) -> None:
    def parts(*texts: str) -> list[dict]:
        return [{"type": "text", "text": text} for text in texts]

    plain = ask(client, BUNDLED, system="Be kind.")
    spelled = ask(
        client,
        BUNDLED,
        [{"role": "user", "content": parts("3 +", " 4?")}],
        system=parts("Be ", "kind."),
    )
    assert plain.content == spelled.content
    assert plain.usage == spelled.usage != ask(client, BUNDLED).usage


def test_a_stop_sequence_ends_the_message_and_is_named(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    off: Any = {"thinking": {"type": "disabled"}}
    message = ask(client, inference.talker, stop_sequences=["never", "is se"], **off)
    assert [block.text for block in message.content] == [ANSWER[: ANSWER.index("is se")]]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "is se")
    cut = ask(client, inference.talker, max_tokens=2, **off)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_tools_are_used_and_their_results_taken(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    message = ask(client, inference.talker, tools=[ADD])
    text, call = message.content
    assert (text.text, call.name, call.input) == ("I add.", "add", CALL)
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "7"}
    asked = {"role": "assistant", "content": [block.model_dump() for block in message.content]}
    for block in asked["content"]:
        block.pop("caller", None)
    answer = ask(client, inference.talker, [*SUM, asked, {"role": "user", "content": [result]}])
    assert answer.usage.input_tokens > 30
    orphan = {"role": "user", "content": [{**result, "tool_use_id": "other"}]}
    with pytest.raises(anthropic.BadRequestError, match="no message before it has that call"):
        ask(client, inference.talker, [*SUM, asked, orphan])
    for wrong, about in (
        ([ADD, ADD], "two tools have the name"),
        ([{**ADD, "strict": "yes"}], "strict is 'yes'"),
        ([{**ADD, "input_examples": [CALL]}], "input_examples"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=about):
            ask(client, inference.talker, tools=wrong)
    for choice, about in (
        ({"type": "tool", "name": "sub"}, r"the tools are \['add'\]"),
        ({"type": "some"}, "must be auto, any, tool or none"),
        ("any", "must be auto, any, tool or none"),
        ({"type": "any", "disable_parallel_tool_use": 1}, "must be true or false"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=about):
            ask(client, inference.talker, tools=[ADD], extra_body={"tool_choice": choice})
    with pytest.raises(anthropic.BadRequestError, match="there are no tools"):
        ask(client, inference.talker, tool_choice={"type": "any"})
    with pytest.raises(anthropic.BadRequestError, match="does not write calls"):
        ask(client, BUNDLED, tools=[ADD])


@pytest.mark.parametrize("kind", ["any", "tool"])
def test_a_tool_can_be_forced_and_its_input_follows_the_schema(
    client: anthropic.Anthropic, kind: str
) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "object", "properties": {"a": digit, "b": digit}, "required": ["a", "b"]}
    pair: Any = {"name": "pair", "input_schema": {**schema, "additionalProperties": False}}
    choice: Any = {"type": kind, "disable_parallel_tool_use": True}
    choice |= {"name": "pair"} if kind == "tool" else {}
    asked: Any = {"tools": [pair] if kind == "any" else [ADD, pair], "tool_choice": choice}
    asked["thinking"] = {"type": "disabled"}
    message = ask(client, TALKER, **asked)
    [call] = message.content
    assert (message.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "pair")
    assert set(call.input) == {"a", "b"} and all(0 <= digit <= 9 for digit in call.input.values())
    asked = {"max_tokens": 80, "messages": SUM, "model": TALKER, **GREEDY, **asked}
    with client.messages.stream(**asked) as stream:
        last: Any = stream.get_final_message()
    [streamed] = last.content
    assert (last.stop_reason, streamed.input) == ("tool_use", call.input)


def test_a_strict_tool_and_one_use_at_most(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    twice: Any = [{"role": "user", "content": "3 + 4, twice?"}]
    asked: Any = {"tools": [{**ADD, "strict": True}], "max_tokens": 160}
    both = ask(client, inference.talker, twice, **asked)
    assert [block.type for block in both.content] == ["tool_use", "tool_use"]
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    one = ask(client, inference.talker, twice, tool_choice=choice, **asked)
    assert [block.type for block in one.content] == ["tool_use"]


def test_thoughts_are_blocks_and_can_be_switched_off(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    thought, text = ask(client, inference.talker).content
    assert (thought.type, thought.thinking) == ("thinking", THOUGHT)
    assert text.text == ANSWER
    off = ask(client, inference.talker, thinking={"type": "disabled"})
    assert [block.text for block in off.content] == [ANSWER]
    with pytest.raises(anthropic.BadRequestError, match="no switch for thoughts"):
        ask(client, BUNDLED, thinking={"type": "enabled", "budget_tokens": 1024})
    with pytest.raises(anthropic.BadRequestError, match="display is 'omitted'"):
        ask(client, inference.talker, thinking={"type": "adaptive", "display": "omitted"})
    again = [*SUM, {"role": "assistant", "content": [thought.model_dump(), text.model_dump()]}]
    again.append({"role": "user", "content": "Greet."})
    assert ask(client, inference.talker, again, thinking={"type": "disabled"}).content


def test_the_tokens_of_a_prompt_are_counted_without_sampling(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    for model, asked in ((BUNDLED, {}), (inference.talker, {"tools": [ADD], "system": "Hm."})):
        counted = client.messages.count_tokens(model=model, messages=SUM, **asked)
        assert counted.input_tokens == ask(client, model, **asked).usage.input_tokens


def test_a_begun_answer_is_continued(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    greet = [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": WORLD[:3]}]
    message = ask(client, inference.talker, greet, thinking={"type": "disabled"})
    assert message.content[0].text == WORLD[3:]
    thought = {"type": "thinking", "thinking": THOUGHT, "signature": ""}
    begun = [{"role": "assistant", "content": [thought, {"type": "text", "text": "It"}]}]
    with pytest.raises(anthropic.BadRequestError, match="leave its thinking out"):
        ask(client, inference.talker, [*SUM, *begun])


def test_errors_have_the_apis_own_form_and_status(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    body = {"model": BUNDLED, "messages": SUM, "max_tokens": 1}
    cases = [
        ({**body, "max_tokens": None}, {}, 400, "invalid_request_error"),
        ({**body, "mood": "bad"}, {}, 400, "invalid_request_error"),
        ({**body, "temperature": 1.5}, {}, 400, "invalid_request_error"),
        ({**body, "model": "claude"}, {}, 404, "not_found_error"),
        ({**body, "model": PLAIN}, {}, 400, "invalid_request_error"),
        (body, {"authorization": "Bearer tml-no"}, 401, "authentication_error"),
        (body, {"origin": "https://evil.example"}, 403, "permission_error"),
        ({**body, "system": "a" * (33 << 20)}, {}, 413, "request_too_large"),
    ]
    for asked, headers, status, kind in cases:
        answer = inference.post(MESSAGES, asked, **headers)
        error = answer.json()
        assert (answer.status_code, error["type"]) == (status, "error"), error
        assert error["error"]["type"] == kind
        assert error["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        ask(client, "claude")
    with pytest.raises(anthropic.AuthenticationError):
        ask(inference.anthropic(api_key="tml-wrong"), BUNDLED)


def test_each_message_has_a_request_id(client: anthropic.Anthropic) -> None:
    names = [ask(client, BUNDLED, max_tokens=1)._request_id for _ in range(2)]
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, "claude")
    names.append(caught.value.request_id)
    assert all(name and name.startswith("req_") for name in names)
    assert len(set(names)) == 3


def test_an_async_client_streams_what_it_gets_whole(
    inference: InferenceEngine, client: anthropic.Anthropic
) -> None:
    whole = ask(client, inference.talker).content[-1].text

    async def stream() -> str:
        where: Any = {"base_url": client.base_url, "api_key": KEY, "max_retries": 0}
        asked: Any = {"model": inference.talker, "messages": SUM, "max_tokens": 80, **GREEDY}
        async with (
            anthropic.AsyncAnthropic(**where) as anew,
            anew.messages.stream(**asked) as events,
        ):
            return "".join([text async for text in events.text_stream])

    assert asyncio.run(stream()) == whole == ANSWER


def test_the_key_is_taken_from_either_header(inference: InferenceEngine) -> None:
    by_token = inference.anthropic(api_key=None, auth_token=KEY)
    assert ask(by_token, TALKER, max_tokens=1).usage.output_tokens == 1


def test_defaults_of_anthropics_api_change_no_answer(client: anthropic.Anthropic) -> None:
    plain = ask(client, BUNDLED)
    defaults = {"output_config": {"effort": "high"}, "mcp_servers": [], "context_management": {}}
    asked = {"temperature": 0, **defaults}
    assert ask(client, BUNDLED, extra_body=asked).content == plain.content
    with pytest.raises(anthropic.BadRequestError, match="effort is 'low'"):
        ask(client, BUNDLED, extra_body={"output_config": {"effort": "low"}})


def test_a_message_follows_the_schema_of_its_output_config(client: anthropic.Anthropic) -> None:
    form: Any = {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}
    message = ask(client, BUNDLED, output_config={"format": form})
    assert message.content[0].text in ('"yes"', '"no"') and message.stop_reason == "end_turn"
    with client.messages.stream(
        model=BUNDLED, messages=SUM, max_tokens=80, output_config={"format": form}, **GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
    with pytest.raises(anthropic.BadRequestError, match="Invalid type: objekt"):
        ask(client, BUNDLED, output_config={"format": {**form, "schema": {"type": "objekt"}}})
