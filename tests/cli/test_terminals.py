"""Every command goes on where a terminal lacks a character, and ends in order without a reader."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import PATIENCE
from tinkersmith.cli.main import main

pytestmark = pytest.mark.slow

ODD = "é是🍁"
NOT_UTF8 = os.fsdecode(b"x\xff.json")  # a file name with an unpaired surrogate
RECORDS = [
    {"instruction": f"Name {ODD} {n}.", "input": "", "output": f"{ODD} {n} “quoted” …"}
    for n in range(6)
]
ENCODINGS = [pytest.param("cp1252", marks=pytest.mark.long), "gbk"]

# Commands that print what the user wrote, on standard output or standard error.
TALKATIVE = {
    "stats": ["-m", "tinkersmith", "stats", "data.json", f"{ODD}.json", NOT_UTF8],
    "preview": ["-m", "tinkersmith", "preview", "data.json", f"{ODD}.json", NOT_UTF8],
    "preview page": ["-m", "tinkersmith", "preview", NOT_UTF8, "--html", f"{ODD}.html"],
    "split": [
        *("-m", "tinkersmith", "split", "--inputs", "data.json", f"{ODD}.json", NOT_UTF8),
        *("--train-out", f"{ODD}-train.json", "--test-out", f"{ODD}-test.json"),
    ],
    "split script": [
        *(str(ROOT / "split_dataset.py"), "--inputs", NOT_UTF8),
        *("--train-out", f"{ODD}-train.json", "--test-out", f"{ODD}-test.json"),
    ],
    "init": ["-m", "tinkersmith", "init", f"new-{ODD}"],
    "check": ["-m", "tinkersmith", "check", f"{ODD}.json", "--out", f"{ODD}.jsonl", "--force"],
    "convert": ["-m", "tinkersmith", "convert", NOT_UTF8, "--out", f"{ODD}2.jsonl", "--force"],
    "settings": ["-m", "tinkersmith", "settings", "--set", f"DATA_FILES={ODD}.json"],
    "runs": ["-m", "tinkersmith", "runs", "--set", f"OUTPUT_DIR={ODD}"],
}
# Commands that fail, each with one sentence about what the user wrote.
FAILING = {
    "unknown command": ["-m", "tinkersmith", ODD],
    "stats": ["-m", "tinkersmith", "stats", f"no-{ODD}.json"],
    "stats surrogate": ["-m", "tinkersmith", "stats", "no-" + NOT_UTF8],
    "preview": ["-m", "tinkersmith", "preview", f"no-{ODD}.json"],
    "train": ["-m", "tinkersmith", "train", "--set", f"{ODD}=1"],
    "train data": ["-m", "tinkersmith", "train", "--set", f"DATA_FILES=no-{ODD}.json"],
    "check": ["-m", "tinkersmith", "check", f"no-{ODD}.json"],
    "convert": ["-m", "tinkersmith", "convert", f"no-{ODD}.json", "--out", "x.jsonl"],
    "settings": ["-m", "tinkersmith", "settings", "--set", f"{ODD}=1"],
    "train surrogate": ["-m", "tinkersmith", "train", "--config", NOT_UTF8],
    "evaluate": ["-m", "tinkersmith", "evaluate", "--test-data", f"no-{ODD}.json"],
    "export": ["-m", "tinkersmith", "export", "--model-path", ODD],
    "export surrogate": ["-m", "tinkersmith", "export", "--model-path", NOT_UTF8],
    "runs": ["-m", "tinkersmith", "runs", "delete", ODD],
    "engine check": ["-m", "tinkersmith", "engine", "check", ODD],
    "engine": ["-m", "tinkersmith.engine", "--dir", "engine", "--base-model", f"{ODD}={ODD}"],
    "evaluate script": [str(ROOT / "evaluate_model.py"), "--test-data", f"no-{ODD}.json"],
    "export script": [str(ROOT / "export_model.py"), "--model-path", ODD],
    "train script": [str(ROOT / "train_with_config.py"), "--set", f"{ODD}=1"],
    "an option": ["-m", "tinkersmith", "split", f"--{ODD}"],
    "a script's option": [str(ROOT / "tinker_finetune.py"), f"--{ODD}"],
}
# Commands that end soon, to run without a reader, on a full disk, and without streams.
QUICK = {
    "help": ["-m", "tinkersmith", "--help"],
    "version": ["-m", "tinkersmith", "--version"],
    "no command": ["-m", "tinkersmith"],
    "stats": ["-m", "tinkersmith", "stats", "data.json"],
    "preview": ["-m", "tinkersmith", "preview", "data.json", "--count", "99"],
    "split": ["-m", "tinkersmith", "split", "--inputs", "data.json"],
    "init": ["-m", "tinkersmith", "init", "new"],
    "runs": ["-m", "tinkersmith", "runs"],
    "check": ["-m", "tinkersmith", "check", "data.json", "--force"],
    "settings": ["-m", "tinkersmith", "settings"],
    **{f"{command} --help": ["-m", "tinkersmith", command, "--help"] for command in ("train",)},
    **{
        f"{script} --help": [str(ROOT / script), "--help"]
        for script in (
            *("split_dataset.py", "evaluate_model.py", "export_model.py", "tinker_finetune.py"),
        )
    },
}


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = json.dumps(RECORDS, ensure_ascii=False)
    for name in ("data.json", f"{ODD}.json", NOT_UTF8):
        Path(name).write_text(text, encoding="utf-8")


def run(
    words: Sequence[str], *, shell: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run Python with `words`; `shell` is what the shell adds, such as a redirection."""
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, *words]
    if not shell:
        command = [sys.executable, *words]
    return subprocess.run(
        command,
        capture_output=True,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )


