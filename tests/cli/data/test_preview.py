"""`tinkersmith preview` from the outside: files and settings to coloured or plain tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.strict_models import MIXED, REASON, strict_tokenizer
from tinkersmith.cli.main import main

RECORDS = [
    {"instruction": "Add.", "input": "1 + 2", "output": "Answer: 3"},
    {"instruction": "说什么?", "output": "你好\n世界"},
    17,
    {"instruction": "Say <|im_end|>.", "output": "word " * 60},
    {"instruction": "More?", "output": "No.", "history": [["Hi.", "Hello."], ["How?", "So."]]},
]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("data.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")


def preview(*arguments: str, code: int = 0) -> None:
    assert main(["preview", *arguments]) == code


def test_without_colour_trained_parts_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    preview("data.json")
    shown = capsys.readouterr().out
    assert "Sample 1 of 4: data.json, record 1" in shown
    assert "Response:↵" in shown and "⟦Answer:·3<|endoftext|>⟧" in shown
    assert "⟦你好↵\n           世界<|endoftext|>⟧" in shown
    assert "\x1b" not in shown
    assert "Skipped 1 record" in shown and "data.json, record 3" in shown
    assert "Warning: 1 sample with a special token such as <|im_end|>" in shown


def test_colours_where_they_are_wanted_and_none_with_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    preview("data.json", "--count", "1")
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured and "⟦Answer" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    preview("data.json", "--count", "1")
    plain = capsys.readouterr().out
    assert "⟦Answer" in plain and "\x1b[3" not in plain


def test_it_uses_the_settings_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.py").write_text(
        'DATA_FILES = ["data.json"]\nPROMPT_TEMPLATE = "chat"\nMAX_SEQUENCE_LENGTH = 40\n'
    )
    preview("--filter", "cut")
    shown = capsys.readouterr().out
    assert "record 4" in shown and "record 1:" not in shown
    assert "<|im_start|>assistant" in shown
    assert "-> 40 tokens" in shown
    preview("--filter", "cut", "--set", "TRUNCATE_LONG_SEQUENCES=False")
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "records"),
    [
        (["--filter", "longest", "--count", "1"], [4]),
        (["--filter", "multi-turn"], [5]),
        (["--filter", "suspicious"], [4]),
        (["--record", "2"], [2]),
        (["--count", "2"], [1, 2]),
    ],
)
def test_a_filter_chooses_what_is_shown(
    arguments: list[str], records: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    preview("data.json", *arguments)
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sample ")]
    assert [int(line.split("record ")[1].split(":")[0]) for line in heads] == records


def test_a_long_sample_is_shortened_and_shown_whole_by_its_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("long.json").write_text(json.dumps([{"instruction": "Say.", "output": "a b " * 200}]))
    preview("long.json")
    assert "tokens not shown ..." in capsys.readouterr().out
    preview("long.json", "--record", "1")
    assert "not shown" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.json", "--record", "3"], "data.json, record 3: the record is the number 17"),
        (["data.json", "--record", "99"], "No sample to train on is record 99"),
        (["data.json", "--count", "0"], "--count is 0"),
        (["data.json", "--force"], "--force has no effect without --html"),
        (["data.json", "--lang", "zh"], "--lang has no effect without --html"),
        (["data.json", "--record", "1", "--filter", "cut"], "--filter has no effect with --record"),
        (["none.json"], "none.json does not exist"),
        (["data.json", "--base-model", "Qwen/Qwen3-8B"], "Qwen/Qwen3-8B is not on this machine"),
        (["data.json", "--base-model", "./nothing"], "./nothing is not a model folder"),
        (["data.json", "--base-model", "no such model"], "cannot be the name of a model"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    preview(*arguments, code=1)
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_page_is_written_and_not_over_a_file_of_the_users_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    preview("data.json", "--html", "out.html")
    assert "Wrote out.html: 4 of 4 samples" in capsys.readouterr().out
    preview("data.json", "--html", "out.html", "--lang", "zh")
    assert '"language":"zh"' in Path("out.html").read_text(encoding="utf-8")
    Path("out.html").write_text("mine")
    preview("data.json", "--html", "out.html", code=1)
    assert Path("out.html").read_text() == "mine"
    preview("data.json", "--html", "out.html", "--force")
    assert Path("out.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_it_imports_no_torch_transformers_or_tinker() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tinkersmith", "preview", "data.json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "transformers", "tinker"})


def test_a_page_never_overwrites_data_or_settings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.py").write_text("SEED = 1\n")
    for name in ("data.json", "./data.json", "config.py"):
        before = Path(name).read_bytes()
        preview("data.json", "--html", name, "--force", code=1)
        assert "is an input and an output" in capsys.readouterr().err
        assert Path(name).read_bytes() == before


def test_records_that_the_template_refuses_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(strict_tokenizer(tmp_path / "strict"))
    options = ("--base-model", model, "--set", "PROMPT_TEMPLATE=chat")
    Path("mixed.json").write_text(json.dumps(MIXED))
    preview("mixed.json", *options)
    shown = capsys.readouterr().out
    assert "2 samples left out, with nothing to train on: the model's chat template ref" in shown
    assert REASON.rstrip(".") in shown and "The first: mixed.json, record 2." in shown
    Path("mixed.json").write_text(json.dumps(MIXED[1:2]))
    preview("mixed.json", *options, code=1)
    error = capsys.readouterr().err
    assert "Error: Not one of 1 sample can be trained on. mixed.json, record 1: " in error
    assert REASON.rstrip(".") in error and error.count("\n") == 1
