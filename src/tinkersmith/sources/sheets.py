"""Workbooks of Excel and OpenDocument -> records of the first sheet with a row below its names."""

import datetime as dt
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.sources.columnar import date_text, missing_library
from tinkersmith.sources.tables import Header, records_of_rows

_MOST_CELLS = 30_000_000  # a library holds each of them, filled or not
_SHOWN = 10  # names of sheets in a sentence
_PIECE = 1 << 20  # bytes of a sheet that are looked at at a time
_CELL = re.compile(rb'<(?:\w+:)?c\b[^>]*?\br="([A-Z]{1,3})(\d{1,7})"')
_REPEATED = re.compile(rb'table:number-(columns|rows)-repeated="(\d+)"')


def sheet_records(
    path: Path, data: bytes, columns: Mapping[str, str], notes: list[str], most: int
) -> Iterator[dict[str, Any]]:
    """The records of the first sheet with two filled rows, the first of which names the columns.

    Cells are text: numbers and dates as the sheet shows them, without its own formats.

    Args:
        most: bytes that the workbook may have after unpacking.

    Raises:
        UserError: the workbook is damaged, too large or empty, or python-calamine is missing.
    """
    try:
        import python_calamine as calamine
    except ImportError:
        raise missing_library(path, "Excel", "python-calamine") from None
    _refuse_bomb(path, data, most)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        sheets = {name: workbook.get_sheet_by_name(name) for name in workbook.sheet_names}
        filled = [name for name, sheet in sheets.items() if sheet.height and sheet.width]
        rows: list[list[Any]] = []
        taken, passed = "", ""
        for name in filled:
            rows = sheets[name].to_python(skip_empty_area=True)
            if sum(any(cell != "" for cell in row) for row in rows) > 1:
                taken = name
                break
            if rows and not passed:
                passed = name
        if not taken and passed:  # no sheet has more than one row
            taken = passed
            rows = sheets[taken].to_python(skip_empty_area=True)
        first_row = (sheets[taken].start or (0, 0))[0] + 1 if taken else 1
    except UserError:
        raise
    except BaseException as error:  # the library's own kinds, and a panic of its Rust code
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        what = "has a password" if "assword" in reason else f"is a damaged workbook ({reason})"
        raise UserError(f"{path} {what}. Save it again, without a password.") from None
    if not taken:
        raise UserError(f"{path} is a workbook without a filled cell. Add records.")
    others = [name for name in filled if name != taken]
    if others:
        notes.append(
            f'its sheet "{taken}" was read, and not its other filled sheets: {_listed(others)}. '
            "To read another one, save it as a file of its own"
        )
    while rows and all(cell == "" for cell in rows[0]):
        rows.pop(0)
        first_row += 1
    count = 0
    try:
        header = Header(
            path,
            f'sheet "{taken}", row {first_row}',
            [_text(cell) for cell in rows[0]],
            advice=f'The first row of the sheet "{taken}" must name all columns: delete what is '
            "above it.",
        )
        width = len(header.names)
        numbered = (
            ([_text(cell) for cell in row][: max(width, len(row))], f"row {number}")
            for number, row in enumerate(rows[1:], start=first_row + 1)
        )
        for record in records_of_rows(header, numbered, columns, notes):
            count += 1
            yield record
        if not count and others:
            raise UserError(f'{path}, sheet "{taken}" has no row below its first one.')
    except UserError as error:
        raise UserError(f"{error}{_other_sheets(others)}") from None


def _other_sheets(others: list[str]) -> str:
    """The sheets that were not read, as a sentence after another one."""
    if not others:
        return ""
    return (
        f" Other filled sheets: {_listed(others)}. To read one of them, save it as a file of its "
        "own."
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(one_line(name, 40) for name in names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _text(cell: Any) -> str:
    """A cell as the sheet shows it: 3 and not 3.0."""
    if isinstance(cell, str):
        return cell
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float):
        if math.isnan(cell):
            return ""
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(cell)
    if isinstance(cell, dt.datetime | dt.date | dt.time):
        return date_text(cell)
    return str(cell)


def _refuse_bomb(path: Path, data: bytes, most: int) -> None:
    """Raise UserError if opening the workbook would fill the memory."""
    if not data.startswith(b"PK"):
        return  # the old form is not packed, and has at most 65,536 rows of 256 cells
    size = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                is_sheet = re.match(r"xl/worksheets/.*\.xml$|content\.xml$", entry.filename)
                last_row = last_column = 1
                repeats = 1
                rest = b""
                with archive.open(entry) as file:
                    while piece := file.read(_PIECE):
                        size += len(piece)
                        if size > most:
                            raise UserError(
                                f"{path} unpacks to more than {most / 1e9:.1f} GB, which would not "
                                "fit into this machine's memory. Save it as CSV, in several files."
                            )
                        if not is_sheet:
                            continue
                        text = rest + piece
                        rest = text[-100:]
                        for letters, number in cast(
                            "list[tuple[bytes, bytes]]", _CELL.findall(text)
                        ):
                            last_row = max(last_row, int(number))
                            last_column = max(last_column, _column(letters))
                        for _, count in cast("list[tuple[bytes, bytes]]", _REPEATED.findall(text)):
                            repeats = max(repeats, int(count))
                if last_row * last_column > _MOST_CELLS:
                    raise UserError(
                        f"{path} has a cell in row {last_row:,} and one in column {last_column:,}: "
                        "too large a sheet for the memory. Delete the cells far out, or save it as "
                        "CSV."
                    )
                if repeats > 2 * 1_048_576:  # a sheet has so many rows at most
                    raise UserError(f"{path} is a damaged workbook. Save it again.")
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError):
        raise UserError(
            f"{path} is a damaged workbook: it cannot be unpacked. Save it again, without a "
            "password."
        ) from None
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is a damaged workbook ({error}). Save it again.") from None


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number
