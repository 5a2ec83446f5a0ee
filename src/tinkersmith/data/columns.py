"""COLUMNS: our names of fields -> the names that a user's records have."""

import difflib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from tinkersmith.errors import UserError, one_line

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})

_PAIR = ("instruction", "input", "output", "history", "thought")
# What a role is called in the messages of a record.
ROLE_COLUMNS = ("role.system", "role.user", "role.assistant", "role.tool")
IN_MESSAGES = ("role", "content", *ROLE_COLUMNS)  # names within messages, not of a record's fields
_MESSAGES = ("messages", *IN_MESSAGES, "tools")
_ANY = ("system", "answer")
COLUMN_FIELDS = (*_PAIR, *_MESSAGES, "text", *_ANY)

# Fields of one object: each takes a field of its own there. "answer" may be that of the output.
_TOGETHER = (("instruction", "input", "output", "history", "thought", "system"),
             ("messages", "tools", "system"), ("role", "content"))  # fmt: skip
_SHOWN_NAMES = 12  # names of a record in a sentence


class Missing:
    """What `value_in` gives for a name that a record does not have."""


MISSING: Final = Missing()


def value_in(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; "a.b" is also the field "b" of "a", and "a.0" the first item of "a"."""
    if name in record:
        return record[name]
    if "." not in name:
        return MISSING
    value: Any = record
    for step in name.split("."):
        if isinstance(value, dict) and step in value:
            value = cast("dict[str, Any]", value)[step]
        elif isinstance(value, list) and step.isdecimal() and len(step) < 10:
            items = cast("list[Any]", value)
            if int(step) >= len(items):
                return MISSING
            value = items[int(step)]
        else:
            return MISSING
    return value


def name_in(names: Iterable[str], wanted: str) -> str:
    """The one of a record's names that is meant: the same, or the same in another letter case."""
    similar = [name for name in names if name.strip().lower() == wanted.strip().lower()]
    return similar[0] if len(similar) == 1 and wanted not in similar else wanted


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a COLUMNS that cannot mean anything.

    Raises:
        UserError: a field is unknown, names nothing, or contradicts another one.
    """
    for field, name in columns.items():
        if field not in COLUMN_FIELDS:
            near = difflib.get_close_matches(field.strip().lower(), COLUMN_FIELDS, n=1)
            advice = f"did you mean {_quoted(near[0])}?" if near else "ours are"
            listed = "" if near else " " + ", ".join(map(_quoted, COLUMN_FIELDS)) + "."
            raise UserError(
                f"COLUMNS names {_quoted(field)}, which is no field of ours; {advice}{listed} Each "
                'entry is {"our field": "the name in your records"}.'
            )
        if not name.strip():
            raise UserError(
                f"COLUMNS[{_quoted(field)}] is empty; it must be the name of a field in your "
                "records. Fill it in, or remove the entry."
            )
    _refuse_one_name_for_two(columns)
    kinds = {
        kind: [field for field in fields if field in columns]
        for kind, fields in (
            ("pair", [field for field in _PAIR if field != "thought"]),
            ("messages", _MESSAGES),
            ("text", ("text", "system", "thought")),
        )
        if any(field in columns for field in fields if field not in ("system", "thought"))
    }
    if len(kinds) > 1:
        first, second = (fields[0] for fields in list(kinds.values())[:2])
        raise UserError(
            f"COLUMNS has {_quoted(first)} and {_quoted(second)}, which no sample has together. A "
            'sample is an "instruction" with its "output", a list of "messages", or "text" alone. '
            "Remove one of them."
        )
    for field in kinds.get("text", [])[1:]:
        what = "system message" if field == "system" else "thought"
        raise UserError(
            f'COLUMNS has "text" and "{field}"; plain text has no {what}. Remove "{field}".'
        )


def _refuse_one_name_for_two(columns: Mapping[str, str]) -> None:
    for fields in _TOGETHER:
        meant: dict[str, str] = {}  # by the name in the user's records
        for field in fields:
            name = columns.get(field, "").strip()
            if name and name in meant:
                raise UserError(
                    f"COLUMNS[{_quoted(meant[name])}] and COLUMNS[{_quoted(field)}] are both "
                    f"{_quoted(name)}. Name another field of your records for one of them, or "
                    "remove it."
                )
            meant[name] = field


class ColumnSearch:
    """Finds the columns that no record has, while all records are read."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        """Check the columns.

        Raises:
            UserError: see `check_columns`.
        """
        check_columns(columns)
        self._unseen = dict(columns)
        self._first: Any = None

    def add(self, record: Any) -> None:
        """Take the next record."""
        if not self._unseen:
            return
        if self._first is None:
            self._first = record
        for field, name in list(self._unseen.items()):
            if any(_has(fields, name, field) for fields in _fields_of(record, field)):
                del self._unseen[field]

    def refuse_unseen(self) -> None:
        """Raise UserError if there were records, and none of them had a column."""
        if self._first is None:
            return
        for field, name in self._unseen.items():
            names = names_of(self._first)
            near = difflib.get_close_matches(name, names, n=1)
            did_you_mean = f" Did you mean {_quoted(near[0])}?" if near else ""
            if field in ROLE_COLUMNS:
                raise UserError(
                    f"COLUMNS[{_quoted(field)}] is {_quoted(name)}, but no message has that role. "
                    "Correct it, or remove the entry."
                )
            raise UserError(
                f"COLUMNS[{_quoted(field)}] is {_quoted(name)}, but no record has that field. The "
                f"first record has {quoted_names(names)}.{did_you_mean}"
            )


def columns_text(columns: Mapping[str, str]) -> str:
    """The line of config.py that sets COLUMNS so."""
    return f"COLUMNS = {one_line(json.dumps(columns, ensure_ascii=False), 300)}"


def names_of(record: Any) -> list[str]:
    """The names of a record's fields; none if it is no object."""
    return list(cast("dict[str, Any]", record)) if isinstance(record, dict) else []


def quoted_names(names: list[str]) -> str:
    """The names in a sentence: the first ones, if they are many."""
    if not names:
        return "no fields"
    shown = ", ".join(map(_quoted, names[:_SHOWN_NAMES]))
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _quoted(name: str) -> str:
    return f'"{one_line(name)}"'


def _has(fields: dict[str, Any], name: str, field: str) -> bool:
    """Whether a column's field is there."""
    if field in ROLE_COLUMNS:
        return any(
            isinstance(value, str) and value.strip().lower() == name.strip().lower()
            for value in fields.values()
        )
    found = name if field in IN_MESSAGES else name_in(fields, name)
    return value_in(fields, found) is not MISSING


def _fields_of(record: Any, field: str) -> list[dict[str, Any]]:
    """Where a column's field can be: in the record, or in its messages."""
    if field not in IN_MESSAGES:
        return [cast("dict[str, Any]", record)] if isinstance(record, dict) else []
    lists: list[Any] = [record] if isinstance(record, list) else []
    if isinstance(record, dict):
        lists = list(cast("dict[str, Any]", record).values())
    items = [
        item for value in lists if isinstance(value, list) for item in cast("list[Any]", value)
    ]
    return [item for item in items if isinstance(item, dict)]
