"""What an answer must look like -> a grammar in the language of the library llguidance.

Only text is made here. To llguidance a control token, such as <think>, is never text: where an
answer needs one, the grammar names its id.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, prod
from typing import Any, cast

from tinkersmith.engine.errors import Refused
from tinkersmith.prompts.probes import WrittenCalls

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
_OPTIONS = "x-guidance"  # where llguidance finds options within a schema
# Before and after a value: JSON on one line. Many a model would go on with spaces for ever.
_SPACES = r"\x20?"
_REMAINDERS = 100_000  # of all numbers of multipleOf in a schema; they take a second
_GAP = r"gap: /[\x20\n]{0,4}/"
# The formats of strings that JSON Schema defines (2020-12, Validation, section 7.3). Any other
# name says nothing about the text: pydantic writes "path", "password" and "binary".
_FORMATS = frozenset(
    {
        *("date-time", "date", "time", "duration", "email", "idn-email"),
        *("hostname", "idn-hostname", "ipv4", "ipv6", "uri", "uri-reference"),
        *("iri", "iri-reference", "uri-template", "uuid"),
        *("json-pointer", "relative-json-pointer", "regex"),
    }
)
# Of a schema: what holds schemas by names of its own, and what is a value and not a schema.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("const", "enum", "default", "examples")


@dataclass(frozen=True, slots=True)
class ThoughtForm:
    """The tags of a template's thoughts, and what it writes before an answer without one."""

    opening: str
    closing: str
    lead: str
    begins_inside: bool  # whether the prompt has opened a thought


@dataclass(frozen=True, slots=True)
class CallRules:
    """Which functions an answer may call, and how its template writes that."""

    form: WrittenCalls
    opening: str  # the tag by which calls are told apart from words; "": they begin with { or [
    parameters: Mapping[str, Mapping[str, Any]]  # the JSON schema of each function's arguments
    forced: bool  # whether the answer is a call, without words
    several: bool  # whether it may call more than once


def json_grammar(
    schema: Mapping[str, Any], thought: ThoughtForm | None, marks: Mapping[str, int]
) -> str:
    """Answers that are JSON of a schema.

    Args:
        thought: the form of a thought that comes before, where the answer may have one.
        marks: the ids of the vocabulary's control tokens.

    Raises:
        Refused: llguidance must not be given this schema.
    """
    rules = [f"answer: {_json_rule(schema)}", _GAP]
    return "\n".join([*_start(thought, marks, "gap answer", "answer"), *rules])


def call_grammar(calls: CallRules, thought: ThoughtForm | None, marks: Mapping[str, int]) -> str:
    """Answers that call functions, or that may do so after some words.

    Raises:
        Refused: llguidance must not be given the parameters of a function.
    """
    form, rules = calls.form, list[str]()
    several = calls.several and form.following is not None
    names: list[str] = []
    for number, (name, schema) in enumerate(calls.parameters.items()):
        kind = schema.get("type", "object")
        if kind != "object":
            raise Refused(
                f"the parameters of {name!r} have the type {json.dumps(kind)[:100]}; "
                'it must be "object".'
            )
        names.append(f"call{number}")
        written = json.dumps(name, ensure_ascii=False)[1:-1] + form.middle
        rules += [
            f"call{number}: {_literal(written, marks)} arguments{number}",
            f"arguments{number}: {_json_rule({**schema, 'type': 'object'})}",
        ]
    rules.append(f"call: {' | '.join(names)}")
    more = f"({_literal(form.following or '', marks)} call)* " if several else ""
    rules.append(f"calls: call {more}{_literal(form.last, marks)}")
    if calls.forced:
        forced = f"{_literal(form.first, marks)} calls"
        return "\n".join([*_start(thought, marks, f"gap {forced}", forced), *rules, _GAP])
    start = _start(thought, marks, "answer", "answer")
    return "\n".join([*start, *_words_or_calls(calls, thought, marks), *rules])


def _words_or_calls(
    calls: CallRules, thought: ThoughtForm | None, marks: Mapping[str, int]
) -> list[str]:
    """Any words, and calls after them. The two never begin alike: llguidance reads no such text."""
    first, opening = calls.form.first, calls.opening
    # What begins like a thought is one.
    tags = () if thought is None else (thought.opening,)
    starts = "".join(rf" & ~/[\x20\n]*{_pattern(tag)}(.|\n)*/" for tag in tags if tag)
    if not opening:
        return [
            f"answer: WORDS? | gap {_literal(first, marks)} calls",
            rf"WORDS: /[\x20\n]*[^\x20\n{{\[](.|\n)*/{starts}",
            _GAP,
        ]
    words = rf"WORDS: /(.|\n)+/ & ~/(.|\n)*{_pattern(opening)}(.|\n)*/{starts}"
    before, _, after = first.partition(opening)
    rest = _literal(after, marks)
    if opening in marks:
        return [f"answer: WORDS? ({_literal(opening, marks)} {rest} calls)?", words]
    assert not before.strip()
    body = rf"before[suffix={_quoted(opening)}]: /(.|\n)*/{starts}"
    return [f"answer: WORDS? | before {rest} calls", words, body]


