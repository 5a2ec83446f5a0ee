"""A record with a list of messages -> a `Sample`."""

import re
from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.columns import IN_MESSAGES, columns_text, value_in
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.data.shapes.fields import (
    both_names,
    field_value,
    finished_sample,
    is_filled_text,
    with_thought,
)
from tinkersmith.data.shapes.judged import check_judges
from tinkersmith.data.shapes.layout import Layout
from tinkersmith.data.shapes.messages import (
    is_messages,
    is_sharegpt,
    messages_of_pairs,
    tools_of,
    turns_of,
)
from tinkersmith.data.shapes.values import (
    Unusable,
    check_repeated,
    check_text,
    is_blank_text,
    json_value,
    kind_of,
)

# The tags of thoughts, as answers have them in their texts.
_THOUGHT_TAG = re.compile(r"<(seed:)?think(ing)?>|</think|begin_of_thought|\[THINK\]")


def conversation_sample(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    notes: list[str] = []
    name = layout.fields.get("messages", "messages")
    value = field_value(fields, name, notes)
    if isinstance(value, str) and (inside := json_value(value)) is not None:
        check_repeated(inside, f'"{name}"', name)
        value = inside
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else kind_of(value)
        if value is None and name not in fields:
            what = "missing"
        advice = f" To train on it as plain text, set {columns_text({'text': name})}."
        advice = advice if is_filled_text(value) else ""
        raise Unusable(name, f'"{name}" is {what}; it must be a list of messages.{advice}')
    if layout.judges:
        check_judges(fields, layout, notes)
    other = layout.otherwise
    if other is not None and other.kind == "messages":
        second = other.fields["messages"]
        if is_messages(fields.get(second)):
            raise Unusable(
                name,
                f'"{name}" and "{second}" both hold messages. Say which to train on: '
                f"{columns_text({'messages': name})}.",
                unclear=True,
            )
    system = (
        field_value(fields, layout.fields["system"], notes) if "system" in layout.fields else None
    )
    if system is not None:
        system = check_text(system, f'"{layout.fields["system"]}"', layout.fields["system"])
        system = "" if is_blank_text(system) else system
    messages = messages_of_pairs(cast("list[Any]", value))
    parts = {ours: layout.fields[ours] for ours in IN_MESSAGES if ours in layout.fields}
    turns, more = turns_of(messages, name, parts, system or "")
    if layout.thoughts or layout.like_thoughts:
        layout = with_thought(fields, layout, notes)
    if "thought" in layout.fields:
        thoughtful = _with_last_thought(turns, fields, layout.fields["thought"], notes)
        if thoughtful is None:  # the field stays with the others that are not used
            others = {ours: name for ours, name in layout.fields.items() if ours != "thought"}
            layout = replace(layout, fields=others)
        turns = thoughtful or turns
    if layout.unused and (other is None or other.kind == "pair"):
        notes.append(f"its messages were used, and not its {both_names(layout.unused)}")
    tools: tuple[dict[str, Any], ...] = ()
    if "tools" in layout.fields:
        tools = tools_of(value_in(fields, layout.fields["tools"]), layout.fields["tools"])
    if not layout.columns and is_sharegpt(messages):
        layout = replace(layout, shape="sharegpt")
    return finished_sample(fields, source, layout, turns, [*notes, *more], tools)


def calls_sample(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    """A question that is answered by calls of functions, which a field lists."""
    notes: list[str] = []
    names = layout.fields
    question, name = names["instruction"], names["output"]
    system_name = names.get("system", "")
    system = field_value(fields, system_name, notes) if system_name else None
    asked = field_value(fields, question, notes)
    text = check_text(asked, f'"{question}"', question, required=True)
    calls = field_value(fields, name, notes)
    if isinstance(calls, str):
        calls = json_value(calls)
    if not isinstance(calls, list) or not calls:
        raise Unusable(
            name,
            f'"{name}" must be a list of calls of functions, each with a "name" and "arguments", '
            'as XLAM\'s records have beside "query" and "tools". Fix it, or remove the record.',
        )
    turns, more = turns_of(
        [{"role": "user", "content": text}, {"role": "assistant", "tool_calls": calls}],
        name,
        system="" if system is None else check_text(system, f'"{system_name}"', system_name),
    )
    tools = tools_of(value_in(fields, names["tools"]), names["tools"])
    return finished_sample(fields, source, layout, turns, [*notes, *more], tools)


def _with_last_thought(
    turns: list[Turn], fields: dict[str, Any], name: str, notes: list[str]
) -> list[Turn] | None:
    """The turns with the thought that the record has beside them; None if the last has another."""
    value = field_value(fields, name, notes)
    thought = "" if value is None else check_text(value, f'"{name}"', name)
    last = turns[-1]
    if is_blank_text(thought) or last.thought.strip() == thought.strip():
        return turns
    if last.thought.strip() or _THOUGHT_TAG.search(last.text):
        notes.append(f'its "{name}" was not used: its last answer has a thought of its own')
        return None
    return [*turns[:-1], replace(last, thought=thought)]
