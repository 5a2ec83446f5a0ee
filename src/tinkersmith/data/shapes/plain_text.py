"""A record with plain text alone -> a `Sample`."""

from typing import Any

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.data.shapes.fields import field_value, finished_sample, missing_reason
from tinkersmith.data.shapes.layout import Layout
from tinkersmith.data.shapes.values import Unusable, check_text


def plain_text_sample(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    name = layout.fields.get("text", "text")
    notes: list[str] = []
    value = field_value(fields, name, notes)
    if value is None:
        raise Unusable(name, missing_reason(fields, layout, "text"))
    text = check_text(value, f'"{name}"', name, required=True)
    return finished_sample(fields, source, layout, [Turn("text", text)], notes)
