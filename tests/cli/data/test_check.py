"""`tinkersmith check` on files: what it prints, what it writes, and what it refuses."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.support.strict_models import MIXED, REASON, strict_tokenizer
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.cli.main import main

GOOD = [
    {"instruction": "Name the capital of France.", "output": "Paris is the capital.", "id": 1},
    {"instruction": "Name the capital of Italy.", "output": "Rome is the capital.", "id": 2},
    {"instruction": "法国的首都是哪里？", "output": "巴黎。", "id": 3, "large": 2**70},
]
LONG = "The tides follow the moon, which pulls at the water of the sea, day after day. " * 3
BAD = [
    {"instruction": "Why are there tides?", "output": LONG, "id": 4},
    {"instruction": "Why are there tides?", "output": LONG.replace("day after", "year after")},
    {"instruction": "Name the capital of France.", "output": "Paris is the capital.", "id": 6},
    {"instruction": "Do it.", "output": "As an AI language model, I cannot do it.", "id": 7},
    {"instruction": "Name the capital of Italy.", "output": "Milan is the capital.", "id": 8},
]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, records: list[Any]) -> None:
    Path(name).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def lines(name: str) -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["check", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: ") and shown.err.count("\n") == 1
    return shown.err


def test_what_is_read_lengths_and_findings_are_printed_in_this_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("data.json", [*GOOD, *BAD, {"instruction": "No answer."}])
    assert main(["check", "data.json"]) == 0
    shown = capsys.readouterr().out
    places = [
        shown.index(words)
        for words in (
            "Read 8 samples from data.json",
            "data.json, record 9",
            "Lengths: 8 samples,",
            "Found 5 things to look at, in 4 of 8 samples; all are listed in check_findings.jsonl",
            "exact-duplicates: 1",
            "record 6: equals data.json, record 1",
            "near-duplicates: 1 in 1 cluster",
            "contradictions: 2",
            "refusals: 1",
            "Found none of: empty-answers, ",
        )
    ]
    assert places == sorted(places)
    listed = lines("check_findings.jsonl")
    assert [(line["kind"], line["record"]) for line in listed] == [
        ("exact-duplicates", 6),
        ("near-duplicates", 5),
        ("contradictions", 5),
        ("contradictions", 8),
        ("refusals", 7),
    ]


def test_many_findings_are_ten_lines_and_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    write("data.json", [{**GOOD[0], "output": f"Yes {n}.<|im_end|>"} for n in range(500)])
    assert main(["check", "data.json", "--out", "all.jsonl"]) == 0
    shown = capsys.readouterr().out
    section = shown[shown.index("control-tokens: 500") :].split("\n\n")[0].splitlines()
    assert len(section) == 12 and section[-1] == "  ... and 490 more"
    assert len(shown.splitlines()) < 70
    assert sum(line["kind"] == "control-tokens" for line in lines("all.jsonl")) == 500
    assert not Path("check_findings.jsonl").exists()


def test_sound_data_has_no_list_and_replaces_the_one_of_an_earlier_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("good.json", GOOD)
    write("bad.json", BAD)
    assert main(["check", "good.json"]) == 0
    assert "Found nothing: looked for exact-duplicates, " in capsys.readouterr().out
    assert not Path("check_findings.jsonl").exists()
    assert main(["check", "bad.json"]) == 0
    assert lines("check_findings.jsonl")
    assert main(["check", "good.json"]) == 0
    assert lines("check_findings.jsonl") == []


@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz"])
def test_a_clean_file_has_all_other_records_as_they_are(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [*GOOD, *BAD, {"instruction": "No answer."}]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    if form == "json":
        write("data.json", records)
    elif form == "jsonl":
        Path("data.jsonl").write_text(text, encoding="utf-8")
    else:
        Path("data.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    drop = ["--drop", "near-duplicates,Refusals", "--drop", "exact_duplicates"]
    assert main(["check", f"data.{form}", "--write", "clean.jsonl", *drop]) == 0
    shown = capsys.readouterr().out
    assert lines("clean.jsonl") == [*GOOD, BAD[0], BAD[4]]
    assert "Wrote 5 records to clean.jsonl: of 9 read, 3 left out and 1 that cannot be" in shown
    counts = re.findall(r"^  (near-duplicates|refusals|exact-duplicates): (\d+)$", shown, re.M)
    assert counts == [("near-duplicates", "1"), ("refusals", "1"), ("exact-duplicates", "1")]
    assert main(["check", "clean.jsonl"]) == 0
    assert [line["kind"] for line in lines("check_findings.jsonl")] == ["contradictions"]


def test_a_record_of_several_kinds_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    twice = {"instruction": "Do it.", "output": "As an AI language model, I cannot.<|im_end|>"}
    write("data.json", [*GOOD, twice])
    drop = ["--drop", "control-tokens,refusals", "--write", "clean.jsonl"]
    assert main(["check", "data.json", *drop]) == 0
    shown = capsys.readouterr().out
    assert "of 4 read, 1 left out" in shown
    assert "  control-tokens: 1\n  refusals: 0\n" in shown


def test_dropping_contradictions_leaves_out_both_answers() -> None:
    write("data.json", [*GOOD, BAD[4]])
    drop = ["--drop", "contradictions", "--write", "clean.jsonl"]
    assert main(["check", "data.json", *drop]) == 0
    assert [record["id"] for record in lines("clean.jsonl")] == [1, 3]
    assert "Milan is" in lines("check_findings.jsonl")[0]["reason"]


def test_test_data_is_compared_and_its_leaks_can_be_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("data.json", GOOD)
    write("test.json", [{"instruction": "name the capital of  ITALY.", "output": "?"}])
    drop = ["--test", "test.json", "--drop", "leakage", "--write", "clean.jsonl"]
    assert main(["check", "data.json", *drop]) == 0
    shown = capsys.readouterr().out
    assert "leakage: 1" in shown
    assert "data.json, record 2: asks what test.json, record 1 asks" in shown
    assert [record["id"] for record in lines("clean.jsonl")] == [1, 3]


def test_without_files_those_of_config_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    write("train.json", GOOD)
    write("valid.json", GOOD[:1])
    Path("config.py").write_text(
        'DATA_FILES = ["train.json"]\nVALIDATION_FILES = ["valid.json"]\nSEED = 5\n'
    )
    assert main(["check"]) == 0
    shown = capsys.readouterr().out
    assert "Read 3 samples from train.json" in shown
    assert "record 1: asks what valid.json, record 1 asks" in shown
    assert main(["check", "--set", "VALIDATION_FILES=[]"]) == 0
    assert "leakage, which needs test data" in capsys.readouterr().out
    write("asked.json", GOOD[1:2])
    assert main(["check", "--set", "VALIDATION_FILES=[]", "--set", "EVAL_FILES=asked.json"]) == 0
    assert "record 2: asks what asked.json, record 1 asks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--threshold", "0.2"], "--threshold is 0.2; it must be between 0.5 and 1"),
        (["--threshold", "nan"], "--threshold is nan"),
        (["--drop", "refusals"], "--drop needs --write FILE"),
        (["--write", "clean.jsonl"], "--write needs --drop"),
        (["--write", "clean.jsonl", "--drop", "near"], '"near" is no kind of finding.'),
        (["--write", "clean.jsonl", "--drop", "refusal"], "Did you mean refusals? The kinds are:"),
        (["--write", "clean.json", "--drop", "refusals"], "a name that ends in .jsonl"),
        (["--write", "data.jsonl", "--drop", "refusals"], "is an input and an output"),
        (["--write", "old.jsonl", "--drop", "refusals"], "old.jsonl exists. Name another file"),
        (["--write", "a.jsonl", "--drop", "refusals", "--out", "a.jsonl"], "Name two files"),
        (["--write", "clean.jsonl", "--drop", "leakage"], "needs test data"),
        (["--out", "old.jsonl"], "old.jsonl exists and is no list of findings"),
        (["--out", "."], "is a folder"),
        (["--test", "none.json"], "none.json does not exist"),
        (["--test", "./data.jsonl"], "data.jsonl is named as data and as test data"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data.jsonl").write_text("\n".join(map(json.dumps, [*GOOD, *BAD])))
    Path("old.jsonl").write_text('{"mine": 1}\n')
    before = sorted(os.listdir())
    assert expected in error_of(["data.jsonl", *arguments], capsys)
    assert sorted(os.listdir()) == before
    assert Path("old.jsonl").read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "d.jsonl"],
        ["--out", "../here/d.jsonl"],
        ["--out", "link.jsonl"],
        ["--test", "t.jsonl", "--out", "t.jsonl"],
        ["--test", "t.jsonl", "--write", "t.jsonl", "--drop", "refusals"],
        ["--config", "c.json", "--out", "c.json"],
    ],
)
def test_no_output_overwrites_an_input(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("d.jsonl").write_text("\n".join(map(json.dumps, BAD)))
    Path("t.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    Path("c.json").write_text('{"SEED": 1}')
    os.link("d.jsonl", "link.jsonl")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert "is an input and an output" in error_of(["d.jsonl", *arguments, "--force"], capsys)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_clean_file_without_a_record_is_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("data.json", [BAD[3]])
    drop = ["--write", "clean.jsonl", "--drop", "refusals"]
    assert "clean.jsonl would hold no record" in error_of(["data.json", *drop], capsys)
    assert not Path("clean.jsonl").exists()


def test_force_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    write("data.json", [*GOOD, *BAD])
    Path("clean.jsonl").write_text("mine")
    drop = ["--write", "clean.jsonl", "--drop", "refusals", "--force"]
    assert main(["check", "data.json", *drop]) == 0
    assert len(lines("clean.jsonl")) == 7


def test_a_folder_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    write("data.json", BAD)
    Path("file").write_text("")
    assert "cannot be written" in error_of(["data.json", "--out", "file/list.jsonl"], capsys)


def test_the_threshold_and_the_seed_decide(capsys: pytest.CaptureFixture[str]) -> None:
    write("data.json", BAD[:2])
    for threshold, count in (("0.8", 1), ("1", 0)):
        assert main(["check", "data.json", "--threshold", threshold, "--seed", "7"]) == 0
        listed = lines("check_findings.jsonl") if Path("check_findings.jsonl").exists() else []
        assert sum(line["kind"] == "near-duplicates" for line in listed) == count


def test_stats_prints_lengths_alone_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("data.json", BAD)
    assert main(["stats", "data.json"]) == 0
    shown = capsys.readouterr().out
    assert "Lengths: 5 samples" in shown and "refusals" not in shown
    assert os.listdir() == ["data.json"]


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "tinkersmith", "check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_a_check_imports_no_torch_transformers_or_tinker() -> None:
    write("data.json", [*GOOD, *BAD])
    assert imported_by("data.json").isdisjoint({"torch", "transformers", "tinker"})
    assert imported_by("--help").isdisjoint({"numpy", "scipy", "datasketch", "pydantic"})


@pytest.mark.parametrize("command", ["check", "stats"])
def test_records_that_the_template_refuses_are_counted_and_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(strict_tokenizer(tmp_path / "strict"))
    write("mixed.json", MIXED)
    assert main([command, "mixed.json", "--base-model", model, "--template", "chat"]) == 0
    shown = capsys.readouterr().out
    assert "Lengths: 2 samples" in shown
    assert "2 samples will be skipped, with nothing to train on:" in shown
    for record in (2, 4):
        assert f"mixed.json, record {record}: the model's chat template refuses" in shown
    assert REASON.rstrip(".") in shown


def test_tokenizer_counts_for_a_model_that_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "nothing-cached")
    write("data.json", GOOD)
    make_tiny_tokenizer(Path("its-tokenizer"))
    named = ["--set", "TOKENIZER=its-tokenizer"]
    for command in ("check", "stats"):
        assert main([command, "data.json", "--base-model", "some-org/some-model"]) == 0
        assert "TOKENIZER names a folder with its tokenizer.json" in capsys.readouterr().out
        Path("check_findings.jsonl").unlink(missing_ok=True)
        assert main([command, "data.json", "--base-model", "some-org/some-model", *named]) == 0
        assert "Tokens as the tokenizer in its-tokenizer counts them" in capsys.readouterr().out
        Path("check_findings.jsonl").unlink(missing_ok=True)
    assert main(["check", "data.json", "--base-model", "Qwen/Qwen3-32B"]) == 0
    assert "Tinker's cloud retired Qwen/Qwen3-32B on 2026-06-12" in capsys.readouterr().out
    Path("check_findings.jsonl").unlink(missing_ok=True)
    assert main(["check", "data.json", "--set", "TOKENIZER=nowhere"]) == 1
    assert "TOKENIZER is nowhere, which is not a folder" in capsys.readouterr().err
