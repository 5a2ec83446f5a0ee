"""JSON and JSON Lines files -> their records."""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import kind_of_json, open_regular
from tinkersmith.sources.packed import GZIP_MARK, PackedFile

BOM = b"\xef\xbb\xbf"

_LONGEST_FIRST_LINE = 1 << 20  # bytes that are read to tell JSON Lines from other files

_PIECE = 1 << 20  # bytes that are unpacked at a time

_WHOLE_AT_MOST = 1_000_000_000  # bytes that are read whole on any machine (9 GB of memory)

_MEMORY_PER_BYTE = 10  # bytes of memory for a byte of a file that is read whole, at most


_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)

_SEPARATORS = b"\x1c\x1d\x1e\x1f"  # white space to Python's strings, not to its bytes


def read_records(path: Path, parse: Callable[[bytes], Any] = orjson.loads) -> list[Any]:
    """All records of a JSON array or of JSON Lines, either gzip-ed, in UTF-8 with or without BOM.

    Raises:
        UserError: the file is neither; the sentence has the line and column.
    """
    data = _read_bytes(path)
    if is_blank(data):
        raise UserError(f"{path} is empty. Add records, or remove it from the list of files.")
    try:
        value = parse(data)
    except (ValueError, RecursionError):
        text = _decode(path, data)
        if _is_json_lines(path, text):
            records = _json_lines(path, text)
            if may_repeat_fields(data, records):
                return _with_repeated(records, _json_lines(path, text, _marked))
            return records
        value = _parse_or_explain(path, text)
    if isinstance(value, dict) and _has_lines_name(path):
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


def is_json_lines(path: Path) -> bool:
    """Whether the file can be read line by line: JSON Lines, gzip-ed or not, and no array."""
    try:
        with open_regular(path) as file:
            start = file.read(_LONGEST_FIRST_LINE)
            if start.startswith(GZIP_MARK):
                start = PackedFile(path).unpacking(file, remember=False).read(_LONGEST_FIRST_LINE)
    except (OSError, UserError):  # a folder, no permission, damaged: reading it says so
        return False
    start = start.removeprefix(BOM).lstrip()
    if not start.startswith(b"{"):
        return False
    if _has_lines_name(path):
        return True
    try:
        orjson.loads(start.partition(b"\n")[0])
    except ValueError:
        return False
    return True


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

    This counts names, which is fast; `read_records` and `parse_line` then look closely.
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


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name the files in it.")
    most = _most_bytes()
    try:
        with open_regular(path) as file:
            packed = file.read(2) == GZIP_MARK
            file.seek(0)
            if not packed and os.fstat(file.fileno()).st_size > most:
                raise _too_large(path, most)
            data = _unpacked(path, file, most) if packed else file.read(most + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > most:  # it grows while it is read
        raise _too_large(path, most)
    for mark, encoding in _ENCODINGS:
        if data.startswith(mark):
            raise UserError(f"{path} is encoded as {encoding}. Save it as UTF-8.")
    return data.removeprefix(BOM)


def _too_large(path: Path, most: int) -> UserError:
    return UserError(
        f"{path} has more than {most / 1e9:.0f} GB, which would not fit into this machine's memory "
        "as a whole. Split it into smaller files."
    )


def _most_bytes() -> int:
    """The size up to which a file is read whole: what is known to fit into the memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        memory = 0
    return max(_WHOLE_AT_MOST, memory // _MEMORY_PER_BYTE)


def _unpacked(path: Path, packed: BinaryIO, most: int) -> bytes:
    """The content of a gzip file of one or several members, unpacked as far as memory allows.

    Raises:
        UserError: it is damaged, or too large.
    """
    unpacking = PackedFile(path).unpacking(packed, remember=False)
    pieces: list[bytes] = []
    size = 0
    while piece := unpacking.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise UserError(
                f"{path} unpacks to more than {most / 1e9:.0f} GB, which would not fit into this "
                "machine's memory. If that is what it should hold, unpack it with: gunzip -k "
                f"{shlex.quote(str(path))}"
            )
    return b"".join(pieces)


def _decode(path: Path, data: bytes, first_line: int = 1) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode("utf-8", "replace")) + 1
        raise UserError(
            f"{path}, line {line}, column {column}: the byte 0x{data[error.start]:02X} is not "
            f"UTF-8 (the file looks like {_likely_encoding(data)}). Save it as UTF-8."
        ) from None
    if text.startswith("\x00") and not text.strip("\x00\r\n"):
        raise UserError(
            f"{path}, line {first_line}: there are only NUL bytes, as a crash may leave them. Copy "
            "the file again."
        )
    if text.startswith(("[\x00", "{\x00", "\x00[", "\x00{")):
        raise UserError(f"{path} looks like UTF-16 without a mark. Save it as UTF-8.")
    return text


def _likely_encoding(data: bytes) -> str:
    start = data[:100_000]
    if start.count(b"\x00") > len(start) // 4:
        return "UTF-16"
    # GBK letters are pairs of high bytes; an accent in Latin-1 mostly stands alone among ASCII.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", start)]
    in_pairs = sum(length for length in runs if length % 2 == 0)
    return "GBK" if in_pairs > 0.6 * sum(runs) else "Latin-1"


def _has_lines_name(path: Path) -> bool:
    return bool({".jsonl", ".ndjson"} & set(path.suffixes))


def _is_json_lines(path: Path, text: str) -> bool:
    if _has_lines_name(path):
        return True
    start = text.lstrip()
    if not start.startswith("{"):
        return False
    first = start.partition("\n")[0]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(path: Path, text: str, pairs_hook: Any = None) -> list[Any]:
    """The records of JSON Lines, from the parsers that a stream uses as well."""

    # Only "\n" ends a line: JSON texts may hold U+2028 and its like, at which splitlines() cuts.
    def parse(line: str, number: int) -> Any:
        if pairs_hook is None:
            with suppress(ValueError, RecursionError):  # Python's parser takes more, as in a stream
                return orjson.loads(line)
        return _parse_or_explain(path, line, number, pairs_hook)

    lines = enumerate(text.split("\n"), start=1)
    return [parse(line, number) for number, line in lines if line.strip()]


def _parse_or_explain(path: Path, text: str, line: int = 0, pairs_hook: Any = None) -> Any:
    """The value of a JSON text: that of a whole file, or that of one line."""
    place = f"{path}, line {line}" if line else str(path)
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            what = f"it ends too early ({error.msg})"
        else:
            what = f"{error.msg}, found {text[error.pos : error.pos + 12]!r}"
        number = max(line, 1) + error.lineno - 1
        raise UserError(
            f"{path}, line {number}, column {error.colno}: not JSON: {what}. Fix it there."
        ) from None
    except RecursionError:
        raise UserError(f"{place}: the JSON is nested too deeply. Remove that record.") from None
    except ValueError as error:
        raise UserError(f"{place}: not readable as JSON: {error}. Fix it there.") from None


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
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                return f'Its "{name}" holds a list. Save only that list, beginning with [.'
    return "Enclose the records in [ ... ], or write one record per line to a .jsonl file."
