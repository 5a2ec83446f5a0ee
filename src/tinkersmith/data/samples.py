"""Files -> samples, each with its file and record number.

Nothing is dropped silently: an unusable record comes back as `Skipped` with its reason. This module
does not handle prompts or tokens.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from tinkersmith.data.packed import GZIP_MARK, PackedFile
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import kind_of_json, open_regular
from tinkersmith.plurals import counted

BOM = b"\xef\xbb\xbf"
_LONGEST_FIRST_LINE = 1 << 20  # bytes that are read to tell JSON Lines from other files
_PIECE = 1 << 20  # bytes that are unpacked at a time
_WHOLE_AT_MOST = 1_000_000_000  # bytes that are read whole on any machine (9 GB of memory)
_MEMORY_PER_BYTE = 10  # bytes of memory for a byte of a file that is read whole, at most
_DEEPEST = 100  # levels of lists and objects in a record
_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SEPARATORS = b"\x1c\x1d\x1e\x1f"  # white space to Python's strings, not to its bytes
_FIELDS = ("instruction", "input", "output", "system", "history", "answer")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record comes from."""

    file: str
    record: int  # counted from 1

    def __str__(self) -> str:
        return f"{self.file}, record {self.record}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A checked record."""

    instruction: str
    input: str
    output: str
    source: Source
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()  # earlier (question, answer) turns
    extra: dict[str, Any] = field(default_factory=dict[str, Any])  # for evaluation, not trained on


@dataclass(frozen=True, slots=True)
class Skipped:
    """An unusable record, and why."""

    source: Source
    field: str
    reason: str
    record_text: str  # the record as JSON

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.source.file,
            "record": self.source.record,
            "field": self.field,
            "reason": self.reason,
            "text": self.record_text,
        }


@dataclass(frozen=True, slots=True)
class LoadedSamples:
    """All records of some files."""

    samples: list[Sample]
    skipped: list[Skipped]
    missing_files: list[str]
    counts: dict[str, int]  # file -> usable samples


def load_samples(files: Sequence[str]) -> LoadedSamples:
    """Read and check all records of `files`.

    Raises:
        UserError: no file exists, a file is not JSON, or not one record can be used.
    """
    paths, missing = find_files(files)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    counts: dict[str, int] = {}
    for path in paths:
        before = len(samples)
        for number, record in enumerate(read_records(path), start=1):
            checked = check_record(record, Source(path.as_posix(), number))
            if isinstance(checked, Sample):
                samples.append(checked)
            else:
                skipped.append(checked)
        counts[path.as_posix()] = len(samples) - before
    refuse_if_nothing_is_usable(len(samples), len(skipped), skipped)
    return LoadedSamples(samples, skipped, missing, counts)


