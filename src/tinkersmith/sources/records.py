"""A file of any kind, or a data set of a hub -> its records, and what the user should know.

Content decides what a file is; its name helps only where the content leaves a choice.
"""

import io
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson

from tinkersmith.errors import UserError
from tinkersmith.sources.columnar import columnar_records
from tinkersmith.sources.contents import (
    compression_of,
    most_bytes,
    open_content,
    read_content,
)
from tinkersmith.sources.encodings import AUTO, BOM, as_utf8, text_codec
from tinkersmith.sources.hub import hub_records, is_on_hub
from tinkersmith.sources.json_files import (
    are_json_lines,
    has_lines_name,
    is_blank,
    iterate_json,
    json_records,
    object_records,
    records_of_value,
)
from tinkersmith.sources.kinds import (
    refuse_archive,
    refuse_binary,
    refuse_object,
    refuse_python_literal,
    refuse_text,
    refuse_unfinished,
    refuse_unknown_text,
    table_kind,
)
from tinkersmith.sources.sheets import sheet_records
from tinkersmith.sources.tables import delimited_records, delimiter_of, named_table

_START = 1 << 20  # bytes that tell the kind of a file


@dataclass(frozen=True, slots=True)
class FileRecords:
    """The records of one file."""

    records: list[Any]
    notes: tuple[str, ...] = ()  # sentences for the user


def read_records(
    path: Path,
    encoding: str = AUTO,
    columns: Mapping[str, str] | None = None,
    *,
    exact_numbers: bool = False,
) -> FileRecords:
    """All records of a file of any kind that holds data, or of a data set of a hub.

    Args:
        encoding: that of text files, as ENCODING names it.
        columns: the setting COLUMNS: which columns of a table hold JSON depends on it.
        exact_numbers: let Python's own parser read JSON: orjson rounds whole numbers over 64 bits.

    Raises:
        UserError: the file is not data, is damaged, or would not fit into the memory; the sentence
            says what it is, where, and what to do.
    """
    columns = columns or {}
    notes: list[str] = []
    if is_on_hub(path):
        records: list[Any] = list(hub_records(path, columns, notes, most_bytes()))
        return FileRecords(_not_none(path, records), _sentences(path, notes))
    refuse_unfinished(path)
    data = read_content(path, most_bytes())
    if kind := table_kind(data):
        records = list(_table_records(path, kind, io.BytesIO(data), columns, notes, most_bytes()))
        return FileRecords(_not_none(path, records), _sentences(path, notes))
    if encoding == AUTO:
        # Most files are JSON in UTF-8, and need no second look.
        value = _parsed(data.removeprefix(BOM), exact_numbers)
        if isinstance(value, list):
            records = records_of_value(path, data.removeprefix(BOM), value)
            return FileRecords(records, _said_kind(path, "JSON"))
    _refuse_packed_twice(path, data)
    refuse_binary(path, data)
    text = as_utf8(path, data, encoding)
    said = (f"Read {path} as {text.note}.",) if text.note else ()
    records, kind = _text_records(path, text.data, columns, notes, exact_numbers)
    return FileRecords(records, (*said, *_said_kind(path, kind), *_sentences(path, notes)))


def iterate_records(
    path: Path,
    encoding: str = AUTO,
    columns: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Any]:
    """The records of a file of any size, one after the other, in memory that does not grow.

    Workbooks are the exception: they are read whole. Sentences for the user go into `notes`.

    Raises:
        UserError: see `read_records`. An encoding that `encoding` does not name is refused.
    """
    columns = columns or {}
    said: list[str] = [] if notes is None else notes
    remarks: list[str] = []
    if is_on_hub(path):
        yield from hub_records(path, columns, remarks, None)
        said += _sentences(path, remarks)
        return
    refuse_unfinished(path)
    with open_content(path) as file:
        start = file.read(_START)
    kind = table_kind(start)
    if kind == "Excel":
        yield from _table_records(
            path, kind, io.BytesIO(read_content(path, most_bytes())), columns, remarks, most_bytes()
        )
    elif kind:
        with open_content(path) as file:
            seekable = file if file.seekable() else io.BytesIO(read_content(path, most_bytes()))
            yield from _table_records(path, kind, seekable, columns, remarks, None)
    else:
        _refuse_packed_twice(path, start)
        refuse_binary(path, start)
        codec = text_codec(path, start, encoding)
        beginning = start.decode(codec, "ignore").lstrip("\ufeff")
        refuse_text(path, beginning.encode("utf-8", "surrogatepass"))
        delimiter = "" if beginning.lstrip()[:1] in ("[", "{") else delimiter_of(path, beginning)
        with _open_text(path, codec) as text:
            if delimiter:
                kind = "TSV" if delimiter == "\t" else "CSV"
                said += _said_kind(path, kind)
                yield from delimited_records(path, text, delimiter, columns, remarks)
            elif beginning.lstrip()[:1] == "{" and not are_json_lines(
                path, beginning.encode("utf-8", "surrogatepass")
            ):
                read = read_records(path, encoding, columns)  # one object that holds all records
                said += read.notes
                yield from read.records
            else:
                yield from iterate_json(path, text)
    said += _sentences(path, remarks)


