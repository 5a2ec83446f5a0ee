"""A record of any known shape -> a `Sample`, or the reason why it cannot be one.

This module decides how a record is read. A module for each family of shapes reads it: `pairs`,
`conversations` and `plain_text`. `judged` and `refusals` say why others are not trained on.
"""

from collections.abc import Mapping
from typing import Any, cast

from tinkersmith.data.columns import IN_MESSAGES, NO_COLUMNS
from tinkersmith.data.samples import Sample, Skipped, Source, Turn, record_text
from tinkersmith.data.shapes.conversations import calls_sample, conversation_sample
from tinkersmith.data.shapes.fields import once_each
from tinkersmith.data.shapes.layout import Layout, layout_of, layout_with
from tinkersmith.data.shapes.messages import is_messages, turns_of
from tinkersmith.data.shapes.pairs import pair_of_texts, pair_sample
from tinkersmith.data.shapes.plain_text import plain_text_sample
from tinkersmith.data.shapes.refusals import refusal
from tinkersmith.data.shapes.values import DEEPEST, Unusable, check_text, is_too_deep, json_value
from tinkersmith.errors import one_line
from tinkersmith.files import kind_of_json
from tinkersmith.sources.json_files import Repeated
from tinkersmith.sources.tables import BadRow


def check_record(
    record: Any, source: Source, columns: Mapping[str, str] = NO_COLUMNS
) -> Sample | Skipped:
    """One record as a sample, or the reason why it cannot be one.

    Args:
        columns: a value of COLUMNS.
    """
    try:
        if is_too_deep(record) if isinstance(record, dict | list) else False:
            raise Unusable("", f"the record is nested more than {DEEPEST} levels deep. Remove it.")
        return _sample(record, source, columns)
    except Unusable as problem:
        reason = one_line(problem.reason, 1000)  # names of fields can hold anything
        return Skipped(source, problem.field, reason, record_text(record), problem.unclear)


def _sample(record: Any, source: Source, columns: Mapping[str, str]) -> Sample:
    if isinstance(record, BadRow):
        raise Unusable("", record.reason)
    if isinstance(record, str) and not columns:
        text = check_text(record, "the record", "", required=True)
        return Sample((Turn("text", text),), source, "text")
    if is_messages(record) and not (set(columns) - {"messages", *IN_MESSAGES}):
        turns, notes = turns_of(record, "messages", columns)
        return Sample(tuple(turns), source, "message_list", notes=once_each(notes))
    if not isinstance(record, dict):
        raise Unusable(
            "",
            f"the record is {kind_of_json(record)}; it must be an object with instruction and "
            "output, or with messages.",
        )
    fields = cast("dict[str, Any]", record)
    if "row_idx" in fields and isinstance(fields.get("row"), dict):
        fields = _exported_row(fields)
    layout = _layout(fields, columns)
    if isinstance(fields, Repeated):
        _check_names(fields, layout)
    if layout.texts is not None:
        sample = pair_of_texts(fields, source, layout.shape, *layout.texts)
        if sample is not None:
            return sample
    if layout.kind == "messages":
        return conversation_sample(fields, source, layout)
    if layout.kind == "calls":
        return calls_sample(fields, source, layout)
    if layout.kind == "pair":
        return pair_sample(fields, source, layout)
    if layout.kind == "text":
        return plain_text_sample(fields, source, layout)
    raise refusal(fields, layout)


def _exported_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The record inside a row that a data set's viewer exported."""
    cut = fields.get("truncated_cells")
    if isinstance(cut, list) and cut:
        name = cast("list[Any]", cut)[0]
        raise Unusable(
            "row",
            f'the data set\'s viewer cut "{name}" short in its export. Download the data set '
            "itself, or remove the record.",
        )
    return fields["row"]


def _layout(fields: dict[str, Any], columns: Mapping[str, str]) -> Layout:
    names = tuple(fields)
    if columns:
        layout = layout_with(names, columns)
        return layout if layout.kind != "refused" else _layout_of_values(fields, columns)
    if "instruction" in fields and "output" in fields:
        layout = layout_of(names)
        if layout.kind != "refused":
            return layout
    return _layout_of_values(fields, columns)


def _layout_of_values(fields: dict[str, Any], columns: Mapping[str, str]) -> Layout:
    """The layout of the fields that hold something; tables have all fields in every record."""

    def layout_for(names: tuple[str, ...]) -> Layout:
        return layout_with(names, columns) if columns else layout_of(names)

    layout = layout_for(tuple([name for name, value in fields.items() if value is not None]))
    if layout.kind == "refused" and None in fields.values():
        whole = layout_for(tuple(fields))
        says_more = whole.kind != "refused" or whole.shape in ("tree", "tree_row")
        layout = whole if says_more else layout
    while layout.kind == "messages" and layout.otherwise is not None:
        value = fields.get(layout.fields["messages"])
        if isinstance(value, list) or (isinstance(value, str) and is_messages(json_value(value))):
            break
        if layout.otherwise.kind == "refused" and layout.otherwise.shape in ("unknown", "message"):
            break  # the sentence about the messages says more
        layout = layout.otherwise
    return layout


def _check_names(fields: Repeated, layout: Layout) -> None:
    for name in fields.names:
        if name in layout.names or name == "answer":
            raise Unusable(name, f'"{name}" is there twice. Keep one, or remove the record.')
