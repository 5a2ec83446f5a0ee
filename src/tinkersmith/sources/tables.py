"""Rows of cells -> records, and CSV or TSV text -> rows.

A cell that is empty is missing in its record. A row that does not fit the header is a `BadRow`.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import orjson

from tinkersmith.errors import UserError, one_line
from tinkersmith.plurals import counted

# Fields that hold lists of objects; a cell has only their text.
_STRUCTURED = frozenset(
    {"messages", "conversations", "conversation", "history", "tools", "functions", "tool_calls",
     "chosen", "rejected"}
)  # fmt: skip
# Names that a header of training data has: enough to tell CSV in a file with another name.
_USUAL_NAMES = frozenset(
    {"instruction", "input", "output", "system", "history", "answer", "prompt", "completion",
     "question", "response", "query", "problem", "solution", "context", "text", "messages",
     "conversations", "指令", "输入", "输出", "问题", "答案", "提问", "回答", "問題", "回應"}
)  # fmt: skip
_DELIMITERS = ("\t", ",", ";", "|")
_LONGEST_CELL = 100_000_000  # characters: more is a quotation mark that is never closed
_LONGEST_NAME = 100  # characters of a column's name: a longer one is a text of the data
_LONGEST_LITERAL = 1_000_000  # characters that Python's parser is asked to read
_SNIFFED = 1 << 16  # characters that decide the delimiter

csv.field_size_limit(_LONGEST_CELL)  # of the whole process: Python's own is too small for texts


class BadRow(dict[str, Any]):
    """A row that cannot be a record, with the cells that it has."""

    reason: str = ""


def bad_row(cells: Mapping[str, Any], reason: str) -> BadRow:
    """A `BadRow` with its reason."""
    row = BadRow(cells)
    row.reason = reason
    return row


_CHECK_CELLS = "Check its quotation marks and separators."


class Header:
    """The names of a table's columns."""

    def __init__(
        self, path: Path, place: str, names: Iterable[object], advice: str = _CHECK_CELLS
    ) -> None:
        """Check the names.

        Args:
            place: where they stand, such as "line 1".
            advice: what to do about a row with more or fewer cells.

        Raises:
            UserError: a name is there twice, or is none.
        """
        self.path, self.place, self.advice = path, place, advice
        self.names = [str(name).strip() if name is not None else "" for name in names]
        while self.names and not self.names[-1]:
            self.names.pop()
        if not self.names:
            raise UserError(f"{path}, {place} must name the columns. Add their names there.")
        for name in self.names:
            if len(name) > _LONGEST_NAME or "\n" in name or re.fullmatch(r"[\d.,+-]+", name):
                raise UserError(
                    f'{path}, {place} must name the columns, but "{one_line(name, 40)}" looks like '
                    "data. Add a first line with names, such as instruction and output."
                )
        twice = next((n for i, n in enumerate(self.names) if n and n in self.names[:i]), "")
        if twice:
            raise UserError(
                f'{path}, {place} names the column "{one_line(twice, 40)}" twice. Rename one.'
            )

    def without_name(self) -> list[int]:
        """The places of the columns that have no name."""
        return [place for place, name in enumerate(self.names) if not name]

    def record(self, row: list[Any], place: str) -> dict[str, Any]:
        """The record of a row; a `BadRow` if it has more cells than columns, or fewer."""
        cells = [cell for cell in row[len(self.names) :] if cell not in ("", None)]
        fields = {
            name: cell
            for name, cell in zip(self.names, row, strict=False)
            if cell not in ("", None) and name
        }
        if cells or len(row) < len(self.names):
            count = len(self.names) + len(cells) if cells else len(row)
            return bad_row(
                fields,
                f"{place} has {counted(count, 'cell')}, but the table has "
                f"{counted(len(self.names), 'column')}. {self.advice}",
            )
        return fields