@contextmanager
def _open_text(path: Path, codec: str) -> Generator[TextIO, None, None]:
    """The text of a file in order, without translated line ends and without a mark."""
    with open_content(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig" if codec == "utf-8" else codec, newline="\n")
        try:
            yield text
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: a byte (0x{error.object[error.start]:02X}) is not {codec}. Set "
                "ENCODING to the encoding that the file is in, or save it as UTF-8."
            ) from None
        finally:
            text.detach()


def _parsed(data: bytes, exact_numbers: bool) -> Any:
    """The value of JSON; None if it is none."""
    if data[:1] not in (b"[", b" ", b"\n", b"\r", b"\t"):
        return None
    try:
        return json.loads(data.decode("utf-8")) if exact_numbers else orjson.loads(data)
    except (ValueError, RecursionError):
        return None


def _table_records(
    path: Path,
    kind: str,
    file: Any,
    columns: Mapping[str, str],
    notes: list[str],
    most: int | None,
) -> Iterator[Any]:
    if kind != "Excel":
        return columnar_records(path, kind, file, columns, notes, most)
    data = file.read()
    refuse_archive(path, data)
    return sheet_records(path, data, columns, notes, most_bytes())


def _text_records(
    path: Path, data: bytes, columns: Mapping[str, str], notes: list[str], exact_numbers: bool
) -> tuple[list[Any], str]:
    """The records of UTF-8 text, and what it is."""
    if is_blank(data):
        raise UserError(f"{path} is empty. Add records, or remove it from the list of files.")
    refuse_text(path, data)
    looks_like_json = data.lstrip()[:1] in (b"[", b"{")
    delimiter = ""
    if not looks_like_json or named_table(path):
        delimiter = delimiter_of(path, data.decode("utf-8", "surrogatepass"))
    if looks_like_json or not delimiter:
        try:
            return _records_of_json(path, data, notes, exact_numbers), "JSON"
        except UserError:
            if not looks_like_json:
                refuse_unknown_text(path, data)
            else:
                refuse_python_literal(path, data)
            if not delimiter:
                raise
    text = io.StringIO(data.decode("utf-8", "surrogatepass"), newline="")
    records = list(delimited_records(path, text, delimiter, columns, notes))
    return _not_none(path, records), "TSV" if delimiter == "\t" else "CSV"


def _records_of_json(path: Path, data: bytes, notes: list[str], exact_numbers: bool) -> list[Any]:
    if not has_lines_name(path) and data.lstrip().startswith(b"{"):
        export = object_records(path, data, exact_numbers=exact_numbers)
        if export is not None:
            records, form = export
            notes.append(f"it holds one object, which was read as {form}")
            return records
    if len(data) < _START:
        refuse_object(path, _object_of(data))
    return json_records(path, data, exact_numbers=exact_numbers)


def _object_of(data: bytes) -> Any:
    """The value of a text that is one JSON object; None for JSON Lines."""
    try:
        return orjson.loads(data)
    except ValueError:
        return None


def _refuse_packed_twice(path: Path, data: bytes) -> None:
    if compression := compression_of(data):
        raise UserError(
            f"{path} is packed twice: its content is a {compression} file. Unpack it once."
        )


def _not_none(path: Path, records: list[Any]) -> list[Any]:
    if not records:
        raise UserError(
            f"{path} holds no record. Add records, or remove it from the list of files."
        )
    return records


def _said_kind(path: Path, kind: str) -> tuple[str, ...]:
    """A sentence if the file's name says something else than its content."""
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    names = {
        "JSON": {".csv", ".tsv", ".tab", ".txt", ".xlsx", ".parquet"},
        "CSV": {".json", ".jsonl", ".ndjson", ".tsv", ".tab", ".txt", ".xls", ".xlsx"},
        "TSV": {".json", ".jsonl", ".ndjson", ".csv", ".txt", ".xls", ".xlsx"},
    }
    if suffixes & names[kind]:
        return (f"Read {path} as {kind}, which it is, whatever its name says.",)
    return ()


def _sentences(path: Path, notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path}: {note}." for note in notes)
