"""A run's prompt template -> a Jinja chat template for programs that serve the model."""

import datetime as dt
import json
from string import Formatter
from typing import Any

from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.prompts.sandbox import render_chat
from tinkersmith.text.templates import ChatTemplate, PromptTemplate, TextTemplate

_INPUT = "message['input']"  # in a chat template
# Servers of other projects drop what they do not know of a message. They pass on variables of the
# request's chat_template_kwargs, so an input can also come as one, for the last message.
_GIVEN_INPUT = f"({_INPUT} or (input if input is defined and loop.last else ''))"


def chat_template_of(template: PromptTemplate) -> str | None:
    """Jinja that renders a conversation as `template` does; None where Jinja cannot.

    A message of the user may have an `input` beside its content, where the template has a place
    for one; elsewhere it belongs into the content. The last one's can be the variable `input`.
    """
    if isinstance(template, ChatTemplate):
        return _asking_as_in_training(template)
    source = _jinja(template)
    return source if all(_write_the_same(source, template, probe) for probe in _probes()) else None


def takes_input(chat_template: str) -> bool:
    """Whether the Jinja writes the `input` of a message."""
    return _INPUT in chat_template


def _asking_as_in_training(template: ChatTemplate) -> str | None:
    """The model's chat template, which asks for thoughts or for none as the run did."""
    form, source = template.form, template.chat_template
    if template.thinks is not None and form.switch:
        value = json.dumps(template.thinks)
        # The empty expression keeps the line break that Jinja would drop after a block.
        source = (
            f"{{%- if {form.switch} is not defined -%}}{{%- set {form.switch} = {value} -%}}"
            f"{{%- endif %}}{{{{ '' }}}}{source}"
        )
    elif template.thinks is False and form.no_thought:
        # Jinja drops the last line break of a file, and only that one.
        source = source.removesuffix("\n") + (
            f"{{{{ {json.dumps(form.no_thought)} if add_generation_prompt else '' }}}}"
        )
    probes = _probes()[:1]
    return source if all(_write_the_same(source, template, probe) for probe in probes) else None


def _write_the_same(source: str, template: PromptTemplate, probe: Sample) -> bool:
    """Whether the Jinja writes the prompt of a sample as the template does."""
    named, date = {}, dt.date.today().isoformat()
    if isinstance(template, ChatTemplate):
        named, date = template.named_tokens, template.date
    messages: list[dict[str, Any]] = []
    for turn in probe.context:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.input:
            if not takes_input(source):
                return True  # such messages are refused
            message["input"] = turn.input
        if turn.tool_name:
            message["name"] = turn.tool_name
        if turn.tool_calls:
            message["tool_calls"] = list(turn.tool_calls)
        messages.append(message)
    try:
        written = render_chat(
            source,
            date,
            messages,
            named,
            tools=list(probe.tools) or None,
            add_generation_prompt=True,
        )
    except UserError:
        return False
    return written == template.render_prompt(probe)


def _jinja(template: TextTemplate) -> str:
    """The chat template. All text is in expressions, so that no white space around tags counts."""
    question = _asked(template.format_without_input)
    if "{input}" in template.format:
        with_input = _asked(template.format, "input")
        question = f"{{%- if {_GIVEN_INPUT} -%}}{with_input}{{%- else -%}}{question}{{%- endif -%}}"
    return (
        "{%- set state = namespace(system='') -%}"
        + _text(template.begin)
        + _tools()
        + "{%- for message in messages -%}"
        + "{%- if message['role'] == 'system' -%}"
        + "{%- if state.system -%}"
        + "{%- set state.system = state.system + "
        + json.dumps("\n\n")
        + " + message['content'] -%}"
        + "{%- else -%}{%- set state.system = message['content'] -%}{%- endif -%}"
        + "{%- elif message['role'] == 'user' -%}"
        + question
        + "{%- set state.system = '' -%}"
        + "{%- elif message['role'] == 'tool' -%}"
        + _pending_system()
        + _text("Result")
        + "{%- if message['name'] -%}"
        + _text(" of ")
        + "{{- message['name'] -}}{%- endif -%}"
        + _text(":\n")
        + "{{- message['content'] -}}"
        + _text("\n")
        + "{%- else -%}"
        + _pending_system()
        + "{{- message['content'] or '' -}}"
        + "{%- for call in message['tool_calls'] or [] -%}"
        + "{%- if message['content'] or not loop.first -%}"
        + _text("\n")
        + "{%- endif -%}"
        + "{%- set call = call['function'] or call -%}"
        + _text("Call ")
        + "{{- call['name'] -}}"
        + _text(" with ")
        + "{{- call['arguments'] if call['arguments'] is string else call['arguments'] | tojson -}}"
        + "{%- endfor -%}"
        + _text(template.end)
        + "{%- if not loop.last or add_generation_prompt -%}"
        + _text("\n")
        + "{%- endif -%}{%- endif -%}{%- endfor -%}"
        + _pending_system()
    )