def records_of_rows(
    header: Header,
    rows: Iterable[tuple[list[Any], str]],
    columns: Mapping[str, str],
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """The records of rows with their places; rows without any cell are left out.

    Raises:
        UserError: a column without a name has cells, unless it only counts the rows.
    """
    nameless = header.without_name()
    counting = nameless == [0]
    structured = _structured(columns)
    number = 0
    for row, place in rows:
        if all(cell in ("", None) for cell in row):
            continue
        for column in nameless:
            cell = row[column] if column < len(row) else ""
            if cell in ("", None):
                continue
            # pandas writes the rows' numbers into a first column that has no name.
            if counting and str(cell).removesuffix(".0").isdigit():
                if not number:
                    notes.append(
                        "its first column has no name and holds numbers of rows; it was left out"
                    )
                continue
            raise UserError(
                f"{header.path}, {header.place}: column {column + 1} has no name, but {place} has "
                f'"{one_line(str(cell), 30)}" in it. Name the column.'
            )
        number += 1
        yield with_parsed_cells(header.record(row, place), structured, place)


def _structured(columns: Mapping[str, str]) -> frozenset[str]:
    """The columns whose cells hold JSON."""
    renamed = {theirs for ours, theirs in columns.items() if ours in _STRUCTURED}
    return _STRUCTURED | renamed


def with_parsed_cells(
    record: dict[str, Any], structured: Iterable[str], place: str
) -> dict[str, Any]:
    """The record with the JSON in cells that should hold lists, such as "messages", as values."""
    if isinstance(record, BadRow):
        return record
    for name in structured:
        cell = record.get(name)
        if not isinstance(cell, str) or not cell.strip():
            continue
        try:
            record[name] = _value_of(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if cell.lstrip()[:1] in ("[", "{"):
                return bad_row(
                    record,
                    f'"{name}" in {place} begins like JSON, but is none. Write it with json.dumps.',
                )
    return record


def structured_columns(columns: Mapping[str, str]) -> frozenset[str]:
    """The columns whose cells hold JSON, where the cells can only hold text."""
    return _structured(columns)


def _value_of(cell: str) -> Any:
    """The value of a cell with JSON, or with a list as Python prints it (pandas writes so)."""
    try:
        return orjson.loads(cell)
    except ValueError:
        pass
    try:
        return json.loads(cell)
    except ValueError:
        if len(cell) > _LONGEST_LITERAL:
            raise
    value: object = ast.literal_eval(cell)
    json.dumps(value)  # a set or bytes cannot be a field
    return value


# ---- CSV and TSV


def delimiter_of(path: Path, text: str) -> str:
    """What separates the cells of a text that may be CSV; "" if it certainly is none.

    A file that is not named .csv, .tsv or .tab must have a header with usual names and rows of as
    many cells.
    """
    start = text[:_SNIFFED]
    match = re.match(r"sep=(.)\r?\n", start)
    if match and match.group(1) in _DELIMITERS:
        return match.group(1)
    named = named_table(path)
    best, most = "", (0, 0)
    for delimiter in _DELIMITERS:
        widths, names = _shape_of(start, delimiter)
        if not widths or widths[0] < 2 or not (named or _is_surely_a_table(widths, names)):
            continue
        rank = (len(names & _USUAL_NAMES), widths[0])
        if rank > most:
            best, most = delimiter, rank
    if not best and named:
        return "\t" if named == "TSV" else ","
    return best


def _is_surely_a_table(widths: list[int], names: set[str]) -> bool:
    """Whether a text whose first rows have so many cells cannot be anything else than a table."""
    usual = len(names & _USUAL_NAMES)
    if len(widths) == 1:
        return usual == len(names)
    agreeing = sum(width == widths[0] for width in widths)
    return agreeing >= 0.8 * len(widths) and (usual > 1 or usual >= 0.5 * len(names))


def named_table(path: Path) -> str:
    """ "CSV" or "TSV" if the file's name says so, else ""."""
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    if ".csv" in suffixes:
        return "CSV"
    return "TSV" if suffixes & {".tsv", ".tab"} else ""


def _shape_of(start: str, delimiter: str) -> tuple[list[int], set[str]]:
    """The number of cells of each of the first rows, and the names in the first one."""
    widths: list[int] = []
    names: set[str] = set()
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if not row:
                continue
            if not widths:
                names = {cell.strip().lower() for cell in row}
            widths.append(len(row))
            if len(widths) > 50:
                break
    except csv.Error:
        pass
    if len(start) >= _SNIFFED and len(widths) > 1:
        widths.pop()  # it may be cut
    return widths, names


def delimited_records(
    path: Path, file: TextIO, delimiter: str, columns: Mapping[str, str], notes: list[str]
) -> Iterator[dict[str, Any]]:
    """The records of CSV text with any delimiter, in order. `file` must not translate line ends.

    Raises:
        UserError: the header is none, or a quotation mark makes the cells doubtful.
    """
    rows = _rows(path, file, delimiter)
    first = next(rows, None)
    if first and first[0] == ["sep=", ""]:  # Excel's line that names the delimiter
        first = next(rows, None)
    if first is None:
        raise UserError(f"{path} is empty. Add records, or remove it from the list of files.")
    header = Header(path, first[1], first[0])
    yield from records_of_rows(header, rows, columns, notes)


def _rows(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """The rows that are not blank, each with its line."""
    quoting = csv.QUOTE_MINIMAL
    if delimiter == "\t" and not _quotes_close(file):
        quoting = csv.QUOTE_NONE
    reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=quoting)
    line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _bad_quotes(path, line, str(error)) from None
        if row is None:
            return
        if row:
            yield row, f"line {line}"
        line = reader.line_num + 1


def _quotes_close(file: TextIO) -> bool:
    """Whether the quotation marks of a text are those of CSV: programs differ for TSV."""
    if not file.seekable():
        return True
    reader = csv.reader(file, delimiter="\t", strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error:
        return False
    finally:
        file.seek(0)
    return True


def _bad_quotes(path: Path, line: int, error: str) -> UserError:
    if "field larger" in error or "unexpected end" in error:
        what = "a quotation mark is opened and not closed"
    elif "expected after" in error:
        what = "a quotation mark stands inside a quoted cell"
    else:
        what = f"it cannot be read as a row ({error})"
    return UserError(
        f'{path}, line {line}: {what}. Write two ("") for each one that belongs to the text.'
    )
