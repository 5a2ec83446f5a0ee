"""A run's prompt template -> a Jinja chat template for programs that serve the export."""

import json
from datetime import date
from pathlib import Path
from string import Formatter

from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.export.base_folder import read_model_json
from tinkersmith.text.templates import ChatTemplate, PromptTemplate, TextTemplate


def chat_template_of(template: PromptTemplate) -> str | None:
    """Jinja that renders a conversation as `template` does; None where Jinja cannot.

    A chat message has no separate input; it belongs into the question.
    """
    if isinstance(template, ChatTemplate):
        return template.chat_template
    source = _jinja(template)
    chat = ChatTemplate(
        name="check",
        chat_template=source,
        end="",
        tail="",
        lead="",
        named_tokens={},
        special_tokens=template.special_tokens,
        date=date.today().isoformat(),
    )
    same = all(chat.render(probe) == template.render(probe) for probe in _probes())
    return source if same else None


def write_chat_template(template: PromptTemplate, folder: Path) -> bool:
    """Make the tokenizer in `folder` use the run's template; False: it now has none.

    The base model's chat template is removed: prompts in a format that the model was not trained on
    would give worse answers, without any error.
    """
    source = chat_template_of(template)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        values = read_model_json(config)
        if values.pop("chat_template", None) is not None:
            text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
            config.write_text(text, encoding="utf-8")
    for file in folder.glob("chat_template*"):
        file.unlink()
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return source is not None


def _jinja(template: TextTemplate) -> str:
    """The chat template. All text is in expressions, so that no white space around tags counts."""
    question = _question(template.format_without_input)
    front = "" if "{system}" in template.format_without_input else _front()
    return (
        "{%- set state = namespace(system='') -%}"
        + _text(template.begin)
        + "{%- for message in messages -%}"
        + "{%- if message['role'] == 'system' -%}"
        + "{%- set state.system = message['content'] -%}"
        + "{%- elif message['role'] == 'user' -%}"
        + front
        + question
        + "{%- set state.system = '' -%}"
        + "{%- else -%}"
        + "{{- message['content'] -}}"
        + "{%- if loop.last -%}"
        + _text(template.end)
        + "{%- else -%}"
        + _text("\n")
        + "{%- endif -%}{%- endif -%}{%- endfor -%}"
    )


def _question(text: str) -> str:
    """Jinja for the lines of a format; like `TextTemplate`, it leaves out lines without content."""
    lines = [[part[:2] for part in Formatter().parse(line)] for line in text.split("\n")]
    fields = [{field for _, field in line if field} for line in lines]
    always = next(n for n, names in enumerate(fields) if not names or "instruction" in names)
    written: list[str] = []
    for number, line in enumerate(lines):
        if fields[number] == {"input"}:
            continue
        before = _text("\n") if number > always else ""
        after = _text("\n") if number < always else ""
        piece = before + "".join(_text(words) + _field(field) for words, field in line) + after
        if fields[number] and "instruction" not in fields[number]:
            piece = "{%- if state.system -%}" + piece + "{%- endif -%}"
        written.append(piece)
    return "".join(written)


def _field(field: str | None) -> str:
    known = {"instruction": "{{- message['content'] -}}", "system": "{{- state.system -}}"}
    return known.get(field or "", "")


def _front() -> str:
    return "{%- if state.system -%}{{- state.system -}}" + _text("\n\n") + "{%- endif -%}"


def _text(literal: str) -> str:
    return "{{- " + json.dumps(literal) + " -}}" if literal else ""


def _probes() -> list[Sample]:
    here, question, answer = Source("probe", 1), "How many?\n  Two lines", "Four.\n"
    return [
        alpaca_sample(question, "", answer, here),
        alpaca_sample("好吗？ {{ 'x' }} {% if %}", "", answer, here, "Be brief."),
        alpaca_sample(question, "", answer, here, history=(("one", "1"), ("two", " 2\n"))),
        alpaca_sample(question, "", answer, here, "S", (("one", "1"),)),
    ]
