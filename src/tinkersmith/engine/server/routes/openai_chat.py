"""OpenAI's API: chat completions, with thoughts and calls of functions told apart from the text."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.json_grammar import JsonGrammar
from tinkersmith.engine.server.api_errors import OPENAI, ApiError
from tinkersmith.engine.server.fields import Body, is_list, is_object, shown
from tinkersmith.engine.server.routes import inference_fields as fields
from tinkersmith.engine.server.routes.answer_text import (
    AnswerSyntax,
    TextPiece,
    TokenScore,
    ToolCall,
    token_text,
)
from tinkersmith.engine.server.routes.chat_prompts import (
    CallChoice,
    Chat,
    ChatMessage,
    ModelTexts,
)
from tinkersmith.engine.server.routes.generation import AnswerPart, Generation, begin, collect
from tinkersmith.engine.server.routes.inference_models import InferenceModels, NamedModel
from tinkersmith.engine.server.routes.openai_completions import (
    MOST_ALTERNATIVES,
    MOST_TOKENS,
    OPENAI_NEUTRAL,
    SAMPLING,
    OpenAISampling,
    read_sampling,
    usage,
)
from tinkersmith.prompts.text_tokenizer import TextTokenizer

_ROLES = ("system", "developer", "user", "assistant", "tool")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **OPENAI_NEUTRAL,
    "store": (False,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),  # without functions
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
_KNOWN = (
    *SAMPLING,
    *("messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format"),
    *("chat_template", "chat_template_kwargs", "separate_reasoning"),
)


class OpenAIChat:
    """The route /chat/completions."""

    def __init__(self, models: InferenceModels) -> None:
        self.models = models

    async def chat_completions(self, request: Request, body: Body) -> Response:
        fields.check_known(body, _KNOWN, _NEUTRAL)
        sampling = read_sampling(body)
        max_tokens = _max_tokens(body)
        logprobs = fields.switch(body, "logprobs")
        top = fields.whole(body, "top_logprobs", 0, 0, MOST_ALTERNATIVES) or 0
        if top and not logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        chat, schema = _read_chat(body), fields.response_schema(body)
        model = await self.models.find(body.get("model"), fields.chat_template(body))
        prompt = await prompt_of(
            model, chat, schema, asks_effort=body.get("reasoning_effort") is not None
        )
        asked = replace(
            sampling.request(prompt.tokens, model.texts.chat_ends()),
            max_tokens=fields.room_for(max_tokens, prompt.tokens, model.context),
            topk_sample_logprobs=top,
            grammar=prompt.grammar,
            chunks=prompt.images,
        )
        syntax = prompt.syntax(sampling.stops)
        generation = Generation(self.models, model, [asked], syntax, live=sampling.stream)
        answer = _ChatAnswer(model, sampling, logprobs, generation)
        if sampling.stream:
            parts = await begin(generation, request)
            return fields.event_stream(OPENAI + "/", answer.events(parts))
        return JSONResponse(answer.whole(await collect(generation, request)))


def _max_tokens(body: Body) -> int | None:
    limits = [
        limit
        for name in ("max_completion_tokens", "max_tokens")
        if (limit := fields.whole(body, name, None, 1, MOST_TOKENS)) is not None
    ]
    if len(set(limits)) > 1:
        raise ApiError(
            400,
            f"max_completion_tokens is {limits[0]} and max_tokens {limits[1]}; give one of them.",
            param="max_tokens",
        )
    return limits[0] if limits else None


# ---- what is asked


def _read_chat(body: Body) -> Chat:
    has_input = "message['input']" in str(body.get("chat_template"))
    images: list[bytes] = []
    messages = [
        _read_message(message, f"messages[{number}]", has_input, images)
        for number, message in enumerate(fields.objects(body, "messages"))
    ]
    _check_results(messages)
    if not messages:
        raise ApiError(400, "messages is empty; it needs at least one message.", param="messages")
    tools, calls = _read_tools(body)
    effort = body.get("reasoning_effort")
    if effort not in (None, *_EFFORTS):
        raise ApiError(
            400,
            f"reasoning_effort is {shown(effort)}; it must be one of {', '.join(_EFFORTS)}.",
            param="reasoning_effort",
        )
    variables = body.get("chat_template_kwargs")
    if variables is not None and not is_object(variables):
        raise ApiError(
            400,
            f"chat_template_kwargs is {shown(variables)}; it must be an object.",
            param="chat_template_kwargs",
        )
    return Chat(
        messages,
        tools,
        None if effort is None else effort != "none",
        variables or {},
        calls=calls,
        images=images,
        separate=fields.switch(body, "separate_reasoning"),
    )


def _read_tools(body: Body) -> tuple[list[dict[str, Any]], CallChoice]:
    """The tools that the prompt shows, and how the answer may use them."""
    given = fields.objects(body, "tools")
    tools = [_read_tool(tool, number) for number, tool in enumerate(given)]
    fields.unique_names(tools)
    choice: object = body.get("tool_choice")
    several = fields.switch(body, "parallel_tool_calls", default=True)
    if choice == "none" or (not tools and choice is None):
        return [], CallChoice()
    if not tools:
        raise ApiError(
            400, f"tool_choice is {shown(choice)}, and there are no tools.", param="tool_choice"
        )
    only = ""
    if is_object(choice):
        function: object = choice.get("function")
        name: object = function.get("name") if is_object(function) else None
        names = [tool["function"]["name"] for tool in tools]
        if choice.get("type") != "function" or name not in names:
            raise ApiError(
                400,
                f"tool_choice is {shown(choice)}; a function must be named as "
                '{"type": "function", "function": {"name": ...}}, and be one of '
                f"{shown(names)}.",
                param="tool_choice",
            )
        only = str(name)
    elif choice not in (None, "auto", "required"):
        raise ApiError(
            400,
            f'tool_choice is {shown(choice)}; it must be "auto", "none", "required" or name a '
            "function.",
            param="tool_choice",
        )
    strict = {tool["function"]["name"] for tool in given if tool["function"].get("strict")}
    forced = bool(only) or choice == "required"
    return tools, CallChoice(forced, only, several, frozenset(strict))


def _read_message(
    message: dict[str, Any], where: str, has_input: bool, images: list[bytes]
) -> ChatMessage:
    """One message; files of its images go to `images`."""
    role = message.get("role")
    if role not in _ROLES:
        raise ApiError(
            400,
            f"{where}.role is {shown(role)}; it must be one of {', '.join(_ROLES)}.",
            param=f"{where}.role",
        )
    known = {"role", "content", "name"}
    known |= {"tool_call_id"} if role == "tool" else set[str]()
    known |= {"input"} if role == "user" and has_input else set[str]()
    if role == "assistant":
        known |= {"tool_calls", "reasoning_content"}
    neutral = dict.fromkeys(("refusal", "audio", "function_call", "annotations"), ())
    fields.check_known(message, known, {**neutral, "annotations": ([],)})
    calls = fields.objects(message, "tool_calls")
    content = message.get("content")
    if content is None and role == "assistant" and (calls or "reasoning_content" in message):
        content = ""
    read: ChatMessage = {
        "role": "system" if role == "developer" else role,
        "content": _read_content(content, f"{where}.content", images if role == "user" else None),
    }
    for name in ("name", "input", "tool_call_id", "reasoning_content"):
        if message.get(name) is not None:
            if not isinstance(message[name], str):
                raise ApiError(
                    400,
                    f"{where}.{name} is {shown(message[name])}; it must be a string.",
                    param=f"{where}.{name}",
                )
            read[name] = message[name]
    if calls:
        read["tool_calls"] = [_read_call(call, f"{where}.tool_calls") for call in calls]
    return read


def _read_content(
    content: object, where: str, images: list[bytes] | None
) -> str | list[dict[str, Any]]:
    """A text; with images, a list of parts as chat templates take them."""
    parts = [part for part in content if is_object(part)] if is_list(content) else []
    if images is None or not any(part.get("type") == "image_url" for part in parts):
        return fields.text_of(content, where)
    read: list[dict[str, Any]] = []
    for number, part in enumerate(cast("list[object]", content)):
        if is_object(part) and part.get("type") == "image_url":
            images.append(fields.image_of_url(part, f"{where}[{number}]"))
            read.append({"type": "image"})
        else:
            read.append({"type": "text", "text": fields.text_of([part], f"{where}[{number}]")})
    return read


def _check_results(messages: Sequence[ChatMessage]) -> None:
    """Refuse the result of a tool that no message before it has called."""
    called: set[object] = set()
    for number, message in enumerate(messages):
        called |= {call["id"] for call in message.get("tool_calls", ())}
        given = message.get("tool_call_id")
        if message["role"] == "tool" and (given is None or given not in called):
            raise ApiError(
                400,
                f"messages[{number}].tool_call_id is {shown(given)}; it must be the id of a call "
                "in a message before it.",
                param=f"messages[{number}].tool_call_id",
            )


def _read_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function: object = call.get("function")
    if not is_object(function) or call.get("type", "function") != "function":
        raise ApiError(400, f"{where} has a call without a function.", param=where)
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise ApiError(
            400,
            f"{where} has a call without a name, or with arguments that are no text.",
            param=where,
        )
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _read_tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    function: object = tool.get("function")
    where = f"tools[{number}]"
    if tool.get("type") != "function" or not is_object(function):
        raise ApiError(
            400, f"{where} is {shown(tool)}; it must be of type function.", param="tools"
        )
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, f"{where} has no name.", param="tools")
    if function.get("parameters") is not None and not is_object(function["parameters"]):
        raise ApiError(
            400,
            f"{where}.function.parameters is {shown(function['parameters'])}; it must be an "
            "object: a JSON schema.",
            param="tools",
        )
    fields.switch(function, "strict")
    kept = {key: value for key, value in function.items() if key != "strict"}
    return {"type": "function", "function": kept}


class ChatPrompt:
    """The prompt of a conversation, how the answer to it is read, and what it must look like."""

    def __init__(self, texts: ModelTexts, chat: Chat, schema: dict[str, Any] | None) -> None:
        """Renders and encodes, which takes a moment for long conversations."""
        self._texts, self._chat = texts, chat
        self._text = texts.prompt_text(chat)
        tokens = texts.tokens_of(self._text)
        self.tokens, self.images = texts.divided(tokens, chat.images)
        self._thoughts = texts.knows_thoughts or chat.separate
        self.grammar: JsonGrammar | None = None
        if schema is not None:
            self.grammar = texts.json_grammar(schema, self._text, thoughts=self._thoughts)
        elif chat.tools and chat.calls.binds:
            self.grammar = texts.call_grammar(chat, self._text, thoughts=self._thoughts)

    def syntax(self, stops: Sequence[str]) -> AnswerSyntax:
        texts = self._texts
        thoughts = texts.thought_form(self._text) if self._thoughts else None
        tools = self._chat.tools
        names = tuple(tool["function"]["name"] for tool in tools)
        calls = texts.call_form if tools else None
        ends = [end for end in texts.chat_ends() if isinstance(end, str)]
        return AnswerSyntax((*stops, *ends), thoughts, calls, names)


async def prompt_of(
    model: NamedModel, chat: Chat, schema: dict[str, Any] | None = None, *, asks_effort: bool
) -> ChatPrompt:
    """Render a conversation, in a thread.

    Args:
        schema: a JSON schema that the answer must follow; None: any text.

    Raises:
        ApiError: the template refuses it, or has no switch for thoughts; the schema cannot be
            followed.
    """
    if schema is not None and chat.tools:
        raise ApiError(
            400,
            "an answer can follow a JSON schema, or call tools, not both; leave one of them out.",
            param="response_format",
        )

    def render() -> ChatPrompt:
        if asks_effort and not model.texts.form.switch:
            raise ApiError(
                400,
                f"the chat template of {model.base_model} has no switch for thoughts; leave "
                "reasoning_effort and thinking out.",
                param="reasoning_effort",
            )
        return ChatPrompt(model.texts, chat, schema)

    return await asyncio.to_thread(render)


# ---- what is answered


class _ChatAnswer:
    """One request's answer, whole or as events."""

    def __init__(
        self,
        model: NamedModel,
        sampling: OpenAISampling,
        logprobs: bool,
        generation: Generation,
    ) -> None:
        self._tokenizer = model.texts.tokenizer
        self._sampling, self._logprobs, self._generation = sampling, logprobs, generation
        self._model = model.name
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def whole(self, pieces: Sequence[Sequence[TextPiece]]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index, own in enumerate(pieces):
            text = "".join(piece.text for piece in own)
            thought = "".join(piece.thought for piece in own)
            calls = [call for piece in own for call in piece.calls]
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if thought:
                message["reasoning_content"] = thought
            if calls:
                message["content"] = text or None
                message["tool_calls"] = [_call_json(call) for call in calls]
            scores = [score for piece in own for score in piece.scores]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._scores(scores),
                    "finish_reason": _reason(self._generation, index, bool(calls)),
                }
            )
        return {**self._body("chat.completion", choices), "usage": usage(self._generation)}

    async def events(self, parts: AsyncIterator[AnswerPart]) -> AsyncIterator[str]:
        include = self._sampling.include_usage
        calling: set[int] = set()
        ended: set[int] = set()
        for index in range(len(self._generation.answers)):
            yield self._event(index, {"role": "assistant", "content": ""})
        async for part in parts:
            piece, index = part.piece, part.index
            delta: dict[str, Any] = {}
            if piece.thought:
                delta["reasoning_content"] = piece.thought
            if piece.text:
                delta["content"] = piece.text
            if piece.calls:
                calling.add(index)
                delta["tool_calls"] = [
                    {"index": number, **_call_json(call)} for number, call in enumerate(piece.calls)
                ]
            if delta or (piece.scores and self._logprobs):
                yield self._event(index, delta, scores=piece.scores)
            if part.reason is not None and index not in ended:
                ended.add(index)
                yield self._event(index, {}, _reason(self._generation, index, index in calling))
        if include:
            body = self._body("chat.completion.chunk", [])
            yield fields.event({**body, "usage": usage(self._generation)})
        yield "data: [DONE]\n\n"

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        scores: Sequence[TokenScore] = (),
    ) -> str:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self._scores(scores) if scores else None,
            "finish_reason": reason,
        }
        tail = {"usage": None} if self._sampling.include_usage else {}
        return fields.event({**self._body("chat.completion.chunk", [choice]), **tail})

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {
                **_score_json(self._tokenizer, score.token, score.logprob),
                "top_logprobs": [
                    _score_json(self._tokenizer, token, value) for token, value in score.topk
                ],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}


def _reason(generation: Generation, index: int, calls: bool) -> str:
    reason = generation.answers[index].reason or "stop"
    # An answer that was cut may have more calls to come.
    return "tool_calls" if calls and reason == "stop" else reason


def _call_json(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _score_json(tokenizer: TextTokenizer, token: int, logprob: float) -> dict[str, Any]:
    text, raw = token_text(tokenizer, token)
    return {"token": text, "logprob": logprob, "bytes": list(raw)}
