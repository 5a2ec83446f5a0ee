"""Parts of a record that all shapes have: values, names that are missing, and what is left over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.columns import IN_MESSAGES, MISSING, ROLE_COLUMNS, columns_text, value_in
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.data.shapes.layout import MEDIA, Layout
from tinkersmith.data.shapes.values import Unusable, is_blank_text, is_missing, is_number, kind_of
from tinkersmith.files import kind_of_json
from tinkersmith.sources.json_files import Repeated

NAN_NOTE = 'its "{}" is NaN, which counts as missing'


def field_value(fields: dict[str, Any], name: str, notes: list[str]) -> Any:
    """The value of a field; None if it is missing."""
    value = fields.get(name)
    if value is None and "." in name:
        value = value_in(fields, name)
        value = None if value is MISSING else value
    if is_missing(value):
        if value is not None:
            notes.append(NAN_NOTE.format(name))
        return None
    return value


def missing_reason(fields: dict[str, Any], layout: Layout, ours: str) -> str:
    name = layout.fields.get(ours, ours)
    given = value_in(fields, name)
    if given is not MISSING:
        what = "null" if given is None else kind_of(given)
        return f'"{name}" is {what}. Fill it in, or remove the record.'
    if layout.columns:
        where = "" if name == ours else f', which COLUMNS names for "{ours}",'
        return f'"{name}"{where} is missing. Add it, or remove the record.'
    if ours == "output" and isinstance(fields.get("answer"), str):
        return (
            '"output" is missing. Add it; or, if "answer" is what the model should write, set '
            f"{columns_text({'output': 'answer'})}."
        )
    return f'"{name}" is missing. Add it, or remove the record.'


def is_filled_text(value: Any) -> bool:
    return isinstance(value, str) and not is_blank_text(value)


def with_thought(fields: dict[str, Any], layout: Layout, notes: list[str]) -> Layout:
    """The layout with the field that holds the thought; a note, if one only looks like it."""
    filled = [name for name in layout.thoughts if is_filled_text(fields.get(name))]
    if filled:
        for other in filled[1:]:
            if fields[other] != fields[filled[0]]:
                raise Unusable(
                    other, f'"{filled[0]}" and "{other}" both hold a thought. Keep one of them.'
                )
        return replace(layout, fields={**layout.fields, "thought": filled[0]})
    for name in (*layout.thoughts, *layout.like_thoughts):
        value = fields.get(name)
        path = f"{name}.0" if isinstance(value, list) else name
        if is_filled_text(value_in(fields, path)):
            what = "its first item" if path != name else "it"
            advice = columns_text({"thought": path})
            notes.append(f'its field "{name}" was not used; {advice} reads {what} as a thought')
            break
    return layout


_USED: Mapping[str, frozenset[str]] = {
    "pair": frozenset(("instruction", "input", "output", "history", "thought", "system", "answer")),
    "messages": frozenset(
        ("messages", "role", "content", "tools", "system", "answer", "thought", *ROLE_COLUMNS)
    ),
    "calls": frozenset(("instruction", "output", "tools", "system", "answer")),
    "text": frozenset(("text", "answer")),
}


def finished_sample(
    fields: dict[str, Any],
    source: Source,
    layout: Layout,
    turns: Sequence[Turn],
    notes: list[str],
    tools: tuple[dict[str, Any], ...] = (),
) -> Sample:
    used = {name for ours, name in layout.fields.items() if ours not in IN_MESSAGES}
    extra = {name: value for name, value in fields.items() if name not in used}
    if layout.columns:
        for ours, name in layout.fields.items():
            if ours not in _USED[layout.kind]:
                raise Unusable(
                    "",
                    f'COLUMNS["{ours}"] has no effect on this record, which is '
                    f"{'no conversation' if ours != 'thought' else 'plain text'}. "
                    "Remove that entry.",
                )
            if ours == "answer":
                value = value_in(fields, name)
                if value is not MISSING:
                    extra["answer"] = value
    if not layout.columns:
        _check_media(extra)
    if "answer" in extra:
        _check_answer(extra, notes)
    if isinstance(fields, Repeated):
        notes += [f'its "{name}" is there twice; the last one counts' for name in fields.names]
    return Sample(tuple(turns), source, layout.shape, tools, extra, once_each(notes))


def _check_media(extra: dict[str, Any]) -> None:
    """Refuse a record with an image, a video or a sound, or with the name of its file."""
    for name, value in extra.items():
        if name.strip().lower() not in MEDIA:
            continue
        if (isinstance(value, list | dict) and value) or is_filled_text(value):
            raise Unusable(
                name,
                f'the record has "{name}"; Tinkersmith trains on text only. Remove the record.',
            )


def _check_answer(extra: dict[str, Any], notes: list[str]) -> None:
    """Leave out an `answer` that the evaluation cannot use."""
    value = extra["answer"]
    if is_missing(value):
        if value is not None:
            notes.append(NAN_NOTE.format("answer"))
            del extra["answer"]
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        unused: list[Any] = [item for item in items if is_missing(item) or isinstance(item, dict)]
        if not items:
            notes.append('its "answer" is an empty list, which counts as missing')
        elif unused:
            notes.append(
                f'its "answer" is a list, in which {kind_of(unused[0])} is not used: the '
                "evaluation takes acceptable answers, each a string, a number, true or false"
            )
    elif not isinstance(value, str | bool) and not is_number(value):
        notes.append(
            f'its "answer" is {kind_of_json(value)} and is not used: the evaluation takes a '
            "string, a number, true, false, or a list of them"
        )


def once_each(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes)) if notes else ()


def both_names(names: Any) -> str:
    return " and ".join(f'"{name}"' for name in names)
