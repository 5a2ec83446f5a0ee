"""Sample -> prompt and completion text. The template is a value, stored with the run as JSON.

Text from the user may contain a control token such as <|im_end|>. A guard character after the
token's first character makes `TextTokenizer.encode_batch` keep it plain text. Call `unguarded`
before you show a rendered text.
"""

import dataclasses
import datetime
import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from string import Formatter
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.data.samples import Sample
from tinkersmith.errors import UserError, one_line
from tinkersmith.files import kind_of_json
from tinkersmith.text.guards import guard

if TYPE_CHECKING:
    from tinkersmith.text.tokenizer import TextTokenizer


INSTRUCTION_FORMAT = "System: {system}\nInstruction: {instruction}\nInput: {input}\nResponse:\n"
# The wording is that of the Alpaca data set, since models trained on it expect it to the letter.
ALPACA_FORMAT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_FORMAT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATE_NAMES = ("auto", "instruction", "alpaca", "chat")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered text that is encoded on its own."""

    text: str
    trained: bool  # whether the loss counts its tokens


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text to train on: one sequence of tokens. Most samples are one, some are several."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, prompt: str, completion: str) -> "Rendered":
        """One prompt and the completion that the model should learn, end token included."""
        return cls((Piece(prompt, trained=False), Piece(completion, trained=True)))

    @property
    def prompt(self) -> str:
        """All text before the last piece."""
        return "".join(piece.text for piece in self.pieces[:-1])

    @property
    def completion(self) -> str:
        """The last piece's text."""
        return self.pieces[-1].text


