"""Every shape in every kind of file is read the same, and converting it loses nothing."""

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.processes import PATIENCE, eventually
from tinkersmith.cli.main import main
from tinkersmith.data import convert as convert_module
from tinkersmith.data.convert import convert
from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Sample
from tinkersmith.progress import Progress

PROGRESS = Progress(lambda line: None)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT = [
    {"role": "system", "content": "系统"},
    {"role": "user", "content": 'Frage: für "später",\nnächste Zeile'},
    {"role": "assistant", "content": "a", "reasoning_content": "hm", "weight": 0},
    {"role": "user", "content": "and then?", "input": "17:00"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "name": "f", "tool_call_id": "c1"},
    {"role": "assistant", "content": "b"},
]
# Two records of each shape; all extra fields are texts, as tables have them.
SHAPES: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": "翻译", "input": "一,\n\"二\"", "output": "one\n\ntwo", "topic": "é"},
        {"instruction": " q ", "output": "a", "system": "s"},
    ],
    "history": [
        {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"], ["q1", "a1"]]},
        {"instruction": "q", "output": "a", "history": [["q0", "a0"]]},
    ],
    "messages": [
        {"messages": CHAT, "tools": [TOOL], "topic": "t"},
        {"messages": CHAT[1:2] + CHAT[6:]},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
         "id": "x"},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q2"},
                           {"from": "gpt", "value": "b"}], "id": "y"},
    ],
    "prompt_completion": [
        {"prompt": "你好", "completion": "好", "id": "1"},
        {"prompt": "p", "completion": "c", "id": "2"},
    ],
    "question_answer": [
        {"question": "q", "answer": "a", "level": "1"},
        {"question": "r", "answer": "b", "level": "2"},
    ],
    "dolly": [
        {"instruction": "q", "context": "c", "response": "a", "category": "x"},
        {"instruction": "r", "context": "d", "response": "b", "category": "y"},
    ],
    "chinese": [
        {"指令": "翻译", "输入": "一", "输出": "one"},
        {"指令": "q", "输入": "i", "输出": "o"},
    ],
    "text": [{"text": "all of it\n\n"}, {"text": "一段文字", "source": "b"}],
}  # fmt: skip