def check_no_crash(done: subprocess.CompletedProcess[bytes]) -> None:
    for text in (done.stdout, done.stderr):
        assert b"Traceback" not in text and b"Exception ignored" not in text, text.decode(
            errors="replace"
        )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_character_that_the_output_lacks_is_replaced_and_the_work_goes_on(encoding: str) -> None:
    for name, words in TALKATIVE.items():
        done = run(words, PYTHONIOENCODING=encoding)
        check_no_crash(done)
        assert done.returncode == 0, (name, done.stderr)
        assert done.stdout.decode(encoding), name  # it is in that encoding


def test_an_error_is_one_sentence_where_characters_are_missing() -> None:
    for name, words in FAILING.items():
        done = run(words, PYTHONIOENCODING="ascii")
        check_no_crash(done)
        assert done.returncode in (1, 2), name
        said = done.stderr.decode("ascii").splitlines()[-1]
        assert said.startswith("Error: ") or ": error: " in said, (name, said)


def test_a_plain_locale_is_enough() -> None:  # ASCII, on Linux
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in ("stats", "preview", "split", "init"):
        done = run(TALKATIVE[name], **plain)
        check_no_crash(done)
        assert done.returncode == 0, (name, done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("unbuffered", "names"),
    [("1", tuple(QUICK)), ("", ("version", "stats", "split_dataset.py --help"))],
)
def test_an_output_that_cannot_be_written_is_named(unbuffered: str, names: Sequence[str]) -> None:
    for name in names:
        done = run(QUICK[name], shell="> /dev/full", PYTHONUNBUFFERED=unbuffered)
        check_no_crash(done)
        assert done.returncode == 1, name
        expected = "Error: the output cannot be written: No space left on device."
        assert done.stderr.decode().startswith(expected), (name, done.stderr)
        assert done.stderr.count(b"\n") == 1, name


def test_a_reader_that_has_gone_ends_a_command_without_a_word() -> None:
    for name, words in QUICK.items():
        done = run(words, shell="| true", PYTHONUNBUFFERED="1")
        check_no_crash(done)
        assert done.stderr == b"", (name, done.stderr)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_command_needs_none_of_its_streams(closed: str) -> None:
    for name in ("help", "preview", "split", "runs"):
        for output in ("data/train_set.json", "data/test_set.json"):
            Path(output).unlink(missing_ok=True)
        done = run(QUICK[name], shell=closed)
        check_no_crash(done)
        assert done.returncode == 0, (name, done.stderr)
    assert json.loads(Path("data.json").read_text(encoding="utf-8")) == RECORDS


def test_a_full_disk_names_the_file_that_could_not_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert (
        main(["split", "--inputs", "data.json", "--train-out", "a.json", "--test-out", "b.json"])
        == 1
    )
    said = capsys.readouterr().err
    assert "No space left on device" in said and "the output" not in said
    assert "a.json" in said or "b.json" in said
    assert not Path("a.json").exists() and not Path("b.json").exists()


# ---- training: a run has its log, whatever becomes of the output


def training(*more: str) -> list[str]:
    return [
        *(str(ROOT / "train_with_config.py"), "--set", "DATA_FILES=data.json"),
        *("--set", "OUTPUT_DIR=runs", "--set", "NUM_EPOCHS=1", "--set", "BACKEND=local"),
        *("--set", "EXPORT_AFTER_TRAINING=no", "--set", "SAMPLING_MAX_TOKENS=4", *more),
    ]


def log() -> str:
    (file,) = Path("runs").glob("my-model-*/train.log")
    return file.read_text(encoding="utf-8")


@pytest.mark.engine
def test_training_goes_on_where_its_output_lacks_characters() -> None:
    done = run(training(), PYTHONIOENCODING="ascii")
    check_no_crash(done)
    assert done.returncode == 0, done.stderr
    assert f"Name {ODD} 0." in log().replace("_", " ")
    assert b"Name ??? 0." in done.stdout.replace(b"_", b" ")


@pytest.mark.long
@pytest.mark.engine
def test_training_goes_on_where_its_output_cannot_be_written_and_says_so() -> None:
    done = run(training(), shell="> /dev/full")
    check_no_crash(done)
    assert done.returncode == 0, done.stderr
    assert b"The output cannot be written" in done.stderr and b"runs" not in done.stderr
    assert "Folder   runs" in log()


@pytest.mark.engine
def test_training_ends_quietly_when_its_reader_has_gone() -> None:
    done = run(training(), shell="| head -3")
    check_no_crash(done)
    assert done.stderr == b"" and done.stdout.count(b"\n") == 3


@pytest.mark.engine
@pytest.mark.parametrize("words", [["tinkersmith", "engine"], ["tinkersmith.engine"]])
def test_an_engine_that_cannot_say_that_it_is_ready_ends(words: list[str]) -> None:
    command = ["-m", *words, "--port", "0", "--dir", "engine"]
    done = run(command, shell="> /dev/full")
    check_no_crash(done)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("Error: the output cannot be written: No space left on device.")
    done = run(command, shell="| true")
    check_no_crash(done)
    assert b"Error" not in done.stderr
