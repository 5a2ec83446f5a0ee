"""A prompt template as JSON, stored with its run -> the template."""

import dataclasses
import datetime
from typing import Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.files import kind_of_json
from tinkersmith.text.chat_template import ChatTemplate
from tinkersmith.text.text_template import TextTemplate, check_format

_LEGACY = ("end", "tail", "lead")  # of chat templates: they are found by trying now


def template_from_json(value: object) -> TextTemplate | ChatTemplate:
    """The template that `to_json` stored, also in runs of earlier versions.

    Raises:
        UserError: the value is damaged; the sentence names the field.
    """
    if not isinstance(value, dict):
        raise _damaged(f"it is {kind_of_json(value)} instead of an object")
    stored = cast("dict[str, Any]", value)
    kind = stored.get("kind")
    if kind not in ("text", "chat"):
        raise _damaged(f'"kind" is {_shown(stored, "kind")}; it must be "text" or "chat"')
    if kind == "chat" and "end_of_text" not in stored:
        stored = {"begin": "", "end_of_text": stored.get("end", ""), **stored}
        stored = {name: value for name, value in stored.items() if name not in _LEGACY}
    template_class = TextTemplate if kind == "text" else ChatTemplate
    fields = dataclasses.fields(template_class)
    names = [field.name for field in fields]
    for name in stored:
        if name not in (*names, "kind"):
            raise _damaged(f'"{one_line(name, 40)}" is not known to this version of Tinkersmith')
    values: dict[str, Any] = {}
    for field in fields:
        if field.name not in stored and field.default is not dataclasses.MISSING:
            continue
        if not _has_its_type(field.name, stored.get(field.name)):
            wanted = _WANTED.get(field.name, "a string")
            raise _damaged(f'"{field.name}" is {_shown(stored, field.name)}; it must be {wanted}')
        values[field.name] = stored[field.name]
    for name in ("special_tokens", "control_tokens"):
        if name in values:
            values[name] = tuple(values[name])
    if kind == "chat":
        _check_date(values["date"])
    else:
        for name in ("format", "format_without_input"):
            check_format(values[name])
    return template_class(**values)


_THINKING = ("auto", "keep", "strip", "off")
_WANTED = {
    "special_tokens": "a list of strings",
    "control_tokens": "a list of strings",
    "named_tokens": "an object of strings",
    "thinking": "one of " + ", ".join(f'"{value}"' for value in _THINKING),
    "thinks": "true, false or null",
}


def _has_its_type(name: str, value: object) -> bool:
    if name == "thinking":
        return value in _THINKING
    if name == "thinks":
        return value is None or isinstance(value, bool)
    if name in ("special_tokens", "control_tokens"):
        items = cast("list[object]", value) if isinstance(value, list) else [None]
    elif name == "named_tokens":
        items = cast("dict[str, object]", value).values() if isinstance(value, dict) else [None]
    else:
        items = [value]
    return all(isinstance(item, str) for item in items)


def _check_date(date: str) -> None:
    try:
        datetime.datetime.fromisoformat(date)
    except ValueError:
        raise _damaged(f'"date" is {date[:40]!r}; it must be a day such as 2026-01-31') from None


def _shown(stored: dict[str, Any], name: str) -> str:
    if name not in stored:
        return "missing"
    value = stored[name]
    return f'"{one_line(value, 40)}"' if isinstance(value, str) else kind_of_json(value)


def _damaged(reason: str) -> UserError:
    return UserError(f"The stored prompt template cannot be read: {reason}.")
