"""A record with a list of messages -> a `Sample`."""

from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.columns import columns_text, value_in
from tinkersmith.data.samples import Sample, Source
from tinkersmith.data.shapes.fields import both_names, field_value, finished_sample
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
        raise Unusable(name, f'"{name}" is {what}; it must be a list of messages.')
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
    parts = {ours: layout.fields[ours] for ours in ("role", "content") if ours in layout.fields}
    turns, more = turns_of(messages, name, parts, system or "")
    if layout.unused and (other is None or other.kind == "pair"):
        notes.append(f"its messages were used, and not its {both_names(layout.unused)}")
    tools: tuple[dict[str, Any], ...] = ()
    if "tools" in layout.fields:
        tools = tools_of(value_in(fields, layout.fields["tools"]), layout.fields["tools"])
    if not layout.columns and is_sharegpt(messages):
        layout = replace(layout, shape="sharegpt")
    return finished_sample(fields, source, layout, turns, [*notes, *more], tools)
