"""Anthropic's API: messages, streamed or whole, and the number of a prompt's tokens."""

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.server.api_errors import ANTHROPIC, ApiError
from tinkersmith.engine.server.fields import Body, is_list, is_object, shown
from tinkersmith.engine.server.routes import inference_fields as fields
from tinkersmith.engine.server.routes.answer_text import AnswerText, TextPiece, ToolCall
from tinkersmith.engine.server.routes.chat_prompts import CallChoice, Chat, ChatMessage
from tinkersmith.engine.server.routes.generation import AnswerPart, Generation, begin, collect
from tinkersmith.engine.server.routes.inference_models import InferenceModels
from tinkersmith.engine.server.routes.openai_chat import prompt_of
from tinkersmith.engine.server.routes.openai_completions import MOST_TOKENS

_PROMPT = (
    *("model", "messages", "system", "tools", "tool_choice", "thinking"),
    *("chat_template", "separate_reasoning"),
)
_KNOWN = (
    *_PROMPT,
    *("max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k", "output_config"),
    # About the account, or the provider's cache: they change no answer.
    *("metadata", "service_tier", "cache_control"),
)
# Values of other parameters that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "mcp_servers": ([],),
    "context_management": ({}, {"edits": []}),
}
_TOOL = ("type", "name", "description", "input_schema", "strict", "cache_control")
_THINKING = {"enabled": True, "adaptive": None, "disabled": False}


class AnthropicMessages:
    """The routes /messages and /messages/count_tokens."""

    def __init__(self, models: InferenceModels) -> None:
        self.models = models

    async def messages(self, request: Request, body: Body) -> Response:
        fields.check_known(body, _KNOWN, _NEUTRAL)
        max_tokens = fields.whole(body, "max_tokens", None, 1, MOST_TOKENS)
        if max_tokens is None:
            raise ApiError(400, "max_tokens is missing; give a whole number of at least 1.")
        stops = fields.stop_strings(body, "stop_sequences")
        temperature = fields.real(body, "temperature", 1.0, 0.0, 1.0)
        top_p = fields.share(body)
        top_k = fields.whole(body, "top_k", None, 0, MOST_TOKENS) or -1
        stream = fields.switch(body, "stream")
        chat, schema = _read_chat(body), fields.output_schema(body)
        model = await self.models.find(body.get("model"), fields.chat_template(body))
        prompt = await prompt_of(model, chat, schema, asks_effort=chat.think is True)
        asked = SampleRequest(
            prompt=prompt.tokens,
            max_tokens=fields.room_for(max_tokens, prompt.tokens, model.context),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=[*model.texts.chat_ends(), *stops],
            stop_at_ends=True,
            grammar=prompt.grammar,
            chunks=prompt.images,
        )
        generation = Generation(self.models, model, [asked], prompt.syntax(stops), live=stream)
        answer = _MessageAnswer(model.name, stops, generation)
        if stream:
            parts = await begin(generation, request)
            return fields.event_stream(ANTHROPIC + "/", answer.events(parts))
        pieces = await collect(generation, request)
        return JSONResponse(answer.whole(pieces[0]))

    async def count_tokens(self, request: Request, body: Body) -> Response:
        fields.check_known(body, (*_PROMPT, "output_config", "cache_control"), _NEUTRAL)
        chat = _read_chat(body)
        model = await self.models.find(body.get("model"), fields.chat_template(body))
        prompt = await prompt_of(model, chat, asks_effort=chat.think is True)
        count = len(prompt.tokens)
        if prompt.images:
            count = await self.models.prompt_length(model, prompt.tokens, prompt.images)
        return JSONResponse({"input_tokens": count})


# ---- what is asked


