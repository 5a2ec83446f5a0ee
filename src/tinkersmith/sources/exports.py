"""One JSON object that is a whole data set, as tools export it -> its records.

An object is read so only where nothing else can be meant. What a record means is decided in `data`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError
from tinkersmith.plurals import counted

_LISTS = (
    *("data", "train", "rows", "records", "examples", "items", "samples", "instances"),
    *("dataset", "entries", "results", "validation", "valid", "dev", "eval", "test"),
)
_SPLIT = {"columns", "index", "data", "index_names", "column_names"}  # pandas' form "split"
# An object with one of these fields is a record itself.
_OF_RECORDS = {
    *("messages", "conversations", "conversation", "instruction", "prompt", "question", "query"),
    *("problem", "output", "completion", "response", "answer", "text", "chosen"),
}

TABLE = "a table, column by column"
ROWS = "rows of a data set's viewer"


def exported_records(path: Path, value: Mapping[str, Any]) -> tuple[list[Any], str] | None:
    """The records in a JSON object, and what it is; None if it is no data set, or not for certain.

    Raises:
        UserError: it is several data sets, or its columns are of different lengths.
    """
    if not value:
        return None
    columns, rows = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(rows, list) and value.keys() <= _SPLIT:
        return _split(path, cast("list[Any]", columns), cast("list[Any]", rows)), TABLE
    lists = {name: value[name] for name in _LISTS if name in value and _are_records(value[name])}
    if lists and not value.keys() & _OF_RECORDS:
        if len(lists) > 1:
            raise _several(path, lists)
        [(name, records)] = lists.items()
        first = records[0]
        is_viewer = isinstance(first, dict) and "row" in first and "row_idx" in first
        return list(records), ROWS if is_viewer else f'the list in its "{name}"'
    inner = list(value.values())
    if all(isinstance(column, list) for column in inner) and all(inner):
        return _columns_of_lists(path, cast("Mapping[str, list[Any]]", value))
    if all(isinstance(column, dict) for column in inner) and all(inner):
        return _columns_of_maps(path, cast("Mapping[str, dict[str, Any]]", value))
    return None


def _are_records(value: Any) -> bool:
    """Whether a value is a list of objects, of conversations, or of strings."""
    if not isinstance(value, list) or not value:
        return False
    items = cast("list[Any]", value)
    first = items[0]
    if isinstance(first, list):
        inside = cast("list[Any]", first)
        return bool(inside) and isinstance(inside[0], dict)
    kind = str if isinstance(first, str) else dict
    return all(isinstance(item, kind) for item in items)


def _several(path: Path, lists: Mapping[str, Sequence[Any]]) -> UserError:
    what = ", ".join(f'"{name}" ({counted(len(rows), "record")})' for name, rows in lists.items())
    return UserError(
        f"{path} holds several lists of records: {what}. Save the one to use as a file of its own."
    )


def _split(path: Path, columns: list[Any], rows: list[Any]) -> list[Any]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(cast("list[Any]", row)) != len(columns):
            raise UserError(
                f'{path}: row {number} of "data" has not one value for each of its '
                f"{counted(len(columns), 'column')}. Write the file again."
            )
    names = [str(name) for name in columns]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _columns_of_lists(path: Path, value: Mapping[str, list[Any]]) -> tuple[list[Any], str] | None:
    items = [item for column in value.values() for item in column[:1]]
    if all(isinstance(item, dict) for item in items):
        return None  # a record whose fields are lists of messages or tools
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        if not value.keys() & _OF_RECORDS:
            return None
        what = ", ".join(f'"{name}" {length:,}' for name, length in lengths.items())
        raise UserError(
            f"{path} is {TABLE}, but the columns have different lengths: {what}. Write it again."
        )
    rows = zip(*value.values(), strict=True)
    return [dict(zip(value, row, strict=True)) for row in rows], TABLE


def _columns_of_maps(
    path: Path, value: Mapping[str, dict[str, Any]]
) -> tuple[list[Any], str] | None:
    """Records by number, or columns whose cells are: pandas' forms "index" and "columns"."""
    outer_numbers = all(name.isdecimal() for name in value)
    inner_numbers = all(name.isdecimal() for column in value.values() for name in column)
    if outer_numbers and not inner_numbers:
        return list(value.values()), "records by number"
    if not inner_numbers or outer_numbers:
        return None
    numbers = list(dict.fromkeys(name for column in value.values() for name in column))
    for name, column in value.items():
        if len(column) != len(numbers):
            missing = next(number for number in numbers if number not in column)
            raise UserError(
                f'{path} is {TABLE}, but its "{name}" has no row "{missing}". Write it again.'
            )
    return [{name: column[number] for name, column in value.items()} for number in numbers], TABLE