def _tools() -> str:
    """Jinja for the functions that can be called."""
    return (
        "{%- if tools -%}"
        + _text("You can call these functions:\n")
        + "{%- for tool in tools -%}{{- tool | tojson -}}"
        + _text("\n")
        + "{%- endfor -%}{%- endif -%}"
    )


def _pending_system() -> str:
    """Jinja for a system text that no question follows."""
    return _front() + "{%- set state.system = '' -%}"


def _asked(text: str, *more: str) -> str:
    """Jinja for a format, with the system text in front where the format has no place for it."""
    return ("" if "{system}" in text else _front()) + _question(text, {"instruction", *more})


def _question(text: str, filled: set[str]) -> str:
    """Jinja for the lines of a format; like `TextTemplate`, it leaves out lines without content.

    Args:
        filled: the fields that have content.
    """
    lines = [[part[:2] for part in Formatter().parse(line)] for line in text.split("\n")]
    fields = [{field for _, field in line if field} for line in lines]
    always = next(n for n, names in enumerate(fields) if not names or names & filled)
    written: list[str] = []
    for number, line in enumerate(lines):
        if fields[number] == {"input"} and "input" not in filled:
            continue
        before = _text("\n") if number > always else ""
        after = _text("\n") if number < always else ""
        piece = before + "".join(_text(words) + _field(field) for words, field in line) + after
        if fields[number] and not fields[number] & filled:
            piece = "{%- if state.system -%}" + piece + "{%- endif -%}"
        written.append(piece)
    return "".join(written)


def _field(field: str | None) -> str:
    known = {"instruction": "{{- message['content'] -}}", "system": "{{- state.system -}}"}
    known["input"] = f"{{{{- {_GIVEN_INPUT} -}}}}"
    return known.get(field or "", "")


def _front() -> str:
    return "{%- if state.system -%}{{- state.system -}}" + _text("\n\n") + "{%- endif -%}"


def _text(literal: str) -> str:
    return "{{- " + json.dumps(literal) + " -}}" if literal else ""


def _probes() -> list[Sample]:
    here, question, answer = Source("probe", 1), "How many?\n  Two lines", "Four.\n"
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "中"}}}
    asked = Turn("user", question)
    called = (asked, Turn("assistant", "", tool_calls=(call,)), Turn("tool", "4", tool_name="add"))
    return [
        alpaca_sample(question, "", answer, here),
        alpaca_sample(question, "3 + 4\n", answer, here),
        alpaca_sample(question, "{{ 'x' }}", answer, here, "Be brief.", (("one", "1"),)),
        alpaca_sample("好吗？ {{ 'x' }} {% if %}", "", answer, here, "Be brief."),
        alpaca_sample(question, "", answer, here, history=(("one", "1"), ("two", " 2\n"))),
        alpaca_sample(question, "", answer, here, "S", (("one", "1"),)),
        Sample((*called, Turn("assistant", answer)), here, tools=(call,)),
        Sample((Turn("system", "S"), Turn("system", "T"), *called, asked, asked), here),
        Sample((Turn("system", "S"), Turn("assistant", "Hello"), asked, asked), here),
    ]
