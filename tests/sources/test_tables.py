"""CSV, TSV, Parquet, Arrow and workbooks become the records that JSON would hold."""

import datetime as dt
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.workbooks import ods_bytes, xls_bytes
from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Skipped, Source
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError
from tinkersmith.sources import records as records_module
from tinkersmith.sources.records import iterate_records, read_records
from tinkersmith.sources.tables import BadRow

pyarrow: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
feather: Any = pytest.importorskip("pyarrow.feather")
openpyxl: Any = pytest.importorskip("openpyxl")
pytest.importorskip("python_calamine")

MESSAGES = [{"role": "user", "content": '你好, "x"\nline'}, {"role": "assistant", "content": "a"}]
ROWS: list[dict[str, Any]] = [
    {"instruction": "two\nlines, and a comma", "output": 'He said "hi"', "topic": "中文 é"},
    {"instruction": "q", "input": " spaces ", "output": "1.50"},
]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def workbook(rows: list[list[Any]], *others: tuple[str, list[list[Any]]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for name, more in others:
        sheet = book.create_sheet(name)
        for row in more:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def both(path: Path) -> list[Any]:
    """The records, which are the same one by one."""
    read = read_records(path).records
    assert list(iterate_records(path)) == read
    return read


# ---- CSV and TSV


@pytest.mark.parametrize(
    "text",
    [
        'instruction,output\n"two\nlines","He said ""hi"""\n\nq,a\n',
        'instruction;output\r\n"two\nlines";"He said ""hi"""\r\nq;a',
        'instruction|output\n"two\nlines"|"He said ""hi"""\nq|a\n',
        'sep=;\ninstruction;output\n"two\nlines";"He said ""hi"""\nq;a\n',
        '\ufeffinstruction,output\n"two\nlines","He said ""hi"""\nq,a\n,\n',
        'instruction,output,,\n"two\nlines","He said ""hi""",,\nq,a,,\n',
    ],
)
def test_csv_of_any_delimiter_is_read(tmp_path: Path, text: str) -> None:
    file = written(tmp_path / "x.csv", text)
    expected = [
        {"instruction": "two\nlines", "output": 'He said "hi"'},
        {"instruction": "q", "output": "a"},
    ]
    assert both(file) == expected
    for name, packed in (
        ("x.csv.gz", gzip.compress(text.encode())),
        ("x.csv.zst", zstandard.compress(text.encode())),
    ):
        assert both(written(tmp_path / name, packed)) == expected


def test_tabs_separate_and_quotation_marks_may_be_those_of_the_text(tmp_path: Path) -> None:
    text = 'instruction\toutput\n"Hi" she said, twice\ta;b\n'
    assert both(written(tmp_path / "x.tsv", text)) == [
        {"instruction": '"Hi" she said, twice', "output": "a;b"}
    ]
    text = 'instruction\toutput\n"two\nlines"\ta\n'
    assert both(written(tmp_path / "x.tsv", text))[0]["instruction"] == "two\nlines"


def test_a_row_that_does_not_fit_is_a_bad_record_with_its_line(tmp_path: Path) -> None:
    text = 'instruction,output\n"a\nb",c\nq\nq,a,b\nq,a,\nlast,a\n'
    read = both(written(tmp_path / "x.csv", text))
    bad = [row.reason for row in read if isinstance(row, BadRow)]
    assert bad == [
        "line 4 has 1 cell, but the table has 2 columns. Check its quotation marks and separators.",
        "line 5 has 3 cells, but the table has 2 columns. Check its quotation marks and "
        "separators.",
    ]
    assert [row["instruction"] for row in read] == ["a\nb", "q", "q", "q", "last"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("instruction,output,output\nq,a,b\n", 'line 1 names the column "output" twice'),
        ("instruction,,output\nq,x,b\n", 'column 2 has no name, but line 2 has "x" in it'),
        ("7,8\n9,10\n", 'line 1 must name the columns, but "7" looks like data'),
        ("x" * 150 + ",b\n9,10\n", "looks like data. Add a first line with names"),
        (",\n9,10\n", "line 1 must name the columns"),
        ("instruction,output\n", "holds no record"),
        ('a,b\nq,"x\ny\n', "line 2: a quotation mark is opened and not closed"),
        ('a,b\nq,a\nq,"x"y\n', "line 3: a quotation mark stands inside a quoted cell"),
        ("\n\n", "is empty"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused_with_the_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = written(tmp_path / "x.csv", text)
    with pytest.raises(UserError) as caught:
        read_records(file)
    assert str(caught.value).startswith(str(file)) and sentence in str(caught.value)


def test_the_row_numbers_of_pandas_are_left_out_and_said(tmp_path: Path) -> None:
    file = written(tmp_path / "x.csv", ",instruction,output\n0,q,a\n1,r,b\n")
    read = read_records(file)
    assert read.records[1] == {"instruction": "r", "output": "b"}
    assert "its first column has no name and holds numbers of rows" in read.notes[0]


@pytest.mark.parametrize("dump", [json.dumps, repr, lambda x: json.dumps(x, ensure_ascii=False)])
def test_cells_that_hold_lists_are_parsed(tmp_path: Path, dump: Any) -> None:
    cell = dump(MESSAGES).replace('"', '""')
    file = written(tmp_path / "x.csv", f'messages,output\n"{cell}","[1]"\n')
    assert both(file) == [{"messages": MESSAGES, "output": "[1]"}]
    file = written(tmp_path / "y.csv", f'chat\n"{cell}"\n')
    assert read_records(file, columns={"messages": "chat"}).records == [{"chat": MESSAGES}]


def test_a_cell_that_only_begins_like_a_list_is_a_bad_record(tmp_path: Path) -> None:
    file = written(tmp_path / "x.csv", 'messages\n"[{""role"": "\n"plain"\n')
    bad, plain = both(file)
    assert bad.reason.startswith('"messages" in line 2 begins like JSON, but is none')
    assert plain == {"messages": "plain"}


def test_a_huge_cell_is_read_and_one_without_end_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "x.csv", 'a,b\nq,"' + "x" * 500_000 + '"\n')
    assert len(both(file)[0]["b"]) == 500_000


# ---- Parquet and Arrow

COLUMNS = {
    "instruction": ["q", "r", None],
    "output": ["a", "b", "c"],
    "messages": [MESSAGES, None, [{"role": "user", "content": "x", "name": "n"}]],
    "score": [1.5, float("nan"), 2.0],
    "count": [3, None, 2**62],
    "day": [dt.date(2024, 1, 5), None, dt.date(2024, 2, 1)],
    "at": [dt.datetime(2024, 1, 5, 3, 4), None, dt.datetime(2024, 1, 5)],
    "raw": [b"text", None, b"\xff\x00"],
    "flag": [True, False, None],
}
AS_JSON: list[dict[str, Any]] = [
    {"instruction": "q", "output": "a", "messages": MESSAGES, "score": 1.5, "count": 3,
     "day": "2024-01-05", "at": "2024-01-05 03:04:00", "raw": "text", "flag": True},
    {"instruction": "r", "output": "b", "flag": False},
    {"output": "c", "messages": [{"role": "user", "content": "x", "name": "n"}], "score": 2.0,
     "count": 2**62, "day": "2024-02-01", "at": "2024-01-05", "raw": "/wA="},
]  # fmt: skip


def column_file(folder: Path, kind: str) -> Path:
    table = pyarrow.table(COLUMNS)
    file = folder / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(table, file, row_group_size=2)
    elif kind == "feather":
        feather.write_feather(table, str(file))
    elif kind == "arrow":
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as w:
            w.write_table(table)
    else:
        with (
            pyarrow.OSFile(str(file), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table)
    return file


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow", "stream"])
def test_columns_become_the_records_that_json_would_hold(tmp_path: Path, kind: str) -> None:
    file = column_file(tmp_path, kind)
    read = read_records(file)
    assert read.records == AS_JSON
    assert list(iterate_records(file)) == AS_JSON
    json.dumps(read.records)
    assert read.notes == (f"{file}: bytes in raw that are no text were written as base64.",)


def test_maps_dictionaries_and_json_in_columns_are_read(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "meta": pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
            "instruction": pyarrow.array(["q"]).dictionary_encode(),
            "messages": [json.dumps(MESSAGES)],
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    assert both(tmp_path / "x.parquet") == [
        {"meta": {"k": "v"}, "instruction": "q", "messages": MESSAGES}
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_a_damaged_or_cut_file_is_a_sentence(tmp_path: Path, kind: str) -> None:
    data = column_file(tmp_path, kind).read_bytes()
    for damaged in (data[: len(data) // 2], data[:8], data[:60] + b"\xff" * 40 + data[100:]):
        file = written(tmp_path / f"y.{kind}", damaged)
        try:
            read_records(file)
        except UserError as error:
            assert str(error).startswith(f"{file} is a damaged ")
            assert "\n" not in str(error)


def test_a_parquet_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "most_bytes", lambda: 50_000_000)
    values = pyarrow.array(["x" * 10_000]).take(pyarrow.array([0] * 20_000))  # 200 MB
    file = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"instruction": values, "output": values}), file)
    assert file.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"holds more than 0 GB.*convert .*bomb\.parquet"):
        read_records(file)


# ---- workbooks


def test_a_workbook_gives_text_as_the_sheet_shows_it(tmp_path: Path) -> None:
    data = workbook(
        [
            ["instruction", "output", "n", "day", "flag", "empty"],
            ["q", 3, 3.5, dt.datetime(2024, 1, 5), True, None],
            [None] * 6,
            [" spaces ", "two\nlines", 1e-7, dt.datetime(2024, 1, 5, 3, 4), False, None],
        ]
    )
    read = read_records(written(tmp_path / "x.xlsx", data))
    assert read.records == [
        {"instruction": "q", "output": "3", "n": "3.5", "day": "2024-01-05", "flag": "TRUE"},
        {"instruction": " spaces ", "output": "two\nlines", "n": "1e-07",
         "day": "2024-01-05 03:04:00", "flag": "FALSE"},
    ]  # fmt: skip
    assert read.notes == ()


def test_the_first_filled_sheet_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    rows = [["instruction", "output"], ["q", "a"]]
    data = workbook([], ("Data", rows), ("More", rows), ("Empty", []))
    read = read_records(written(tmp_path / "x.xlsx", data))
    assert len(read.records) == 1
    assert read.notes == (
        f'{tmp_path / "x.xlsx"}: its sheet "Data" was read, and not its other filled sheets: More. '
        "To read another one, save it as a file of its own.",
    )


GOOD_SHEET = ("Data", [["question", "answer"], ["你好?", "two\nlines"], ["r", 3], ["s", 2.5]])
FORMS: dict[str, Any] = {
    "x.xlsx": lambda *sheets: workbook([], *sheets),
    "x.ods": ods_bytes,
    "x.xls": xls_bytes,
}


@pytest.mark.parametrize("name", FORMS)
def test_each_kind_of_workbook_gives_the_same_records(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / name, FORMS[name](GOOD_SHEET))
    read = read_records(file)
    assert read.records == [
        {"question": "你好?", "answer": "two\nlines"},
        {"question": "r", "answer": "3"},
        {"question": "s", "answer": "2.5"},
    ]
    assert read.notes == ()
    assert [sample.output for sample in load_samples([str(file)]).samples] == [
        *("two\nlines", "3", "2.5")
    ]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("first", [[["question", "answer"]], [["Our data, see sheet 2"]]])
def test_a_sheet_of_one_row_is_no_table_and_the_next_one_is_read(
    tmp_path: Path, name: str, first: list[list[Any]]
) -> None:
    file = written(tmp_path / name, FORMS[name](("Cover", first), GOOD_SHEET))
    read = read_records(file)
    assert len(read.records) == 3
    [note] = read.notes
    assert 'its sheet "Data" was read, and not its other filled sheets: Cover.' in note


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        ([["Author", "Ann"], ["Date", "today"], ["Rows", "2"]], "Not one of 2 records can be used"),
        ([["question", "answer"], ["q", None]], '"answer" is missing beside "question"'),
        ([["Our data"], ["question", "answer"], ["q", "a"]], "must name all columns"),
        ([["a", "a"], ["q", "a"]], 'names the column "a" twice'),
        ([[1, 2], [3, 4]], 'must name the columns, but "1" looks like data'),
    ],
)
def test_where_the_first_sheet_has_no_usable_record_the_others_are_named(
    tmp_path: Path, name: str, first: list[list[Any]], sentence: str
) -> None:
    file = written(tmp_path / name, FORMS[name](("Cover", first), GOOD_SHEET, ("More", first)))
    with pytest.raises(UserError) as caught:
        load_samples([str(file)])
    text = str(caught.value)
    assert sentence in text and text.count("ther filled sheets: Data, More. To read") == 1
    assert text.endswith("save it as a file of its own.")


@pytest.mark.parametrize("name", ["x.ods", "x.xls"])
def test_a_damaged_workbook_of_another_kind_is_a_sentence(tmp_path: Path, name: str) -> None:
    data = FORMS[name](GOOD_SHEET)
    for place in range(0, len(data), 61):
        damaged = data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]
        file = written(tmp_path / name, damaged)
        try:
            read_records(file)
        except UserError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "is a workbook without a filled cell"),
        ([["instruction", "output"]], "holds no record"),
        ([["a", "a"], ["q", "a"]], 'sheet "Sheet", row 1 names the column "a" twice'),
        ([[None, "x"], [1.5, 2]], "column 1 has no name, but row 2 has"),
    ],
)
def test_a_sheet_that_is_no_table_is_refused(
    tmp_path: Path, rows: list[list[Any]], sentence: str
) -> None:
    file = written(tmp_path / "x.xlsx", workbook(rows))
    with pytest.raises(UserError) as caught:
        read_records(file)
    assert sentence in str(caught.value)


