"""A file that holds no records is named for what it is, with a way out that can be followed."""

import io
import json
import pickle
import shlex
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinkersmith.errors import UserError
from tinkersmith.sources.records import read_records

GOOD = b'[{"instruction": "q", "output": "a"}]'


def zipped(*names: str, content: bytes = b"x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a.json")
        entry.size = len(GOOD)
        archive.addfile(entry, io.BytesIO(GOOD))
    return file.getvalue()


def database(folder: Path) -> bytes:
    file = folder / "x.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table t (a)")
    return file.read_bytes()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES = [
    ("page.json", b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page, which a"),
    ("page.csv", b"\n <html lang=en>\n<p>a,b</p>", "is an HTML page"),
    ("lfs.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
     "pointer of Git LFS to the file, and not the file. Fetch the file with: git lfs pull"),
    ("annex.json", b"../.git/annex/objects/x/y/SHA256-s1--0", "is a pointer of git-annex"),
    ("x.xlsx.json", b"PK\x03\x04\x14\x00", "is a zip archive or an Excel file that is cut off"),
    ("x.json", zipped("a.json", "b.json"), "is a zip archive with a.json, b.json. Unpack it"),
    ("x.json", zipped("word/document.xml"), "is a Word document"),
    ("x.json", zipped("ppt/a.xml"), "is a presentation"),
    ("x.pt", zipped("m/data.pkl", "m/data/0"), "is a file of PyTorch. It is not opened"),
    ("x.npz", zipped("a.npy", "b.npy"), "is a file of numpy arrays"),
    ("x.npy", array(), "is an array of numpy"),
    ("x.pkl", pickle.dumps([{"instruction": "q"}]), "is a Python pickle. It is not opened"),
    ("x.7z", b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
    ("x.rar", b"Rar!\x1a\x07\x00", "is a RAR archive"),
    ("x.tar", tarred(), "is a tar archive. Unpack it with: tar -xf "),
    ("x.pdf", b"%PDF-1.7\n%\xe2\xe3", "is a PDF document"),
    ("x.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument".encode("utf-16-le"),
     "is a Word document"),
    ("x.png", b"\x89PNG\r\n\x1a\n\x00", "is an image (PNG)"),
    ("x.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "is an image (JPEG)"),
    (".DS_Store", b"\x00\x00\x00\x01Bud1\x00", "is a .DS_Store file"),
    ("._x.json", b"\x00\x05\x16\x07\x00", "is a resource fork, which macOS writes"),
    ("fork.json", b"\x00\x05\x16\x07\x00", "is a resource fork, which macOS writes"),
    ("x.json.crdownload", GOOD, "is an unfinished download, as its name says"),
    ("x.json.part", GOOD, "rename it to x.json"),
    ("x.jsonl.aria2", b"\x00\x01", "is an unfinished download"),
    ("x.jsonl.incomplete", GOOD, "is an unfinished download"),
    ("key.json", b"-----BEGIN CERTIFICATE-----\nAAAA\n", "is a key or certificate (PEM)"),
    ("x.xml", b'<?xml version="1.0"?><a/>', "is an XML file"),
    ("x.json", b"<records>\n<r/></records>", "is an XML file"),
    ("x.yaml", b"- instruction: q\n  output: a\n", "is a YAML file. Write it"),
    ("x.json", b"---\n- instruction: q\n  output: a\n", "is a YAML file"),
    ("x.py", b"import json\n\nprint(json.dumps([]))\n", "is a program in Python"),
    ("x.md", b"# Title\n\nSome text.\n", "is a Markdown text"),
    ("x.txt", b"Once upon a time there was a fox.\n", "is plain text. Write records, one a line"),
    ("x.js", b'var data = [{"a": 1}];', "is JavaScript"),
    ("x.json", b"data = [{'a': 1}]", "is a program"),
    ("x.json", b"[{'instruction': 'q', 'output': 'a'}]", "is a list as Python prints it"),
    ("x.toml", b'[[samples]]\ninstruction = "q"\n', "is a TOML or INI file"),
    ("x.json", b'{"error": "Repository not found"}',
     'holds the answer of a server, and no records: "error" is "Repository not found"'),
    ("x.json", b'{"message": "Not Found", "status": 404}', 'the answer of a server'),
    ("x.ipynb", b'{"nbformat": 4, "cells": []}', "is a Jupyter notebook"),
    ("x.safetensors", (40).to_bytes(8, "little") + b'{"a": {"dtype": "F32"}}' + bytes(50),
     "is a model file (safetensors)"),
    ("x.json", bytes(500), "there are only NUL bytes, as a crash may leave them"),
    ("x.json", b"", "is empty"),
    ("x.csv", b"", "is empty"),
    ("x.parquet", b"", "is empty"),
    ("x.json", b'[{"instruction": "q", "output": "a"}, {"instru', "it ends too early"),
    ("x.lz4", b"\x04\x22\x4d\x18\x00", "is an lz4 file"),
    ("x.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "is a damaged zstd file"),
    ("x.parquet", b"PAR1" + bytes(40) + b"PAR1", "is a damaged Parquet file"),
    ("x.feather", b"FEA1\x00\x00", "is a Feather file of version 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "sentence"), FILES)
def test_each_kind_is_named_with_the_way_out(
    tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_records(file)
    said = str(caught.value)
    assert sentence in said
    assert said.startswith(str(file)) and "\n" not in said and said[-1] != ","


def test_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(database(tmp_path))
    with pytest.raises(UserError, match=r"is an SQLite database\. Export a table with: sqlite3"):
        read_records(tmp_path / "x.json")


def test_the_command_for_a_zip_archive_works(tmp_path: Path) -> None:
    (tmp_path / "two words.zip").write_bytes(zipped("a.json", content=GOOD))
    with pytest.raises(UserError) as caught:
        read_records(tmp_path / "two words.zip")
    command = shlex.split(str(caught.value).partition("Unpack it with: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert (tmp_path / "a.json").read_bytes() == GOOD


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("x.txt", b'{"instruction": "q", "output": "a"}\n' * 2, "JSON"),
        ("x.csv", GOOD, "JSON"),
        ("x.json", b"instruction,output\nq,a\nq,a\n", "CSV"),
        ("x.jsonl", b"instruction\toutput\nq\ta\nq\ta\n", "TSV"),
        ("x.tsv", b"instruction,output\nq,a\nq,a\n", "CSV"),
        ("x.xlsx", b"instruction,output\nq,a\nq,a\n", "CSV"),
    ],
)
def test_a_wrong_name_does_not_matter_and_is_said(
    tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    read = read_records(file)
    assert read.records[0] == {"instruction": "q", "output": "a"}
    assert read.notes == (f"Read {file} as {kind}, which it is, whatever its name says.",)


def test_no_note_is_made_where_name_and_content_agree(tmp_path: Path) -> None:
    for name, data in (
        ("x.json", GOOD),
        ("x.jsonl", b'{"instruction": "q", "output": "a"}'),
        ("x", GOOD),
        ("x.csv", b"instruction,output\nq,a\n"),
        ("x.tsv", b"instruction\toutput\nq\ta\n"),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_records(tmp_path / name).notes == ()


def test_an_object_with_records_is_not_taken_for_an_answer_of_a_server(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"instruction": "q", "output": "a", "error": "none"}))
    assert len(read_records(file).records) == 1


@pytest.mark.parametrize("name", ["x.md", "x.csv", "x.txt"])
@pytest.mark.parametrize(
    "text",
    [
        "| instruction | output |\n|---|:---:|\n| q | a |\n",
        "instruction | output\r\n--- | ---\r\nq | a\r\n",
    ],
)
def test_a_markdown_table_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(UserError, match="is a Markdown table"):
        read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"instruction": "q", "output": ' + "9" * 5000 + "}", "a number has too many digits"),
        ("\ufeff" + GOOD.decode()[1:-1], "a byte order mark, as a file begins with"),
    ],
)
def test_no_sentence_speaks_of_python(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "x.jsonl").write_text(f"{GOOD.decode()[1:-1]}\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"line 2.*{sentence}"):
        read_records(tmp_path / "x.jsonl")