@dataclass(frozen=True)
class TextTemplate:
    """A format string with {instruction}, {input} and {system}; literal braces are {{ and }}.

    A line whose only fields are {input} or {system} is omitted if these are empty. A format without
    {input} puts the input after the instruction; one without {system} puts it in front.
    """

    name: str
    format: str
    format_without_input: str
    end: str  # the end token's text
    begin: str  # the begin token's text, for models that want one
    special_tokens: tuple[str, ...]

    def render(self, sample: Sample) -> Rendered:
        output = guard(sample.output, self.special_tokens)
        return Rendered.of(self.render_prompt(sample), output + self.end)

    def render_all(self, sample: Sample, train_on: str) -> tuple[Rendered, ...]:
        """Every sequence of a sample that is trained on."""
        return (self.render(sample),)

    def render_prompt(self, sample: Sample) -> str:
        parts = [self.begin]
        system = ""
        for turn in sample.context:
            if turn.role == "system":
                system = turn.text
            elif turn.role == "user":
                parts.append(self._fill(turn.text, turn.input, system))
                system = ""
            else:
                parts += [self._guard(turn.text), "\n"]
        return "".join(parts)

    def answer(self, generated: str) -> str:
        """The answer within a generated text: all of it."""
        return generated

    def to_json(self) -> dict[str, Any]:
        return {"kind": "text", **asdict(self)}

    def _fill(self, instruction: str, input: str, system: str) -> str:
        lines = _parsed(self.format if input else self.format_without_input)
        named = {field for line in lines for _, field in line}
        front = ""
        if system and "system" not in named:
            front = self._guard(system) + "\n\n"
        if input and "input" not in named:
            instruction = f"{instruction}\n\n{input}"
        values = {
            "instruction": self._guard(instruction),
            "input": self._guard(input),
            "system": self._guard(system),
        }
        filled: list[str] = []
        for line in lines:
            fields = [field for _, field in line if field]
            if fields and not any(values[field] for field in fields):
                continue
            filled.append(
                "".join(literal + (values[field] if field else "") for literal, field in line)
            )
        return front + "\n".join(filled)

    def _guard(self, text: str) -> str:
        return guard(text, self.special_tokens)


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own chat template (Jinja), rendered in a sandbox."""

    name: str
    chat_template: str
    end: str  # what the template writes after an answer, up to its first control token
    tail: str  # all that it writes after the last answer
    lead: str  # what it writes between the generation prompt and an answer
    named_tokens: dict[str, str]
    special_tokens: tuple[str, ...]
    date: str  # strftime_now always gives this day, so that training and use see the same prompt

    def render(self, sample: Sample) -> Rendered:
        """Render the prompt, and as the completion the rest of the whole conversation.

        The completion ends with the end token. If the template does not continue its own prompt, or
        rewrites the answer, the completion is the answer itself and the end token.
        """
        messages = self._messages(sample)
        prompt = self._render(messages, sample, add_generation_prompt=True)
        output = guard(sample.output, self.special_tokens)
        answered = [*messages, {"role": "assistant", "content": output}]
        whole = self._render(answered, sample, add_generation_prompt=False)
        if whole.startswith(prompt) and whole.endswith(self.tail):
            rest = whole[len(prompt) : len(whole) - len(self.tail)]
            if output in rest or _without_spaces(output) in _without_spaces(rest):
                return Rendered.of(prompt, rest + self.end)
        return Rendered.of(prompt, _closing_thought(prompt, output) + self.end)

    def render_all(self, sample: Sample, train_on: str) -> tuple[Rendered, ...]:
        """Every sequence of a sample that is trained on."""
        return (self.render(sample),)

    def render_prompt(self, sample: Sample) -> str:
        return self._render(self._messages(sample), sample, add_generation_prompt=True)

    def answer(self, generated: str) -> str:
        """The answer within a generated text, without thoughts and channel names."""
        lead = self.lead
        for token in self.special_tokens:
            lead = lead.replace(token, "")
        if lead:
            generated = generated.removeprefix(lead)
        return (
            generated.rpartition("</think>")[2].lstrip() if "</think>" in generated else generated
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": "chat", **asdict(self)}

    def _messages(self, sample: Sample) -> list[dict[str, str]]:
        return [
            {
                "role": turn.role,
                "content": guard(
                    f"{turn.text}\n\n{turn.input}" if turn.input else turn.text,
                    self.special_tokens,
                ),
            }
            for turn in sample.context
        ]

    def _render(
        self, messages: list[dict[str, str]], sample: Sample, *, add_generation_prompt: bool
    ) -> str:
        try:
            return _render_chat(
                self.chat_template,
                self.date,
                messages,
                self.named_tokens,
                add_generation_prompt=add_generation_prompt,
            )
        except UserError as error:
            raise UserError(f"{sample.source}: {error}") from None


PromptTemplate = TextTemplate | ChatTemplate


def choose_template(
    setting: str,
    tokenizer: "TextTokenizer",
    base_model: str,
    today: datetime.date | None = None,
) -> PromptTemplate:
    """The template that PROMPT_TEMPLATE selects for this model.

    Args:
        today: the date that the chat template sees; the current day if None.

    Raises:
        UserError: the setting is wrong, or the model has no chat template that works.
    """
    check_template_setting(setting)
    if setting == "auto":
        setting = "chat" if tokenizer.chat_template and _is_instruct(base_model) else "instruction"
    if setting == "chat":
        return _chat_template(tokenizer, base_model, today or datetime.date.today())
    name, with_input, without_input = {
        "instruction": ("instruction", INSTRUCTION_FORMAT, INSTRUCTION_FORMAT),
        "alpaca": ("alpaca", ALPACA_FORMAT, ALPACA_FORMAT_WITHOUT_INPUT),
    }.get(setting, ("own", setting, setting))
    return TextTemplate(
        name=name,
        format=with_input,
        format_without_input=without_input,
        end=tokenizer.eos_text,
        begin=tokenizer.begin_text,
        special_tokens=tuple(tokenizer.special_tokens),
    )


def template_from_json(value: object) -> PromptTemplate:
    """The template that `to_json` stored.

    Raises:
        UserError: the value is damaged; the sentence names the field.
    """
    if not isinstance(value, dict):
        raise _damaged(f"it is {kind_of_json(value)} instead of an object")
    stored = cast("dict[str, Any]", value)
    kind = stored.get("kind")
    if kind not in ("text", "chat"):
        raise _damaged(f'"kind" is {_shown(stored, "kind")}; it must be "text" or "chat"')
    template_class = TextTemplate if kind == "text" else ChatTemplate
    names = [field.name for field in dataclasses.fields(template_class)]
    for name in stored:
        if name not in (*names, "kind"):
            raise _damaged(f'"{one_line(name, 40)}" is not known to this version of Tinkersmith')
    for name in names:
        if not _has_its_type(name, stored.get(name)):
            wanted = _WANTED.get(name, "a string")
            raise _damaged(f'"{name}" is {_shown(stored, name)}; it must be {wanted}')
    fields: dict[str, Any] = {name: stored[name] for name in names}
    fields["special_tokens"] = tuple(fields["special_tokens"])
    if kind == "chat":
        _check_date(fields["date"])
    else:
        for name in ("format", "format_without_input"):
            _check_fields(fields[name])
    return template_class(**fields)


_WANTED = {
    "special_tokens": "a list of strings",
    "named_tokens": "an object of strings",
}


def _has_its_type(name: str, value: object) -> bool:
    if name == "special_tokens":
        items = cast("list[object]", value) if isinstance(value, list) else [None]
    elif name == "named_tokens":
        items = cast("dict[str, object]", value).values() if isinstance(value, dict) else [None]
    else:
        items = [value]
    return all(isinstance(item, str) for item in items)


def _check_date(date: str) -> None:
    try:
        datetime.datetime.fromisoformat(date)
    except ValueError:
        raise _damaged(f'"date" is {date[:40]!r}; it must be a day such as 2026-01-31') from None


def _shown(stored: dict[str, Any], name: str) -> str:
    if name not in stored:
        return "missing"
    value = stored[name]
    return f'"{one_line(value, 40)}"' if isinstance(value, str) else kind_of_json(value)


def _damaged(reason: str) -> UserError:
    return UserError(f"The stored prompt template cannot be read: {reason}.")


def check_template_setting(setting: str) -> None:
    """Raise UserError unless PROMPT_TEMPLATE is a known name or a valid format string."""
    if setting in TEMPLATE_NAMES:
        return
    if "{" not in setting:
        names = ", ".join(f'"{name}"' for name in TEMPLATE_NAMES)
        raise UserError(
            f'PROMPT_TEMPLATE is "{one_line(setting)}"; it must be one of {names}, or a format '
            "string with {instruction}."
        )
    if "instruction" not in _check_fields(setting):
        raise UserError("PROMPT_TEMPLATE has no {instruction}. Put it where the question belongs.")


def _check_fields(format_string: str) -> set[str]:
    """The names of a format's fields, all of which can be filled in."""
    fields = {field for line in _parsed(format_string) for _, field in line if field is not None}
    for field in sorted(fields):
        if field not in ("instruction", "input", "system"):
            raise UserError(
                f"PROMPT_TEMPLATE has the field {{{one_line(field)}}}; only {{instruction}}, "
                "{input} and {system} are filled in. Write literal braces twice: {{ and }}."
            )
    return fields