def test_workbooks_that_would_fill_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = openpyxl.Workbook()
    book.active["A1"], book.active["XFD1048576"] = "instruction", "far out"
    book.save(tmp_path / "far.xlsx")
    with pytest.raises(UserError, match="a cell in row 1,048,576 and one in column 16,384"):
        read_records(tmp_path / "far.xlsx")
    monkeypatch.setattr(records_module, "most_bytes", lambda: 1_000_000)
    whole = workbook([["instruction"], ["q"]])
    file = io.BytesIO(whole)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/bomb.xml", b" " * 20_000_000)
    with pytest.raises(UserError, match=r"unpacks to more than 0\.0 GB"):
        read_records(written(tmp_path / "bomb.xlsx", file.getvalue()))


def test_a_damaged_workbook_is_a_sentence(tmp_path: Path) -> None:
    data = workbook([["instruction", "output"], ["q", "a"]])
    for place in range(0, len(data), 97):
        damaged = data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]
        file = written(tmp_path / "x.xlsx", damaged)
        try:
            read_records(file)
        except UserError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)


# ---- without the libraries


@pytest.mark.parametrize(
    ("name", "library"), [("x.parquet", "pyarrow"), ("x.xlsx", "python_calamine")]
)
def test_without_its_library_a_file_says_how_to_install_it(
    tmp_path: Path, name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "x.xlsx":
        written(tmp_path / name, workbook([["instruction"], ["q"]]))
    else:
        column_file(tmp_path, "parquet")
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=r"Install it with: pip install 'tinkersmith\[tables\]'"):
        read_records(tmp_path / name)


def test_a_title_above_the_header_of_a_sheet_is_told(tmp_path: Path) -> None:
    rows = [["Our data"], ["instruction", "output"], ["q", "a"]]
    read = read_records(written(tmp_path / "x.xlsx", workbook(rows)))
    checked = check_record(read.records[0], Source("x.xlsx", 1))
    assert isinstance(checked, Skipped)
    assert 'The first row of the sheet "Sheet" must name all columns' in str(checked)
    assert "quotation" not in str(checked)