def _read_chat(body: Body) -> Chat:
    """The conversation in OpenAI's form, which chat templates take."""
    messages: list[ChatMessage] = []
    if body.get("system") is not None:
        content = fields.text_of(body["system"], "system")
        if content:
            messages.append({"role": "system", "content": content})
    given = fields.objects(body, "messages")
    if not given:
        raise ApiError(400, "messages is empty; it needs at least one message.")
    called: set[object] = set()
    images: list[bytes] = []
    for number, message in enumerate(given):
        read = _read_message(message, f"messages[{number}]", images)
        for one in read:
            called |= {call["id"] for call in one.get("tool_calls", ())}
            if one["role"] == "tool" and one["tool_call_id"] not in called:
                raise ApiError(
                    400,
                    f"messages[{number}] has a tool_result with the tool_use_id "
                    f"{shown(one['tool_call_id'])}; no message before it has that call.",
                )
        messages += read
    begun = ""
    if messages[-1]["role"] == "assistant":  # which the model is to continue
        last = messages.pop()
        if "tool_calls" in last or not messages:
            raise ApiError(400, "the last message must not be a call of a tool, nor the only one.")
        if "reasoning_content" in last:
            raise ApiError(
                400,
                "the last message is continued, which cannot be done with a thought in it; leave "
                "its thinking out.",
            )
        begun = last["content"]
        if begun != begun.rstrip():
            raise ApiError(400, "the last message must not end with spaces: it is continued.")
    tools, calls = _read_tools(body)
    thinking: object = body.get("thinking")
    mode: object = thinking.get("type") if is_object(thinking) else None
    if thinking is not None and not (isinstance(mode, str) and mode in _THINKING):
        raise ApiError(
            400,
            f"thinking is {shown(thinking)}; its type must be one of {', '.join(_THINKING)}.",
        )
    if is_object(thinking):
        # Thoughts are always shown whole, and budgets are not followed.
        fields.check_known(thinking, ("type", "budget_tokens"), {"display": ("summarized",)})
    return Chat(
        messages,
        tools,
        None if mode is None else _THINKING[str(mode)],
        calls=calls,
        begun=begun,
        images=images,
        separate=fields.switch(body, "separate_reasoning"),
    )


def _read_tools(body: Body) -> tuple[list[dict[str, Any]], CallChoice]:
    """The tools that the prompt shows, and how the answer may use them."""
    given = fields.objects(body, "tools")
    tools = [_read_tool(tool, number) for number, tool in enumerate(given)]
    fields.unique_names(tools)
    choice: object = body.get("tool_choice")
    if choice is None:
        choice = {"type": "auto"}
    kind: object = choice.get("type") if is_object(choice) else None
    if not is_object(choice) or kind not in ("auto", "any", "tool", "none"):
        raise ApiError(
            400, f"tool_choice is {shown(choice)}; its type must be auto, any, tool or none."
        )
    fields.check_known(choice, ("type", "name", "disable_parallel_tool_use"), {})
    if kind == "none":
        return [], CallChoice()
    names = [tool["function"]["name"] for tool in tools]
    if kind == "tool" and choice.get("name") not in names:
        raise ApiError(
            400, f"tool_choice names {shown(choice.get('name'))}; the tools are {shown(names)}."
        )
    if kind == "any" and not tools:
        raise ApiError(400, 'tool_choice is "any", and there are no tools.')
    strict = {tool["name"] for tool in given if tool.get("strict")}
    return tools, CallChoice(
        forced=kind != "auto",
        only=choice["name"] if kind == "tool" else "",
        several=not fields.switch(choice, "disable_parallel_tool_use"),
        strict=frozenset(strict),
    )


