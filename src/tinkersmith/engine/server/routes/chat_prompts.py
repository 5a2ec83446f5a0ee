"""A model folder's tokenizer and chat template: messages -> the tokens of a prompt.

Texts of users never become control tokens, as in training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, cast

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.grammar_text import ANY_OBJECT, NO_ARGUMENTS, CallRules, ThoughtForm
from tinkersmith.engine.json_grammar import Grammars, JsonGrammar, vocabulary_of
from tinkersmith.engine.messages import ImageChunk
from tinkersmith.engine.server.api_errors import ApiError
from tinkersmith.engine.server.fields import is_list, is_object
from tinkersmith.engine.storage.catalogue import model_config
from tinkersmith.errors import UserError
from tinkersmith.prompts.guards import guard, guard_all
from tinkersmith.prompts.probes import (
    QUESTION,
    AnswerForm,
    CallForm,
    TemplateProbe,
    ToolForm,
    WrittenCalls,
)
from tinkersmith.prompts.sandbox import TemplateRefusal, render_chat
from tinkersmith.prompts.tags import CLOSE, OPEN, split_thought
from tinkersmith.prompts.text_tokenizer import TextTokenizer, read_tokenizer

ChatMessage = dict[str, Any]

_reading = Lock()  # while a vocabulary is read for answers with a schema: once for each model


@dataclass(frozen=True, slots=True)
class CallChoice:
    """How an answer may use the tools of a conversation."""

    forced: bool = False  # it must call a function
    only: str = ""  # which it calls once; "": any
    several: bool = True  # it may call more than once
    strict: frozenset[str] = frozenset()  # functions whose arguments must follow their schema

    @property
    def binds(self) -> bool:
        """Whether an answer must be kept to it."""
        return self.forced or not self.several or bool(self.strict)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation in OpenAI's form, as a template takes it."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    think: bool | None = None  # None: as the template does
    variables: dict[str, Any] = field(default_factory=dict[str, Any])  # of the template
    calls: CallChoice = CallChoice()
    begun: str = ""  # an answer that the model is to continue
    images: list[bytes] = field(default_factory=list[bytes])  # files, in the messages' order
    separate: bool = False  # tell <think> apart also where the template knows no thoughts


@dataclass(frozen=True)
class ModelTexts:
    """What turns the texts of one base model into tokens and back. Any thread may use it."""

    name: str  # of the base model
    tokenizer: TextTokenizer
    date: str  # today, for templates that write it
    image_token: int | None = None  # what its template writes for an image; None: it knows none
    image_text: str = ""  # that token with those around it, for templates that know no images

    @cached_property
    def probe(self) -> TemplateProbe:
        """The chat template, to be tried.

        Raises:
            ApiError: the model has none.
        """
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            raise ApiError(
                400,
                f"{self.name} has no chat template, so messages cannot be written as its prompt. "
                "Write the prompt yourself, and send it to /oai/api/v1/completions.",
                param="messages",
            )
        return TemplateProbe(
            tokenizer.chat_template,
            self.date,
            tokenizer.named_tokens,
            tuple(tokenizer.special_tokens),
            tokenizer.eos_text,
        )

    @cached_property
    def writes_images(self) -> bool:
        """Whether the template takes images among the parts of a message."""
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        written = self.probe.attempt([{"role": "user", "content": parts}], prompt=True)
        return self.image_token is not None and self.image_token in self.tokens_of(written)

    @cached_property
    def form(self) -> AnswerForm:
        """What the template writes around answers."""
        try:
            return self.probe.answer_form()
        except UserError as error:
            raise ApiError(400, f"the chat template of {self.name} fails: {error}") from None

    @cached_property
    def tool_form(self) -> ToolForm:
        return self.probe.tool_form()

    @cached_property
    def call_form(self) -> CallForm | None:
        return self.probe.call_form(self.tool_form)

    @cached_property
    def written_calls(self) -> WrittenCalls | None:
        return self.probe.written_calls(self.tool_form, self.form.end)

    @property
    def knows_thoughts(self) -> bool:
        """Whether the template writes thoughts, so that they are told apart from answers."""
        return self.form.carrier != "text"

    def chat_ends(self) -> list[int | str]:
        """What ends an answer besides the model's end tokens: the template's own end."""
        end = self.form.end
        tokens = self.tokens_of(end) if end else []
        if len(tokens) == 1:
            return [tokens[0]]
        return [end.strip()] if end.strip() else []

    def prompt_text(self, chat: Chat) -> str:
        """The text of the prompt, guarded.

        Raises:
            ApiError: the template refuses the messages, or leaves out one of them, or the model
                takes no images.
        """
        if chat.images and self.image_token is None:
            raise ApiError(
                400,
                f"messages have an image, and {self.name} reads text only. Leave it out, or name "
                "a model that reads images.",
                param="messages",
            )
        probe, form = self.probe, self.form
        variables = {**form.variables(chat.think), **chat.variables}
        tools = cast("list[dict[str, Any]]", self._guarded(chat.tools)) or None
        if tools and self.call_form is None:
            raise ApiError(
                400,
                f"the chat template of {self.name} does not write calls of functions as JSON, so "
                "tools cannot be used with it. Send the request without tools.",
                param="tools",
            )
        messages = [self._message(message) for message in chat.messages]
        try:
            text = render_chat(
                probe.source,
                probe.date,
                messages,
                {**probe.named_tokens, **variables},
                tools=tools,
                add_generation_prompt=True,
            )
        except TemplateRefusal as refusal:
            raise ApiError(400, f"{refusal.reason}.", param="messages") from None
        self._check_complete(messages, tools or [], text)
        return text + guard(chat.begun, self._guarded_tokens)

    def divided(
        self, tokens: list[int], images: Sequence[bytes]
    ) -> tuple[list[int], list[ImageChunk]]:
        """The text of a prompt without what its template wrote for images, and the images.

        Raises:
            ApiError: the template has not written one token for each of them.
        """
        if not images:
            return tokens, []
        places = [place for place, token in enumerate(tokens) if token == self.image_token]
        if len(places) != len(images):
            raise ApiError(
                400,
                f"messages have {len(images)} {'image' if len(images) == 1 else 'images'}, and the "
                f"chat template of {self.name} writes {len(places)}.",
                param="messages",
            )
        chunks = [
            ImageChunk(data, place - number)
            for number, (place, data) in enumerate(zip(places, images, strict=True))
        ]
        return [token for token in tokens if token != self.image_token], chunks

    def tokens_of(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text)]

    def completion_prompt(self, text: str) -> list[int]:
        """The tokens of a prompt that the user has written, control tokens included."""
        begin = self.tokenizer.begin_text
        return self.tokens_of(text if begin and text.startswith(begin) else begin + text)

    def opens_thought(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought, so that an answer begins inside it."""
        return self.knows_thoughts and prompt.rstrip().endswith(self.opening)

    def thought_form(self, prompt: str) -> ThoughtForm:
        """The form of a thought in the answer to a prompt, where thoughts are told apart."""
        return ThoughtForm(self.opening, self.closing, self.form.lead, self.opens_thought(prompt))

    def json_grammar(
        self,
        schema: dict[str, Any],
        prompt: str,
        *,
        thoughts: bool,  # whether they are told apart from answers
    ) -> JsonGrammar:
        """What an answer to a prompt must look like to follow a JSON schema, after any thought.

        Raises:
            ApiError: it cannot be followed.
        """
        grammars = self._grammars_for("response_format")
        try:
            return grammars.of(schema, self._thought_to_come(prompt, thoughts))
        except Refused as refusal:
            raise ApiError(
                400, f"the JSON schema cannot be followed: {refusal}", param="response_format"
            ) from None

    def call_grammar(self, chat: Chat, prompt: str, *, thoughts: bool) -> JsonGrammar:
        """What an answer must look like to call functions as a conversation asks.

        Raises:
            ApiError: it is not known how the template writes calls, or a schema cannot be followed.
        """
        choice, form, written = chat.calls, self.call_form, self.written_calls
        if written is None or form is None or not written.first.startswith(form.opening):
            raise ApiError(
                400,
                f"it is not known how the chat template of {self.name} writes a call to the "
                "letter, so no call can be forced or bound. Leave tool_choice, "
                "parallel_tool_calls and strict out.",
                param="tools",
            )
        parameters: dict[str, Any] = {}
        for tool in chat.tools:
            function = tool["function"]
            name: str = function["name"]
            if choice.only in ("", name):
                bound = choice.forced or name in choice.strict
                schema = function.get("parameters") or NO_ARGUMENTS
                parameters[name] = schema if bound else ANY_OBJECT
        rules = CallRules(
            written,
            form.opening,
            parameters,
            forced=choice.forced,
            several=choice.several and not choice.only,
        )
        grammars = self._grammars_for("tools")
        try:
            return grammars.of_calls(rules, self._thought_to_come(prompt, thoughts))
        except Refused as refusal:
            raise ApiError(400, str(refusal), param="tools") from None

    def _thought_to_come(self, prompt: str, thoughts: bool) -> ThoughtForm | None:
        """The form of the thought that an answer to a prompt begins with; None: it has none."""
        form = self.thought_form(prompt)
        past = prompt.rstrip().endswith(self.closing)
        return form if thoughts and (form.begins_inside or not past) else None

    def _grammars_for(self, param: str) -> Grammars:
        try:
            with _reading:
                return self._grammars
        except Refused as refusal:
            raise ApiError(400, str(refusal), param=param) from None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(vocabulary_of(self.name, self.tokenizer))

    @property
    def opening(self) -> str:
        return self.form.opening.strip() or OPEN

    @property
    def closing(self) -> str:
        return self.form.closing.strip() or CLOSE

    @cached_property
    def _guarded_tokens(self) -> tuple[str, ...]:
        tokenizer = self.tokenizer
        tags = (OPEN, CLOSE) if "think>" in (tokenizer.chat_template or "") else ()
        return tuple(dict.fromkeys((*tokenizer.special_tokens, *tokenizer.control_tokens, *tags)))

    def _guarded(self, value: Any) -> Any:
        return guard_all(value, self._guarded_tokens)

    def _message(self, message: ChatMessage) -> ChatMessage:
        """A message as the template wants it: thoughts in its own field, calls in its own form."""
        if message["role"] != "assistant":
            return self._with_images_in_text(self._guarded(message))
        message = dict(message)
        thought: str = message.pop("reasoning_content", "")
        answer: str = message.get("content") or ""
        inline = split_thought(answer) if self.knows_thoughts else None
        if inline is not None:
            thought, answer = thought or inline[0], inline[1]
        calls: list[Any] = message.pop("tool_calls", [])
        written = cast("ChatMessage", self._guarded(message))
        written["content"] = self._guarded(answer)
        if thought.strip() and self.form.carrier == "content":
            words = self._guarded(thought)
            written["content"] = f"{OPEN}\n{words}\n{CLOSE}\n\n{written['content']}"
        elif thought.strip() and self.form.carrier not in ("prompt", "text"):
            written[self.form.carrier] = self._guarded(thought)
        if calls:
            form = self.tool_form
            if not form.calls:
                raise ApiError(
                    400,
                    f"the chat template of {self.name} does not write calls of functions; leave "
                    "tool_calls out.",
                    param="messages",
                )
            written["tool_calls"] = [self._guarded(_call(call, form)) for call in calls]
            written["content"] = written["content"] or form.empty_content
        return written

    def _with_images_in_text(self, message: ChatMessage) -> ChatMessage:
        """A message as a template takes it that only knows texts, such as one of training."""
        content: object = message.get("content")
        if not is_list(content) or self.writes_images:
            return message
        texts = [self.image_text if part["type"] == "image" else part["text"] for part in content]
        return {**message, "content": "".join(texts)}

    def _check_complete(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]], text: str
    ) -> None:
        """Refuse a template that leaves out a part of the prompt; Jinja says nothing of it."""
        words = " ".join(text.split())
        for message in messages:
            if message["role"] == "assistant":
                continue
            for content in _texts_of(message):
                sought = " ".join(content.split())
                as_json = json.dumps(content, ensure_ascii=False)[1:-1]
                if sought in words or as_json in text:
                    continue
                raise ApiError(
                    400,
                    f"the chat template of {self.name} leaves out a text of the role "
                    f"{message['role']!r}. Leave that message out, or put its text into another.",
                    param="messages",
                )
        for tool in tools:
            if tool["function"]["name"] not in text:
                raise ApiError(
                    400,
                    f"the chat template of {self.name} leaves out the functions that can be "
                    "called. Send the request without tools.",
                    param="tools",
                )