def find_files(files: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files where they exist (as given, else in data/); the missing names.

    Raises:
        UserError: no file exists, or one is named twice.
    """
    paths: list[Path] = []
    missing: list[str] = []
    for name in files:
        path = next((place for place in _candidates(name) if _exists(place)), None)
        if path is None:
            missing.append(name)
            continue
        try:
            again = any(path.samefile(other) for other in paths)
        except OSError as error:  # it has just gone
            raise unreadable(path, error) from None
        if again:
            raise UserError(f"{path} is named twice. Name each file once.")
        paths.append(path)
    if not missing and not paths:
        raise UserError("No data file is named. Name at least one.")
    if not paths:
        raise UserError(f"{does_not_exist(missing)}. Put a file there, or correct the name.")
    return paths, missing


def does_not_exist(files: Sequence[str]) -> str:
    """The beginning of the sentence about missing data files, whatever follows from it."""
    verb = "does" if len(files) == 1 else "do"
    return f"{', '.join(files)} {verb} not exist (looked in {_places()})"


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


_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")  # no program that writes JSON escapes letters


def may_repeat_fields(data: bytes, records: Sequence[Any]) -> bool:
    """Whether one of the records in `data` may name a field twice: parsers keep only the last.

    This counts names, which is fast; `read_records` and `parse_line` then look closely.
    """
    objects = cast(
        "list[dict[str, Any]]", [record for record in records if isinstance(record, dict)]
    )
    if _ESCAPED_LETTER.search(data):  # a name may be written with one, and is not counted then
        return True
    for name in _FIELDS:
        quoted = b'"%s"' % name.encode()
        here = sum(name in record for record in objects)
        # The text `"input"` cannot stand inside a string of JSON; it can be the whole string.
        if data.count(quoted) > here and len(re.findall(quoted + rb"\s*:", data)) > here:
            return True
    return False


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


def check_record(record: Any, source: Source) -> Sample | Skipped:
    """One record as a sample, or the reason why it cannot be one."""

    def skip(name: str, reason: str) -> Skipped:
        return Skipped(source, name, reason, record_text(record))

    if not isinstance(record, dict):
        return skip(
            "",
            f"the record is {kind_of_json(record)}; it must be an object with instruction and "
            "output.",
        )
    fields = cast("dict[str, Any]", record)
    if isinstance(record, _Repeated):
        return skip(record.name, f'"{record.name}" is there twice. Keep one, or remove the record.')
    if _too_deep(fields):
        return skip("", f"the record is nested more than {_DEEPEST} levels deep. Remove it.")
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
    return Sample(
        instruction=texts["instruction"],
        input=texts["input"],
        output=texts["output"],
        system=texts["system"],
        history=history,
        extra={name: value for name, value in fields.items() if name not in known},
        source=source,
    )


def refuse_if_nothing_is_usable(usable: int, skipped: int, first: Sequence[Skipped]) -> None:
    """Raise UserError if all records are skipped; `first` holds the first of them."""
    if not usable:
        if not first:
            raise UserError("The data files hold no record at all. Add records.")
        raise UserError(
            f"Not one of {counted(skipped, 'record')} can be used. The first: {first[0]}"
        )


def question_of(sample: Sample) -> tuple[Any, ...]:
    """What a sample asks, with each run of white space as one space, to compare questions."""
    return (
        _one_spaced(sample.instruction),
        _one_spaced(sample.input),
        _one_spaced(sample.system),
        tuple((_one_spaced(question), _one_spaced(answer)) for question, answer in sample.history),
    )


def characters(sample: Sample) -> int:
    """The number of characters in all texts of a sample."""
    texts = [sample.system, *(text for turn in sample.history for text in turn)]
    return sum(map(len, (*texts, sample.instruction, sample.input, sample.output)))


def overlap(train: Iterable[Sample], test: Sequence[Sample]) -> list[tuple[Source, Source]]:
    """The (training source, test source) of every test sample whose question is also trained on."""
    tested = [(question_of(sample), sample.source) for sample in test]
    asked = {question for question, _ in tested}
    seen: dict[tuple[Any, ...], Source] = {}  # only the test's questions: `train` may be large
    for sample in train:
        question = question_of(sample)
        if question in asked:
            seen.setdefault(question, sample.source)
    return [(seen[question], source) for question, source in tested if question in seen]


def record_text(record: Any) -> str:
    """The record as one line of JSON; unpaired surrogates are escaped, so any file can hold it."""
    try:
        text = json.dumps(record, ensure_ascii=False)
    except RecursionError:
        return '"(nested too deeply to be shown)"'
    return text.encode("utf-8", "backslashreplace").decode()


def _candidates(name: str) -> list[Path]:
    return [Path(name), Path("data") / name]


def _places() -> str:
    return f"{Path.cwd()}, {Path('data').absolute()}"


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; unlike `Path.exists`, alike in all versions of Python.

    Raises:
        UserError: the operating system cannot tell.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True


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
    """The records, but those that name a field twice as they are `marked`.

    The two lists come from two parsers, which read very large numbers differently. So a record is
    the same whatever else its file or its part of a stream holds.
    """
    pairs = zip(records, marked, strict=True)
    return [_repeated_or(record, twice) for record, twice in pairs]


def _repeated_or(record: Any, marked: Any) -> Any:
    return marked if isinstance(marked, _Repeated) else record


class _Repeated(dict[str, Any]):
    """A record that names a field twice."""

    name: str = ""


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, as `_Repeated` if one of ours is there twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    twice = next((name for name in _FIELDS if names.count(name) > 1), "")
    if not twice:
        return fields
    repeated = _Repeated(fields)
    repeated.name = twice
    return repeated


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


def _object_hint(value: Any) -> str:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                return f'Its "{name}" holds a list. Save only that list, beginning with [.'
    return "Enclose the records in [ ... ], or write one record per line to a .jsonl file."


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


def _one_spaced(text: str) -> str:
    return " ".join(text.split())