def _start(
    thought: ThoughtForm | None, marks: Mapping[str, int], after: str, direct: str
) -> list[str]:
    """The first rules: an answer, with the thought that comes before it or may do so.

    Args:
        after: the answer behind a thought.
        direct: the answer without one.
    """
    if thought is None:
        return [f"start: {direct}"]
    inside, body = _up_to(thought.closing, marks)
    if thought.begins_inside:
        return [f"start: {inside} {after}", body]
    lead = _literal(thought.lead.strip(), marks)
    begun = f"{_literal(thought.opening, marks)} {inside} {after}"
    return [f"start: {begun} | {lead} {direct}", body]


def _up_to(closing: str, marks: Mapping[str, int]) -> tuple[str, str]:
    """Any text up to a tag, and the tag: how a rule names it, and what it needs."""
    if not any(mark in closing for mark in marks):
        return "inside", rf"inside[suffix={_quoted(closing)}]: /(.|\n)*/"
    # Letter by letter the tag would end the thought as well, for those who read the text.
    body = rf"INSIDE: /(.|\n)+/ & ~/(.|\n)*{_pattern(closing)}(.|\n)*/"
    return f"INSIDE? {_literal(closing, marks)}", body


def _literal(text: str, marks: Mapping[str, int]) -> str:
    """A rule for exactly this text."""
    if not marks:
        return _quoted(text) if text else ""
    longest_first = sorted(marks, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return " ".join(
        f"<[{marks[part]}]>" if number % 2 else _quoted(part)
        for number, part in enumerate(parts)
        if part
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(text: str) -> str:
    """A regular expression for exactly this text."""
    escaped = re.sub(r"([\\.+*?()|\[\]{}^$/&~#-])", r"\\\1", text)
    return escaped.replace("\n", r"\n").replace(" ", r"\x20")


def _json_rule(schema: Mapping[str, Any]) -> str:
    if _OPTIONS in schema:
        raise Refused(f"{_OPTIONS} cannot be chosen here; leave it out.")
    try:
        known = _without_other_formats(schema)
        written = json.dumps({**known, _OPTIONS: {"whitespace_pattern": _SPACES}})
        _check_multiples(schema)
    except RecursionError:
        raise Refused("the schema is nested too deeply.") from None
    return f"%json {written}"


def _without_other_formats(schema: Any) -> Any:
    """A schema without the formats that JSON Schema does not define: llguidance refuses them."""
    if isinstance(schema, list):
        return [_without_other_formats(one) for one in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, value in cast("Mapping[str, Any]", schema).items():
        if name in _NAMED and isinstance(value, Mapping):
            named = cast("Mapping[str, Any]", value)
            kept[name] = {key: _without_other_formats(one) for key, one in named.items()}
        elif name != "format" or not isinstance(value, str) or value in _FORMATS:
            kept[name] = value if name in _VALUES else _without_other_formats(value)
    return kept


def _check_multiples(schema: Mapping[str, Any]) -> None:
    """Refuse large numbers of `multipleOf`: llguidance takes 10 us for each remainder."""
    remainders = 0
    for number in _multiples(schema):
        odd = int("".join(map(str, number.normalize().as_tuple().digits)))
        # The last digits alone tell whether 2 and 5 divide a number.
        while odd and not (odd % 2 and odd % 5):
            odd //= 2 if odd % 2 == 0 else 5
        remainders += odd
    if remainders > _REMAINDERS:
        raise Refused(
            f"the numbers of multipleOf add up to {remainders:,}; at most {_REMAINDERS:,} can be "
            "followed. Use smaller ones."
        )


def _multiples(value: Any) -> Iterator[Decimal]:
    """All numbers of `multipleOf`. Those of one `allOf` hold together, so they are multiplied."""
    if isinstance(value, Mapping):
        for name, inner in cast("Mapping[str, Any]", value).items():
            if name == "multipleOf" and _is_number(inner):
                yield Decimal(str(inner))
            elif name == "allOf":
                together = list(_multiples(inner))
                yield from together
                if len(together) > 1:
                    yield prod(together, start=Decimal(1))
            else:
                yield from _multiples(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _multiples(inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
