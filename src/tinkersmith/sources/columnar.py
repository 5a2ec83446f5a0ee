"""Parquet, Arrow and Feather files -> records, as JSON would hold them."""

import base64
import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinkersmith.errors import UserError
from tinkersmith.sources.contents import command_to_convert
from tinkersmith.sources.tables import structured_columns, with_parsed_cells

INSTALL_TABLES = "pip install 'tinkersmith[tables]'"
_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 256_000_000  # of one batch: a dictionary lets few bytes stand for many


def columnar_records(
    path: Path,
    kind: str,
    file: BinaryIO,
    columns: Mapping[str, str],
    notes: list[str],
    most: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The records of a "Parquet" or "Arrow" file, a few at a time.

    A field that is null is missing in its record, also inside other fields: these formats cannot
    tell the two apart.

    Args:
        most: bytes of content after which the file is refused.

    Raises:
        UserError: the file is damaged or too large, or pyarrow is not installed.
    """
    try:
        arrow: Any = import_module("pyarrow")
    except ImportError:
        raise missing_library(path, kind, "pyarrow") from None
    too_large = f"Write it as JSON Lines, which are read as a stream: {command_to_convert(path)}"
    damage: tuple[type[Exception], ...] = (arrow.ArrowException, OSError, MemoryError, ValueError)
    try:
        yield from plain_rows(path, _batches(kind, file), columns, notes, most, too_large)
    except damage as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"{path} is a damaged {kind} file ({reason}). Copy or write it again."
        ) from None


def plain_rows(
    path: Path,
    batches: Iterable[Any],
    columns: Mapping[str, str],
    notes: list[str],
    most: int | None,
    too_large: str,
) -> Iterator[dict[str, Any]]:
    """The rows of Arrow tables as JSON would hold them.

    Args:
        too_large: what to do if the tables have more than `most` bytes.

    Raises:
        UserError: they have.
    """
    structured = structured_columns(columns)
    binary: set[str] = set()
    size = number = 0
    for batch in batches:
        size += int(batch.nbytes)
        if most is not None and size > most:
            raise UserError(
                f"{path} holds more than {most / 1e9:.0f} GB, which would not fit into this "
                f"machine's memory as a whole. {too_large}"
            )
        for row in batch.to_pylist():
            number += 1
            record = cast("dict[str, Any]", _plain(row, "", binary))
            yield with_parsed_cells(record, structured, f"row {number}")
    if binary:
        names = ", ".join(sorted(binary))
        notes.append(f"bytes in {names} that are no text were written as base64")


def missing_library(path: Path, kind: str, library: str) -> UserError:
    """The sentence about a file that an extra reads."""
    return UserError(
        f"{path} is a file of {kind}, which {library} reads. Install it with: {INSTALL_TABLES}"
    )


def _batches(kind: str, file: BinaryIO) -> Iterator[Any]:
    if kind == "Parquet":
        reader = cast("Any", import_module("pyarrow.parquet")).ParquetFile(file)
        yield from reader.iter_batches(batch_size=_batch_rows(reader.metadata))
        return
    arrow: Any = import_module("pyarrow")
    start = file.read(6)
    file.seek(0)
    if start == b"ARROW1":
        opened: Any = arrow.ipc.open_file(file)
        batches: Iterable[Any] = (
            opened.get_batch(number) for number in range(opened.num_record_batches)
        )
    else:
        batches = iter(arrow.ipc.open_stream(file))
    for batch in batches:
        for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield batch.slice(first, _ROWS_AT_ONCE)


def _batch_rows(metadata: Any) -> int:
    """So many rows that a batch cannot fill the memory, whatever its dictionaries repeat."""
    largest = 1
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for column in range(row_group.num_columns):
            largest = max(largest, int(row_group.column(column).total_uncompressed_size))
    return max(4, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // largest))


def _plain(value: Any, name: str, binary: set[str]) -> Any:
    """The value with kinds that JSON has; nulls in objects are left out."""
    if isinstance(value, str | int) or value is None:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        fields = {
            str(key): _plain(inner, name or str(key), binary)
            for key, inner in cast("dict[Any, Any]", value).items()
        }
        return {key: inner for key, inner in fields.items() if inner is not None}
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if items and all(isinstance(item, tuple) for item in items):  # a map
            return {str(key): _plain(inner, name, binary) for key, inner in items}
        return [_plain(item, name, binary) for item in items]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            binary.add(name)
            return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return date_text(value)
    return str(value)  # a decimal number, or a time span


def date_text(value: dt.datetime | dt.date | dt.time) -> str:
    """A date as people write it: 2024-01-05, or 2024-01-05 03:04:00 if it has a time."""
    if isinstance(value, dt.datetime) and value.time() == dt.time(0) and value.tzinfo is None:
        value = value.date()
    return value.isoformat(" ") if isinstance(value, dt.datetime) else value.isoformat()