def _texts_of(message: ChatMessage) -> list[str]:
    content: object = message.get("content")
    parts: object = [{"text": content}] if isinstance(content, str) else content
    if not is_list(parts):
        return []
    return [part["text"] for part in parts if is_object(part) and "text" in part]


def _call(call: dict[str, Any], form: ToolForm) -> dict[str, Any]:
    """A call with its arguments as text, or parsed, as the template wants them."""
    function = dict(call["function"])
    if not form.arguments_as_text:
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError:
            raise ApiError(
                400,
                f"the arguments of a call of {function['name']!r} are not JSON.",
                param="messages",
            ) from None
    return {**call, "function": function}


def read_texts(name: str, folder: Path, today: str, chat_template: str | None = None) -> ModelTexts:
    """The texts of a base model in `folder`, with its own chat template or another one.

    Raises:
        ApiError: it has no tokenizer.json, or a damaged one.
    """
    try:
        tokenizer = read_tokenizer(folder, chat_template)
    except UserError as error:
        raise ApiError(500, str(error)) from None
    if tokenizer is None:
        raise ApiError(
            400,
            f"{name} has no tokenizer.json, which texts need here. Sample from it with the SDK, "
            "which sends tokens.",
            param="model",
        )
    config = model_config(folder)
    image = config.get("image_token_id")
    if not isinstance(image, int):
        return ModelTexts(name, tokenizer, today)
    around = (config.get("vision_start_token_id"), image, config.get("vision_end_token_id"))
    text = tokenizer.decode_all([token for token in around if isinstance(token, int)])
    return ModelTexts(name, tokenizer, today, image, text)
