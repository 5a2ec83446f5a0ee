"""A record of any known shape -> a `Sample`, or the reason why it cannot be one."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from tinkersmith.data.columns import MISSING, NO_COLUMNS, value_in
from tinkersmith.data.samples import Sample, Skipped, Source, alpaca_sample, record_text
from tinkersmith.files import kind_of_json
from tinkersmith.sources.json_files import Repeated

_DEEPEST = 100  # levels of lists and objects in a record

SHAPES = {
    "alpaca": "Alpaca records",
    "messages": "OpenAI messages",
    "columns": "the fields of COLUMNS",
}


def check_record(
    record: Any, source: Source, columns: Mapping[str, str] = NO_COLUMNS
) -> Sample | Skipped:
    """One record as a sample, or the reason why it cannot be one.

    Args:
        columns: a value of COLUMNS.
    """

    def skip(name: str, reason: str) -> Skipped:
        return Skipped(source, name, reason, record_text(record))

    if not isinstance(record, dict):
        return skip(
            "",
            f"the record is {kind_of_json(record)}; it must be an object with instruction and "
            "output.",
        )
    fields = cast("dict[str, Any]", record)
    if isinstance(record, Repeated):
        return skip(record.name, f'"{record.name}" is there twice. Keep one, or remove the record.')
    if _too_deep(fields):
        return skip("", f"the record is nested more than {_DEEPEST} levels deep. Remove it.")
    if columns:
        named = {field: value_in(fields, name) for field, name in columns.items()}
        fields = {**fields, **{k: value for k, value in named.items() if value is not MISSING}}
    texts: dict[str, str] = {}
    for name in ("instruction", "input", "output", "system"):
        value = fields.get(name)
        required = name in ("instruction", "output")
        if value is None:
            if required:
                what = "null" if name in fields else "missing"
                return skip(name, f'"{name}" is {what}. {_shape_hint(fields)}')
            value = ""
        if not isinstance(value, str):
            return skip(name, f'"{name}" is {kind_of_json(value)}; it must be a string.')
        if required and not value.strip():
            return skip(name, f'"{name}" is empty. Fill it in, or remove the record.')
        texts[name] = value
    history = _history(fields.get("history"))
    if history is None:
        return skip(
            "history", '"history" must be a list of [question, answer] pairs, both strings.'
        )
    for name, value in [*texts.items(), *(("history", text) for turn in history for text in turn)]:
        if _has_lone_surrogate(value):
            return skip(name, f'"{name}" contains an unpaired surrogate (\\ud8xx). Fix the text.')
    known = (*texts, "history")
    return alpaca_sample(
        texts["instruction"],
        texts["input"],
        texts["output"],
        source,
        system=texts["system"],
        history=history,
        extra={name: value for name, value in fields.items() if name not in known},
        shape="columns" if columns else "alpaca",
    )


def _too_deep(fields: dict[str, Any]) -> bool:
    """Whether a field holds lists and objects nested deeper than files can be written with."""
    level: list[Any] = [value for value in fields.values() if isinstance(value, list | dict)]
    depth = 1
    while level and depth < _DEEPEST:
        level = [inner for value in level for inner in _inside(value)]
        depth += 1
    return bool(level)


def _inside(value: Any) -> list[Any]:
    """The lists and objects in a list or object."""
    items = cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, list | dict)]


def _shape_hint(record: dict[str, Any]) -> str:
    """Advice for records in another common shape."""
    for name in ("messages", "conversations", "conversation"):
        if isinstance(record.get(name), list):
            return (
                f'The record has chat "{name}"; write the question as "instruction" and the answer '
                'as "output" (earlier turns as "history").'
            )
    if "role" in record and "content" in record:
        return "The record is one chat message. Put question and answer into one record."
    for question, answer in (
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("query", "response"),
    ):
        if question in record and answer in record:
            return f'Rename "{question}" to "instruction" and "{answer}" to "output".'
    return "Add it, or remove the record."


def _history(value: Any) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return ()
    if not isinstance(value, list):
        return None
    turns: list[tuple[str, str]] = []
    for turn in cast("list[Any]", value):
        if not isinstance(turn, list | tuple):
            return None
        texts = [text for text in cast("Sequence[Any]", turn) if isinstance(text, str)]
        if len(texts) != 2 or len(cast("Sequence[Any]", turn)) != 2:
            return None
        turns.append((texts[0], texts[1]))
    return tuple(turns)


def _has_lone_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