def flat(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The records as tables have them: lists are JSON in a cell."""
    return [
        {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in record.items()
        }
        for record in records
    ]


def as_csv(records: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    rows = flat(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    names = dict.fromkeys(name for record in records for name in record)
    # Lists of several kinds do not fit into one column; such a file holds them as JSON.
    rows = flat(records) if any("history" in record for record in records) else records
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def as_workbook(records: list[dict[str, Any]]) -> bytes:
    openpyxl: Any = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    rows = flat(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    book = openpyxl.Workbook()
    book.active.append(names)
    for row in rows:
        book.active.append([row.get(name) for name in names])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def as_json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


KINDS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "x.jsonl": as_lines,
    "x.json.gz": lambda records: gzip.compress(as_json(records)),
    "x.jsonl.zst": lambda records: zstandard.compress(as_lines(records)),
    "x.csv": as_csv,
    "x.tsv": lambda records: as_csv(records, "\t"),
    "x.csv.gz": lambda records: gzip.compress(as_csv(records)),
    "x.parquet": as_parquet,
    "x.xlsx": as_workbook,
    "utf16.json": lambda records: as_json(records).decode().encode("utf-16"),
    "gb18030.jsonl": lambda records: as_lines(records).decode().encode("gb18030"),
    "utf16.csv": lambda records: as_csv(records).decode().encode("utf-16"),
}


def without_place(samples: list[Sample]) -> list[Any]:
    return [(sample.turns, sample.tools, sample.extra) for sample in samples]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_read_the_same_from_each_kind_of_file_and_survives_conversion(
    tmp_path: Path, shape: str, kind: str
) -> None:
    plain = tmp_path / "plain.json"
    plain.write_bytes(as_json(SHAPES[shape]))
    expected = load_samples([str(plain)])
    assert (len(expected.samples), expected.skipped) == (2, [])
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](SHAPES[shape]))
    encoding = "gb18030" if kind.startswith("gb18030") else "auto"
    read = load_samples([str(file)], encoding=encoding)
    assert without_place(read.samples) == without_place(expected.samples)
    assert [sample.shape for sample in read.samples] == [s.shape for s in expected.samples]
    out = tmp_path / "out.jsonl"
    convert([str(file)], out, encoding=encoding, progress=PROGRESS)
    again = load_samples([str(out)])
    assert without_place(again.samples) == without_place(expected.samples)
    assert not out.with_name("out.skipped.jsonl").exists()


def test_large_files_are_converted_as_small_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record for shape in ("alpaca", "messages") for record in SHAPES[shape]] * 50
    for kind, write in KINDS.items():
        if kind.startswith(("utf16", "gb18030")) or "csv" in kind or "tsv" in kind:
            continue
        (tmp_path / kind).write_bytes(write(records))
        whole, streamed = tmp_path / "whole.jsonl", tmp_path / "streamed.jsonl"
        convert([str(tmp_path / kind)], whole, force=True, progress=PROGRESS)
        with monkeypatch.context() as patch:
            patch.setattr(convert_module, "_WHOLE_AT_MOST", 0)
            convert([str(tmp_path / kind)], streamed, force=True, progress=PROGRESS)
        assert streamed.read_bytes() == whole.read_bytes()


def test_a_field_that_would_mean_something_else_is_renamed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"q": "question", "a": "answer", "instruction": "other", "output": "too", "n": 2**70}
    Path("x.json").write_text(json.dumps([record]))
    assert (
        main(["convert", "x.json", "--out", "y.jsonl", "--columns", "instruction=q,output=a"]) == 0
    )
    written = json.loads(Path("y.jsonl").read_text())
    assert written == {
        "instruction": "question",
        "output": "answer",
        "original_instruction": "other",
        "original_output": "too",
        "n": 2**70,
    }
    assert 'Renamed "output" of 1 sample to "original_output"' in capsys.readouterr().out


def test_skipped_records_are_counted_named_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("instruction,output\nq,a\nq\nr,b\n")
    Path("good.json").write_text('[{"instruction": "q", "output": "a"}]')
    assert main(["convert", "x.csv", "good.json", "--out", "y.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "Skipped 1 record, listed in y.skipped.jsonl" in said
    assert "x.csv, record 2: line 3 has 1 cell, but the table has 2 columns" in said
    assert said.splitlines()[-1] == "Wrote 3 samples to y.jsonl"
    [listed] = [json.loads(line) for line in Path("y.skipped.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["record"]) == ("x.csv", 2)
    assert main(["convert", "good.json", "--out", "y.jsonl"]) == 1
    assert "y.jsonl exists already" in capsys.readouterr().err
    assert main(["convert", "good.json", "--out", "y.jsonl", "--force"]) == 0
    assert not Path("y.skipped.jsonl").exists()  # it told of another output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x.json", "--out", "y.json"], "give it a name that ends in .jsonl"),
        (["x.json", "--out", "x.jsonl"], "Not one of 1 record can be used"),
        (["a.jsonl", "--out", "a.jsonl", "--force"], "is an input and an output"),
        (["a.jsonl", "--out", "y.jsonl", "--columns", "question"], "--columns OURS=THEIRS"),
        (["a.jsonl", "--out", "y.jsonl", "--encoding", "klingon"], "which is no encoding"),
        (["a.jsonl", "--out", "y.jsonl", "--set", "SEED=1"], "has no effect on this command"),
        (["nowhere.json", "--out", "y.jsonl"], "does not exist"),
        (["a.jsonl", "--out", "folder.jsonl"], "is a folder"),
    ],
)
def test_a_conversion_that_cannot_be_leaves_nothing_behind(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text('[{"instruction": "q"}]')
    Path("a.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    Path("folder.jsonl").mkdir()
    before = sorted(Path().iterdir())
    assert main(["convert", *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before
    assert Path("a.jsonl").read_text() == '{"instruction": "q", "output": "a"}\n'


def test_a_guessed_encoding_is_said_by_conversion_and_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"instruction": "请把下面的句子翻译成英文。", "output": "今天天气很好。"}
    Path("x.json").write_bytes(json.dumps([record], ensure_ascii=False).encode("gbk"))
    sentence = 'Read x.json as GB18030, which it seems to be; set ENCODING = "gb18030" to be sure.'
    assert load_samples(["x.json"]).said == [sentence]
    assert main(["convert", "x.json", "--out", "y.jsonl"]) == 0
    assert sentence in capsys.readouterr().out
    assert json.loads(Path("y.jsonl").read_text(encoding="utf-8")) == record


def test_each_sample_of_a_real_question_keeps_its_place(tmp_path: Path) -> None:
    """The record that is written is that of the sample, so one is never mixed with the next."""
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"instruction": f"q {n}", "output": f"a {n}"} for n in range(500)]))
    out = tmp_path / "y.jsonl"
    convert([str(file)], out, progress=PROGRESS)
    here, there = (load_samples([str(path)]).samples for path in (file, out))
    assert [
        replace(sample, source=other.source) for sample, other in zip(here, there, strict=True)
    ] == there


def test_numbers_that_json_lacks_are_written_as_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text(
        '{"instruction": "NaN?", "output": "a", "n": [NaN, -Infinity]}\n'
        '{"instruction": "NaN!", "output": "b"}\n'
    )
    assert main(["convert", "x.jsonl", "--out", "y.jsonl"]) == 0
    first, second = Path("y.jsonl").read_text().splitlines()
    assert json.loads(first) == {"instruction": "NaN?", "output": "a", "n": [None, None]}
    assert json.loads(second)["instruction"] == "NaN!"
    assert "numbers of 1 sample as null" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_conversion_that_is_stopped_leaves_no_temporary_file(
    tmp_path: Path, number: signal.Signals
) -> None:
    record = json.dumps({"instruction": "q" * 20, "output": "a" * 100}) + "\n"
    (tmp_path / "x.jsonl").write_text(record * 100_000)
    command = [sys.executable, "-m", "tinkersmith", "convert", "x.jsonl", "--out", "y.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as converting:
        assert eventually(lambda: list(tmp_path.glob(".*.tmp")) or converting.poll() is not None)
        converting.send_signal(number)
        _, said = converting.communicate(timeout=PATIENCE)
    assert converting.returncode == 128 + number and b"Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    assert main(["convert", "", "--out", "y.jsonl"]) == 1
    assert "name of a data file is empty" in capsys.readouterr().err