def _read_message(message: dict[str, Any], where: str, images: list[bytes]) -> list[ChatMessage]:
    """One message; results of tools become messages of their own, and images go to `images`."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise ApiError(
            400,
            f"{where}.role is {shown(role)}; it must be user or assistant. A system text belongs "
            "into system.",
        )
    fields.check_known(message, ("role", "content"), {})
    if not is_list(content):
        return [{"role": role, "content": fields.text_of(content, f"{where}.content")}]
    texts: list[str] = []
    parts: list[dict[str, Any]] = []  # texts and images, as chat templates take them
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[ChatMessage] = []
    for number, part in enumerate(content):
        kind: object = part.get("type") if is_object(part) else None
        place = f"{where}.content[{number}]"
        if not is_object(part):
            raise ApiError(400, f"{place} is {shown(part)}; it must be an object.")
        if kind == "text":
            texts.append(fields.text_of([part], place))
            parts.append({"type": "text", "text": texts[-1]})
        elif kind == "image" and role == "user":
            images.append(fields.image_of_source(part, place))
            parts.append({"type": "image"})
        elif kind == "tool_use" and role == "assistant":
            calls.append(_read_call(part, place))
        elif kind == "thinking" and role == "assistant":
            if not isinstance(part.get("thinking"), str):
                raise ApiError(400, f"{place} has no thinking; it must be a string.")
            thoughts.append(part["thinking"])
        elif kind == "tool_result" and role == "user":
            results.append(_read_result(part, place))
        else:
            raise ApiError(
                400, f"{place} is of type {shown(kind)}, which this engine does not take here."
            )
    plain = len(texts) == len(parts)
    read: ChatMessage = {"role": role, "content": "".join(texts) if plain else parts}
    if thoughts:
        read["reasoning_content"] = "\n".join(thoughts)
    if calls:
        read["tool_calls"] = calls
    return [*results, read] if parts or not results else results


def _read_call(part: dict[str, Any], where: str) -> dict[str, Any]:
    name, arguments = part.get("name"), part.get("input", {})
    if not isinstance(name, str) or not is_object(arguments):
        raise ApiError(400, f"{where} needs a name and an input that is an object.")
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": str(part.get("id", "")), "type": "function", "function": function}


def _read_result(part: dict[str, Any], where: str) -> ChatMessage:
    content = part.get("content")
    text = "" if content is None else fields.text_of(content, f"{where}.content")
    return {"role": "tool", "content": text, "tool_call_id": str(part.get("tool_use_id", ""))}


def _read_tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    name, schema = tool.get("name"), tool.get("input_schema")
    if tool.get("type") not in (None, "custom") or not isinstance(name, str) or not name:
        raise ApiError(400, f"tools[{number}] is {shown(tool)}; it must be a tool with a name.")
    fields.check_known(tool, _TOOL, {})
    fields.switch(tool, "strict")
    if not is_object(schema):
        raise ApiError(
            400, f"tools[{number}].input_schema is {shown(schema)}; it must be an object."
        )
    function: dict[str, Any] = {"name": name}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = schema  # in OpenAI's order: templates write what they are given
    return {"type": "function", "function": function}


# ---- what is answered


class _MessageAnswer:
    """One message, whole or as events."""

    def __init__(self, model: str, stops: Sequence[str], generation: Generation) -> None:
        self._model, self._stops, self._generation = model, stops, generation
        self._id = f"msg_{secrets.token_hex(12)}"

    def _body(self, content: list[dict[str, Any]], output_tokens: int) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": self._generation.prompt_tokens,
                "output_tokens": output_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }

    def whole(self, pieces: Sequence[TextPiece]) -> dict[str, Any]:
        thought = "".join(piece.thought for piece in pieces)
        text = "".join(piece.text for piece in pieces)
        calls = [call for piece in pieces for call in piece.calls]
        content: list[dict[str, Any]] = []
        if thought:
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text:
            content.append({"type": "text", "text": text})
        content += [{**_call_start(call), "input": json.loads(call.arguments)} for call in calls]
        body = self._body(content, self._generation.sampled_tokens)
        return {**body, **self._end(self._generation.answers[0], bool(calls))}

    def _end(self, answer: AnswerText, calls: bool) -> dict[str, Any]:
        """Why the message ends."""
        if calls and answer.reason == "stop":  # one that was cut may have more calls to come
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if answer.stop_string in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_string}
        reason = "max_tokens" if answer.reason == "length" else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}

    async def events(self, parts: AsyncIterator[AnswerPart]) -> AsyncIterator[str]:
        def named(name: str, **rest: Any) -> str:
            return fields.event({"type": name, **rest}, name)

        yield named("message_start", message=self._body([], 0))
        yield named("ping")
        block, index, calls = "", -1, False
        async for part in parts:
            piece = part.piece
            for kind, field, text in (
                ("thinking", "thinking", piece.thought),
                ("text", "text", piece.text),
            ):
                if not text:
                    continue
                if block != kind:
                    if block:
                        yield named("content_block_stop", index=index)
                    block, index = kind, index + 1
                    start: dict[str, Any] = {"type": kind, field: ""}
                    if kind == "thinking":
                        start["signature"] = ""
                    yield named("content_block_start", index=index, content_block=start)
                delta = {"type": f"{kind}_delta", field: text}
                yield named("content_block_delta", index=index, delta=delta)
            for call in piece.calls:
                if block:
                    yield named("content_block_stop", index=index)
                block, index, calls = "tool_use", index + 1, True
                start = {**_call_start(call), "input": {}}
                yield named("content_block_start", index=index, content_block=start)
                delta = {"type": "input_json_delta", "partial_json": call.arguments}
                yield named("content_block_delta", index=index, delta=delta)
        if block:
            yield named("content_block_stop", index=index)
        counts = {"output_tokens": self._generation.sampled_tokens}
        end = self._end(self._generation.answers[0], calls)
        yield named("message_delta", delta=end, usage=counts)
        yield named("message_stop")


def _call_start(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name}
