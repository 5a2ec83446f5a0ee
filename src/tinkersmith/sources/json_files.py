"""JSON and JSON Lines -> their records. The bytes are unpacked and UTF-8 when they come here."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import orjson

from tinkersmith.errors import UserError
from tinkersmith.files import kind_of_json, open_regular
from tinkersmith.sources.contents import LONGEST_MARK, compression_of, open_content
from tinkersmith.sources.encodings import AUTO, BOM, LINE_BY_LINE, codec_name, not_utf8
from tinkersmith.sources.exports import exported_records

_LONGEST_FIRST_LINE = 1 << 20  # bytes that are read to tell JSON Lines from other files
_PIECE = 1 << 20  # characters of an array that are read at a time
_LONGEST_RECORD = 100_000_000  # characters

_SEPARATORS = b"\x1c\x1d\x1e\x1f"  # white space to Python's strings, not to its bytes


def json_records(path: Path, data: bytes, *, exact_numbers: bool = False) -> list[Any]:
    """All records of a JSON array or of JSON Lines.

    Args:
        exact_numbers: let Python's own parser read: orjson rounds whole numbers over 64 bits.

    Raises:
        UserError: the data is neither; the sentence has the line and column.
    """
    if is_blank(data):
        raise UserError(f"{path} is empty. Add records, or remove it from the list of files.")
    try:
        if has_lines_name(path) and data.lstrip().startswith(b"{"):
            raise ValueError("more than one value")  # orjson would look at all bytes to say so
        value = json.loads(data.decode("utf-8")) if exact_numbers else orjson.loads(data)
    except (ValueError, RecursionError):
        if are_json_lines(path, data):
            records = _json_lines(path, data, exact_numbers=exact_numbers)
            if may_repeat_fields(data, records):
                return _with_repeated(records, _json_lines(path, data, _marked))
            return records
        value = _parse_or_explain(path, _decode(path, data))
    return records_of_value(path, data, value)


def records_of_value(path: Path, data: bytes, value: Any) -> list[Any]:
    """The records in the value of a whole JSON text.

    Raises:
        UserError: it is no array, or an empty one.
    """
    if isinstance(value, dict) and has_lines_name(path):
        records: list[Any] = [value]
        repeats = may_repeat_fields(data, records)
        marked = [json.loads(data, object_pairs_hook=_marked)] if repeats else records
        return _with_repeated(records, marked)
    if not isinstance(value, list):
        what = kind_of_json(cast("object", value))
        raise UserError(f"{path} holds {what} instead of an array. {_object_hint(value)}")
    if not value:
        raise UserError(
            f"{path} holds an empty array. Add records, or remove it from the list of files."
        )
    records = cast("list[Any]", value)
    if may_repeat_fields(data, records):
        marked = cast("list[Any]", json.loads(data, object_pairs_hook=_marked))
        return _with_repeated(records, marked)
    return records


def object_records(
    path: Path, data: bytes, *, exact_numbers: bool = False
) -> tuple[list[Any], str] | None:
    """The records of a data set in one JSON object, and its form; None if the data is none.

    Raises:
        UserError: see `exported_records`.
    """
    try:
        value = json.loads(data.decode("utf-8")) if exact_numbers else orjson.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    export = exported_records(path, cast("dict[str, Any]", value))
    if export is None or not may_repeat_fields(data, [value]):
        return export
    marked = exported_records(path, json.loads(data, object_pairs_hook=_marked))
    return (_with_repeated(export[0], marked[0]), export[1]) if marked else export


def iterate_json(path: Path, text: TextIO) -> Iterator[Any]:
    """The records of an array or of JSON Lines, one at a time. `text` must not translate line ends.

    Raises:
        UserError: see `json_records`.
    """
    start = text.read(_PIECE)
    if start.lstrip("\ufeff \t\r\n").startswith("["):
        yield from _array_records(path, start, text)
        return
    lines = _lines_of(start, text)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_or_explain(path, line, number, _marked)


def _lines_of(start: str, text: TextIO) -> Iterator[str]:
    """The lines of a text whose beginning has been read already."""
    *lines, last = start.lstrip("\ufeff").split("\n")
    yield from lines
    yield last + text.readline().rstrip("\n")
    yield from text


def _array_records(path: Path, start: str, text: TextIO) -> Iterator[Any]:
    """The records of an array, of which only a few are in memory."""
    decoder = json.JSONDecoder(object_pairs_hook=_marked)
    buffer, line = start, 1
    place = buffer.index("[") + 1
    ended = False
    number = 0
    while True:
        place = _after(buffer, place, ", \t\r\n" if number else " \t\r\n")
        if place < len(buffer) and buffer[place] == "]":
            if not number:
                raise UserError(f"{path} holds an empty array. Add records to it.")
            if (buffer[place + 1 :] + text.read(1000)).strip():
                raise UserError(f"{path}: more text follows after the array. Remove it.")
            return
        if place < len(buffer):
            try:
                record, end = decoder.raw_decode(buffer, place)
            except ValueError as error:
                if ended or len(buffer) - place > _LONGEST_RECORD:
                    at = error.pos if isinstance(error, json.JSONDecodeError) else place
                    raise UserError(
                        f"{path}, line {line + buffer.count(chr(10), 0, at)}: record {number + 1} "
                        f"is not JSON: {str(error).split(':')[0]}. Fix it there."
                    ) from None
            except RecursionError:
                raise UserError(
                    f"{path}: record {number + 1} is nested too deeply. Remove that record."
                ) from None
            else:
                number += 1
                yield record
                place = end
                continue
        elif ended:
            raise UserError(
                f"{path} ends too early: its array is not closed after record {number:,}. Copy or "
                "download it again."
            )
        more = text.read(max(_PIECE, len(buffer) - place))
        ended = not more
        line += buffer.count("\n", 0, place)
        buffer, place = buffer[place:] + more, 0


def _after(text: str, place: int, characters: str) -> int:
    """The first place from `place` on where none of these characters stands."""
    while place < len(text) and text[place] in characters:
        place += 1
    return place


def is_json_lines(path: Path, encoding: str = AUTO) -> bool:
    """Whether the file can be read line by line: JSON Lines, gzip-ed or not, and no array."""
    codec = "utf-8" if encoding == AUTO else codec_name(encoding)
    if codec not in LINE_BY_LINE:
        return False
    try:
        with open_content(path) as file:
            start = file.read(_LONGEST_FIRST_LINE)
        if compression_of(_first_bytes(path)) not in ("", "gzip"):
            return False  # nobody can go on in the middle of the others
    except (OSError, UserError):  # a folder, no permission, damaged: reading it says so
        return False
    start = start.removeprefix(BOM).lstrip()
    if not start.startswith(b"{"):
        return False
    if has_lines_name(path):
        return True
    first = start.partition(b"\n")[0]
    try:
        orjson.loads(first if codec == "utf-8" else first.decode(codec))
    except ValueError:
        return False
    return True


def _first_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(LONGEST_MARK)


def is_blank(data: bytes) -> bool:
    """Whether UTF-8 bytes are white space alone, that of other scripts included (U+3000)."""
    rest = data.strip()
    if not rest or (rest[0] < 0x80 and rest[0] not in _SEPARATORS):
        return not rest
    try:
        return rest.decode("utf-8").isspace()
    except UnicodeDecodeError:
        return False


_NESTED = (dict, list)
_LOOSE_NAME = re.compile(rb'"\s+:')  # few programs write a blank there


def may_repeat_fields(data: bytes, records: Sequence[Any]) -> bool:
    """Whether an object in `data` may name a field twice: parsers keep only the last.

    This counts names, which is fast; `json_records` and `parse_line` then look closely.
    """
    # A quotation mark inside a string has a backslash before it, so `":` ends a name, or a string
    # that begins with a colon opens there. A name that ends with a backslash is not counted.
    if b'\\\\":' in data or _LOOSE_NAME.search(data):
        return True
    names, quoted = _count_names(records), data.count(b'":')
    return quoted > names and quoted - data.count(b'\\":') > names


def _count_names(records: Sequence[Any]) -> int:
    """The number of fields of all objects in `records`, those inside other values included."""
    count = 0
    level: Sequence[Any] = records
    while level:  # level by level, because comprehensions are fast
        objects = cast(
            "list[dict[str, Any]]", [value for value in level if isinstance(value, dict)]
        )
        lists = cast("list[list[Any]]", [value for value in level if isinstance(value, list)])
        count += sum(map(len, objects))
        level = [
            item for fields in objects for item in fields.values() if isinstance(item, _NESTED)
        ]
        level += [item for items in lists for item in items if isinstance(item, _NESTED)]
    return count


def parse_line(path: Path, line: bytes, number: int, *, mark_repeated: bool = False) -> Any:
    """The record on line `number` of a JSON Lines file.

    Args:
        mark_repeated: let `check_record` see a field that is there twice.

    Raises:
        UserError: it is not JSON; the sentence has the line and column.
    """
    try:
        record = orjson.loads(line)
    except ValueError:  # Python's parser takes more (NaN, lone surrogates), and explains better
        record = _parse_or_explain(path, _decode(path, line, number), number)
    marked = json.loads(line, object_pairs_hook=_marked) if mark_repeated else record
    return _repeated_or(record, marked)


class Repeated(dict[str, Any]):
    """An object that names a field twice; it holds the last value."""

    names: tuple[str, ...] = ()  # of the fields that are there twice


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, as `Repeated` if one is there twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeated = Repeated(fields)
    counts = Counter(name for name, _ in pairs)
    repeated.names = tuple(name for name, count in counts.items() if count > 1)
    return repeated


def _has_repeated(record: Any) -> bool:
    """Whether an object in `record` names a field twice."""
    inside = [record]
    while inside:
        value = inside.pop()
        if isinstance(value, Repeated):
            return True
        if isinstance(value, dict):
            inside += cast("dict[str, Any]", value).values()
        elif isinstance(value, list):
            inside += cast("list[Any]", value)
    return False


def _decode(path: Path, data: bytes, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(path, data, first_line) from None


def has_lines_name(path: Path) -> bool:
    """Whether a file is JSON Lines by its name."""
    return bool({".jsonl", ".ndjson"} & set(path.suffixes))


def are_json_lines(path: Path, data: bytes) -> bool:
    """Whether text that is no JSON array, or its beginning, has a record on each line."""
    if has_lines_name(path):
        return True
    start = data.lstrip()
    if not start.startswith(b"{"):
        return False
    try:
        json.loads(start.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(
    path: Path, data: bytes, pairs_hook: Any = None, *, exact_numbers: bool = False
) -> list[Any]:
    """The records of JSON Lines, from the parsers that a stream uses as well."""

    # Only "\n" ends a line: JSON texts may hold U+2028 and its like, at which splitlines() cuts.
    def parse(line: bytes, number: int) -> Any:
        if pairs_hook is None and not exact_numbers:
            with suppress(ValueError, RecursionError):  # Python's parser takes more, as in a stream
                return orjson.loads(line)
        return _parse_or_explain(path, _decode(path, line, number), number, pairs_hook)

    lines = enumerate(data.split(b"\n"), start=1)
    return [parse(line, number) for number, line in lines if not is_blank(line)]


def _parse_or_explain(path: Path, text: str, line: int = 0, pairs_hook: Any = None) -> Any:
    """The value of a JSON text: that of a whole file, or that of one line."""
    place = f"{path}, line {line}" if line else str(path)
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            what = f"it ends too early ({error.msg})"
        elif text.startswith("\ufeff"):
            what = "a byte order mark, as a file begins with, stands within the file"
        else:
            what = f"{error.msg}, found {text[error.pos : error.pos + 12]!r}"
        number = max(line, 1) + error.lineno - 1
        raise UserError(
            f"{path}, line {number}, column {error.colno}: not JSON: {what}. Fix it there."
        ) from None
    except RecursionError:
        raise UserError(f"{place}: the JSON is nested too deeply. Remove that record.") from None
    except ValueError:  # Python refuses a number with thousands of digits
        raise UserError(
            f"{place}: not readable as JSON: a number has too many digits. Write it as a string."
        ) from None


def _with_repeated(records: list[Any], marked: list[Any]) -> list[Any]:
    """The records, but those with a field that is there twice as they are `marked`.

    The two lists come from two parsers, which read very large numbers differently. So a record is
    the same whatever else its file or its part of a stream holds.
    """
    pairs = zip(records, marked, strict=True)
    return [_repeated_or(record, twice) for record, twice in pairs]


def _repeated_or(record: Any, marked: Any) -> Any:
    return marked if _has_repeated(marked) else record


def _object_hint(value: Any) -> str:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            items = cast("list[Any]", inner) if isinstance(inner, list) else []
            first = cast("dict[str, Any]", items[0]) if items and isinstance(items[0], dict) else {}
            if first and not first.keys() & {"role", "from"}:  # messages are one record
                return f'Its "{name}" holds a list. Save only that list, beginning with [.'
    return "Enclose the records in [ ... ], or write one record per line to a .jsonl file."
