"""A run's prompt template -> Ollama's Modelfile, whose template writes the same prompts.

Ollama's templates are Go's. They get the system texts, the user's and the model's messages. A
message with the role "input" is the input of the user's message that follows it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.errors import UserError
from tinkersmith.prompts.guards import unguarded
from tinkersmith.text.templates import ChatTemplate, PromptTemplate, TextTemplate

_SYSTEM, _USER, _INPUT, _ANSWER = "\ue010", "\ue011", "\ue012", "\ue013"  # of private use
_HERE = Source("probe", 1)
_REPLACED = {"instruction": "{{ $m.Content }}", "input": "{{ $input }}", "system": "{{ $system }}"}


def modelfile(
    file: str, template: PromptTemplate, stops: Sequence[str], parameters: Mapping[str, object]
) -> str:
    """The Modelfile of a GGUF file in the same folder.

    Without a template that Ollama can be given, prompts are passed on as they are written.
    """
    source = ollama_template(template)
    lines = [f"FROM ./{file}"]
    if source is None:
        lines.append("# Ollama's templates cannot write this model's prompt: send it whole.")
    lines.append(f'TEMPLATE """{source or "{{ .Prompt }}"}"""')
    lines += [f'PARAMETER stop "{_escaped(stop)}"' for stop in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def stops_of(template: PromptTemplate) -> list[str]:
    """The texts at which an answer of the model ends."""
    return [template.end.strip()] if template.end.strip() else []


def ollama_template(template: PromptTemplate) -> str | None:
    """Go's template for the prompts of `template`; None where it cannot be written."""
    if isinstance(template, TextTemplate):
        return _of_text_template(template)
    return _of_chat_template(template)


# ---- text templates


def _of_text_template(template: TextTemplate) -> str:
    with_input = _question(template, "input")
    question = _question(template, "")
    if with_input != question:
        question = _if("$input", with_input, question)
    pending = _if("$system", "{{ $system }}" + _text("\n\n") + '{{ $system = "" }}')
    return (
        '{{ $system := "" }}{{ $input := "" }}'
        + _text(template.begin)
        + "{{ range $i, $m := .Messages }}"
        + '{{ if eq $m.Role "system" }}{{ $system = $m.Content }}'
        + '{{ else if eq $m.Role "input" }}{{ $input = $m.Content }}'
        + '{{ else if eq $m.Role "user" }}'
        + question
        + '{{ $system = "" }}{{ $input = "" }}'
        + "{{ else }}"
        + pending
        + "{{ $m.Content }}"
        + _if("lt 1 (len (slice $.Messages $i))", _text(template.end + "\n"))
        + "{{ end }}{{ end }}"
    )


def _question(template: TextTemplate, filled: str) -> str:
    """Go's template for a message of the user: `filled` is "input" if there is one."""
    text = template.format if filled else template.format_without_input
    fields = {field for _, field, *_ in Formatter().parse(text)}
    written: list[str] = []
    lines = text.split("\n")
    always = 0  # the first line that is written in any case
    for number, line in enumerate(lines):
        names = _fields(line)
        if not names or names & {"instruction", filled}:
            always = number
            break
    for number, line in enumerate(lines):
        names = _fields(line)
        if names == {"input"} and not filled:
            continue
        piece = "".join(
            _text(literal) + (_REPLACED[field] if field else "")
            for literal, field, *_ in Formatter().parse(line)
        )
        piece = (_text("\n") if number > always else "") + piece
        piece += _text("\n") if number < always else ""
        if names and not names & {"instruction", filled}:
            piece = _if("$system", piece)
        written.append(piece)
    body = "".join(written)
    if filled and "input" not in fields:
        body = body.replace("{{ $m.Content }}", "{{ $m.Content }}" + _text("\n\n") + "{{ $input }}")
    front = "" if "system" in fields else _if("$system", "{{ $system }}" + _text("\n\n"))
    return front + body


def _fields(line: str) -> set[str]:
    return {field for _, field, *_ in Formatter().parse(line) if field}