@lru_cache(maxsize=8)
def _parsed(format_string: str) -> tuple[tuple[tuple[str, str | None], ...], ...]:
    """The format's lines, each as (literal text, field after it)."""
    lines: list[tuple[tuple[str, str | None], ...]] = []
    for line in format_string.split("\n"):
        try:
            fields = list(Formatter().parse(line))
        except ValueError as error:
            raise UserError(
                f"PROMPT_TEMPLATE, in the line {one_line(line)!r}: {error}. Write literal braces "
                "twice: {{ and }}."
            ) from None
        for _, field, spec, conversion in fields:
            if spec or conversion:
                name = one_line(field or "")
                raise UserError(
                    f"PROMPT_TEMPLATE formats the field {{{name}}} with ':' or '!'; write only "
                    f"{{{name}}}."
                )
        lines.append(tuple((literal, field) for literal, field, _, _ in fields))
    return tuple(lines)


# Base models although their tokenizer has a chat template.
_BASE_MODEL = re.compile(
    r"(^|[-_. ])(base|pt)($|[-_. ])|^qwen(1\.5|2|2\.5)-[\d.]+b$", re.IGNORECASE
)


def _is_instruct(base_model: str) -> bool:
    from tinkersmith.bundled import BUNDLED_MODELS

    name = base_model.rstrip("/").rpartition("/")[2]
    return base_model not in BUNDLED_MODELS and not _BASE_MODEL.search(name)


def _chat_template(
    tokenizer: "TextTokenizer", base_model: str, today: datetime.date
) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise UserError(
            f'PROMPT_TEMPLATE is "chat", but {base_model} has no chat template. Use "instruction".'
        )
    source, date, named = tokenizer.chat_template, today.isoformat(), tokenizer.named_tokens
    # A probe shows what the template writes around an answer.
    question, answer = {"role": "user", "content": "qqq"}, {"role": "assistant", "content": "zzz"}
    try:
        prompt = _render_chat(source, date, [question], named, add_generation_prompt=True)
        whole = _render_chat(source, date, [question, answer], named, add_generation_prompt=False)
    except UserError as error:
        raise UserError(f"{base_model}: {error}") from None
    before, probe, tail = whole.rpartition("zzz")
    if not probe:
        raise UserError(
            f"The chat template of {base_model} omits answers. Set PROMPT_TEMPLATE to "
            '"instruction".'
        )
    ends = [tail.index(token) + len(token) for token in tokenizer.special_tokens if token in tail]
    return ChatTemplate(
        name="chat",
        chat_template=source,
        end=tail[: min(ends)] if ends else tokenizer.eos_text,
        tail=tail,
        lead=before.removeprefix(prompt) if before.startswith(prompt) else "",
        named_tokens=dict(named),
        special_tokens=tuple(tokenizer.special_tokens),
        date=date,
    )


def _closing_thought(prompt: str, output: str) -> str:
    """The answer to a prompt that has opened a thought: the thought is closed first."""
    if not prompt.rstrip().endswith("<think>"):
        return output
    if "</think>" in output:
        return output.lstrip().removeprefix("<think>").lstrip("\n")
    return f"\n</think>\n\n{output}"


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _render_chat(
    source: str,
    date: str,
    messages: list[dict[str, str]],
    named_tokens: dict[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    try:
        return _compiled(source, date).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **named_tokens,
        )
    except Exception as error:  # a program of somebody else: it can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the model's chat template fails: {reason}. Change the sample, or set PROMPT_TEMPLATE "
            'to "instruction".'
        ) from None


@lru_cache(maxsize=4)
def _compiled(source: str, date: str) -> Any:
    """The compiled template, with the functions that chat templates call."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders what {% generation %} encloses; the tag only marks the answer."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.datetime.fromisoformat(date).strftime(pattern)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment = cast("Any", sandbox)  # its filters and globals have no usable types
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)
