"""Chats for a server that does not take our chat templates: prompts are written here.

A conversation becomes the tokens that training would have written for it. The server completes
them, and its answer is put back into the form of a chat, with the thought told apart.
"""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.data.shapes.messages import turns_of
from tinkersmith.data.shapes.values import Unusable
from tinkersmith.errors import UserError
from tinkersmith.prompts.tags import CLOSE, OPEN
from tinkersmith.serving.errors import ServingError
from tinkersmith.serving.models import ServedModel, ServedModels
from tinkersmith.serving.upstream import Upstream
from tinkersmith.text.pieces import UnusableSample
from tinkersmith.text.templates import ChatTemplate, PromptTemplate

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer

# Parameters of a chat that a completion has as well.
_SHARED = ("temperature", "top_p", "top_k", "n", "seed", "stream", "stream_options", "user")
# Fields about the account, which change no answer. The server behind may not know them.
_ACCOUNT = (
    *("metadata", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
_READ = ("model", "messages", "max_tokens", "max_completion_tokens", "stop", *_SHARED, *_ACCOUNT)
# Values of other parameters that ask for nothing.
_NEUTRAL: dict[str, Sequence[object]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True, False),
    "store": (False,),
}


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as a request for completions, and how its answer is read."""

    request: dict[str, Any]
    name: str  # of the model, as the client calls it
    opening: str = OPEN  # of a thought
    closing: str = CLOSE
    inside: bool = False  # the prompt has opened the thought


def is_rendered(path: str, model: ServedModel, body: Mapping[str, Any], upstream: Upstream) -> bool:
    """Whether a request's prompt must be written here.

    Raises:
        ServingError: it must be, and the API has no completions to send it to.
    """
    template = model.template
    if path == "/v1/completions" or template is None or body.get("chat_template") is not None:
        return False
    if upstream.takes_templates and model.chat_template is not None:
        return False
    if isinstance(template, ChatTemplate) and template.thinks is None:
        return False  # the server's own chat template writes the same
    if path != "/v1/chat/completions":
        raise ServingError(
            400,
            f"the model {model.name} was trained with the prompt template {template.name!r}, which "
            "the server behind cannot write for this API. Use /v1/chat/completions.",
        )
    return True


def render_request(
    model: ServedModel, models: ServedModels, body: Mapping[str, Any]
) -> RenderedChat:
    """A chat as a request for completions.

    Raises:
        ServingError: the conversation cannot be written, or a parameter cannot be followed.
    """
    for name, value in body.items():
        if name in _READ or value is None:
            continue
        if value not in _NEUTRAL.get(name, ()):
            raise ServingError(
                400,
                f"{name} cannot be used with {model.name}: its prompt template is written here, "
                "and the server behind completes plain prompts. Leave it out.",
                param=name,
            )
    template = model.template
    assert template is not None
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((value for value in limits if value is not None), None)
    stops: Any = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    end = template.end.strip()
    if end and end not in stops:
        stops.append(end)
    tokenizer = _tokenizer(models.settings.tokenizer, models.base_model)
    prompt = _prompt(template, body.get("messages"))
    asked = {name: body[name] for name in _SHARED if body.get(name) is not None}
    request = {
        **asked,
        "model": model.upstream,
        "prompt": [int(token) for token in tokenizer.encode(prompt)],
        "max_tokens": limit if limit is not None else models.settings.sampling_max_tokens,
        "stop": stops,
    }
    if not isinstance(template, ChatTemplate):
        return RenderedChat(request, model.name)
    opening = template.form.opening.strip() or OPEN
    inside = template.form.carrier != "text" and prompt.rstrip().endswith(opening)
    closing = template.form.closing.strip() or CLOSE
    return RenderedChat(request, model.name, opening, closing, inside)


def _prompt(template: PromptTemplate, messages: object) -> str:
    if not isinstance(messages, list) or not messages:
        raise ServingError(400, "messages must be a list that is not empty.", param="messages")
    given = cast("list[Any]", messages)
    _check_texts(given)
    given = [
        {**message, "role": "system"} if _role_of(message) == "developer" else message
        for message in given
    ]
    try:
        turns, _ = turns_of(given, "messages", ends_with_answer=False)
        turns = _with_inputs(turns, given)
        sample = Sample((*turns, Turn("assistant", "")), Source("the request", 1))
        return template.render_prompt(sample)
    except Unusable as error:
        raise ServingError(400, error.reason, param="messages") from None
    except (UnusableSample, UserError) as error:
        raise ServingError(400, str(error), param="messages") from None


def _check_texts(messages: Sequence[Any]) -> None:
    """Refuse what is no text, in a request's words; the data's reader speaks of records."""
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        content: object = (
            cast("dict[str, Any]", message).get("content") if _role_of(message) else ""
        )
        parts = cast("list[Any]", content) if isinstance(content, list) else []
        for place, part in enumerate(parts):
            kind = cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else part
            if kind == "image_url":
                raise ServingError(
                    400,
                    f"{where}[{place}] is an image. This model's prompts are written here, and the "
                    "server behind completes plain text. Leave it out, or serve the model on this "
                    "machine.",
                    param=where,
                )
            if kind != "text":
                raise ServingError(
                    400,
                    f"{where}[{place}] is of type {str(kind)[:100]!r}; this server takes parts of "
                    "type text, each with its text.",
                    param=where,
                )
        if _role_of(message) == "user" and content in (None, "", []):
            raise ServingError(400, f"{where} is empty; it must have a text.", param=where)


def _with_inputs(turns: Sequence[Turn], messages: Sequence[Any]) -> Sequence[Turn]:
    """The turns with the `input` that messages of the user have beside their content."""
    asked = [message for message in messages if _role_of(message) == "user"]
    if not any("input" in message for message in asked):
        return turns
    for number, message in enumerate(messages):
        if _role_of(message) == "user" and not isinstance(message.get("input", ""), str):
            where = f"messages[{number}].input"
            raise ServingError(400, f"{where} must be a string.", param=where)
    if len(asked) != sum(turn.role == "user" for turn in turns):
        raise ServingError(
            400, "with an input, each message of the user needs an answer.", param="messages"
        )
    inputs = iter([message.get("input", "") for message in asked])
    return [replace(turn, input=next(inputs)) if turn.role == "user" else turn for turn in turns]


def _role_of(message: object) -> object:
    return cast("dict[str, Any]", message).get("role") if isinstance(message, dict) else None


@lru_cache(maxsize=4)
def _tokenizer(given: str, base_model: str) -> "TextTokenizer":
    from tinkersmith.text.tokenizer import tokenizer_of

    try:
        return tokenizer_of(given, base_model)
    except UserError as error:
        raise ServingError(503, str(error)) from None


# ---- what is answered


class ThoughtReader:
    """Tells the thought at the start of a text apart from the rest, piece by piece."""

    def __init__(self, chat: RenderedChat) -> None:
        self._chat = chat
        self._state = "opened" if chat.inside else "start"
        self._held = ""  # what the next piece may make a tag of

    def add(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """More of the text -> more of the thought, and more of the answer."""
        chat, thought, answer = self._chat, "", ""
        text, self._held = self._held + text, ""
        if self._state == "start":
            start = text.lstrip()
            if start.startswith(chat.opening):
                self._state, text = "opened", start[len(chat.opening) :]
            elif chat.opening.startswith(start) and not last:
                self._held = text
                return "", ""
            else:
                self._state = "answer"
        if self._state == "opened":
            text = text.lstrip("\n")
            self._state = "thought" if text else "opened"
        if self._state == "thought":
            thought, closed, text = text.partition(chat.closing)
            if closed:
                self._state, thought = "gap", thought.rstrip("\n")
            elif not last:
                kept = _length_of_begun(thought, chat.closing)
                thought, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
        if self._state == "gap":
            text = text.lstrip("\n")
            self._state = "answer" if text else "gap"
        if self._state == "answer":
            answer = text
        return thought, answer


def _length_of_begun(text: str, closing: str) -> int:
    """How many characters at the end may belong to a closing tag, with the line breaks before."""
    begun = next(n for n in range(len(closing), -1, -1) if text.endswith(closing[:n]))
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip("\n"))


def whole_answer(chat: RenderedChat, value: dict[str, Any]) -> dict[str, Any]:
    """A whole answer of completions as one of chat completions."""
    choices: list[dict[str, Any]] = []
    for choice in value["choices"]:
        thought, answer = ThoughtReader(chat).add(choice["text"], last=True)
        message: dict[str, Any] = {"role": "assistant", "content": answer, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        choices.append(
            {
                "index": choice["index"],
                "message": message,
                "logprobs": None,
                "finish_reason": choice["finish_reason"],
            }
        )
    head = _head(chat, "chat.completion", value)
    return {**head, "choices": choices, "usage": value.get("usage")}


async def chat_events(chat: RenderedChat, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events of a completion as those of a chat completion; errors pass as they are."""
    readers: dict[int, ThoughtReader] = {}
    async for line in _lines(pieces):
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if not data:  # an empty line, or a comment that keeps the connection open
            if line:
                yield line + b"\n\n"
            continue
        value: Any = None if data == b"[DONE]" else json.loads(data)
        if value is None or "choices" not in value:  # the end, or an error
            yield line + b"\n\n"
            continue
        head = _head(chat, "chat.completion.chunk", value)
        usage = {"usage": value["usage"]} if "usage" in value else {}
        if not value["choices"]:  # the usage alone
            yield _event({**head, "choices": [], **usage})
        for choice in value["choices"]:
            index = choice["index"]
            deltas: list[tuple[dict[str, Any], str | None]] = []
            if index not in readers:
                readers[index] = ThoughtReader(chat)
                deltas.append(({"role": "assistant", "content": ""}, None))
            reason = choice.get("finish_reason")
            thought, answer = readers[index].add(choice.get("text") or "", last=reason is not None)
            delta = {"reasoning_content": thought} if thought else {}
            delta |= {"content": answer} if answer else {}
            if delta:
                deltas.append((delta, None))
            if reason is not None:
                deltas.append(({}, reason))
            for delta, end in deltas:
                entry = {"index": index, "delta": delta, "logprobs": None, "finish_reason": end}
                yield _event({**head, "choices": [entry], **usage})


def _head(chat: RenderedChat, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": value.get("id") or f"chatcmpl-{int(time.time())}",
        "object": kind,
        "created": value.get("created") or int(time.time()),
        "model": chat.name,
    }


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async with aclosing(cast("Any", pieces)):
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
    if rest:
        yield rest