# ---- chat templates


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What a chat template writes around messages."""

    begin: str  # before a first message of the user
    system: tuple[str, str]  # around a system text that comes first, with what begins the prompt
    user: tuple[str, str]
    answer: tuple[str, str]  # around an answer that others follow
    asked: str  # behind the last message, before the answer

    def write(self, turns: Sequence[Turn]) -> str:
        """The prompt of a conversation."""
        text = "" if turns[0].role == "system" else self.begin
        around = {"system": self.system, "user": self.user, "assistant": self.answer}
        for turn in turns:
            before, after = around[turn.role]
            text += before + turn.text + after
        return text + self.asked


def _of_chat_template(template: ChatTemplate) -> str | None:
    pieces = _learn(template)
    if pieces is None:
        return None
    around = {role: _around(pieces, role) for role in ("user", "assistant")}
    with_input = around["user"].replace(
        "{{ $m.Content }}", "{{ $m.Content }}" + _text("\n\n") + "{{ $input }}"
    )
    system = _text(pieces.system[0]) + "{{ .System }}" + _text(pieces.system[1])
    return (
        '{{ $input := "" }}'
        + _if(".System", system, _text(pieces.begin))
        + "{{ range $i, $m := .Messages }}"
        + '{{ if eq $m.Role "input" }}{{ $input = $m.Content }}'
        + '{{ else if eq $m.Role "user" }}'
        + _if("$input", with_input, around["user"])
        + '{{ $input = "" }}'
        + '{{ else if eq $m.Role "assistant" }}'
        + around["assistant"]
        + "{{ end }}{{ end }}"
        + _text(pieces.asked)
    )


def _around(pieces: _Pieces, role: str) -> str:
    before, after = pieces.user if role == "user" else pieces.answer
    return _text(before) + "{{ $m.Content }}" + _text(after)


def _learn(template: ChatTemplate) -> _Pieces | None:
    """What the template writes around messages, if it is the same for every conversation."""
    system, user, answer = Turn("system", _SYSTEM), Turn("user", _USER), Turn("assistant", _ANSWER)
    try:
        one = _prompt(template, [user])
        two = _prompt(template, [user, answer, user])
        told = _prompt(template, [system, user])
    except UserError:
        return None
    match = re.fullmatch(f"(?s)(.*?){_USER}(.*){_ANSWER}(.*){_USER}(.*)", two)
    start = re.fullmatch(f"(?s)(.*?){_SYSTEM}(.*){_USER}(.*)", told)
    if match is None or start is None or not one.endswith(match[4]):
        return None
    first, between, after_answer, last = match.groups()
    # Behind a message of the user stands its own end, then what begins an answer.
    for cut in range(len(between) + 1):
        end, before_answer = between[:cut], between[cut:]
        if not last.startswith(end):
            break
        asked = last[cut:]
        if not asked.startswith(before_answer):
            continue
        for begin in (first[:n] for n in range(len(first) + 1)):
            before_user = first[len(begin) :]
            if not after_answer.endswith(before_user) or not start[2].endswith(before_user):
                continue
            pieces = _Pieces(
                begin,
                (start[1], start[2][: len(start[2]) - len(before_user)]),
                (before_user, end),
                (before_answer, after_answer[: len(after_answer) - len(before_user)]),
                asked,
            )
            if _all_alike(pieces, template):
                return pieces
    return None


def _all_alike(pieces: _Pieces, template: ChatTemplate) -> bool:
    """Whether the pieces write other conversations as the template does."""
    told, asked, said = (
        Turn("system", "Be brief."),
        Turn("user", "How?\n 1"),
        Turn("assistant", "4"),
    )
    conversations = (
        [asked],
        [told, asked],
        [told, asked, said, asked],
        [asked, said, asked, Turn("assistant", "two\nlines"), asked],
    )
    try:
        return all(pieces.write(turns) == _prompt(template, turns) for turns in conversations)
    except UserError:
        return False


def _prompt(template: PromptTemplate, turns: Sequence[Turn]) -> str:
    sample = Sample((*turns, Turn("assistant", "x")), _HERE)
    return unguarded(template.render_prompt(sample))


# ---- Go's syntax


def _if(condition: str, then: str, otherwise: str = "") -> str:
    other = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{then}{other}{{{{ end }}}}"


def _text(literal: str) -> str:
    """A literal text: as it is where nothing in it means something to Go or to the Modelfile."""
    if not re.search(r'[{}"\r]', literal):
        return literal
    escaped = literal.replace("\\", "\\\\").replace('"', "\\x22")
    escaped = escaped.replace("\n", "\\n").replace("\r", "\\r")
    return f'{{{{ "{escaped}" }}}}'


def _escaped(stop: str) -> str:
    return stop.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
