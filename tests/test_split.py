"""A split is repeatable, leaks no question, loses no record, and destroys nothing of the user's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.cli.data.split import split_command
from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import overlap
from tinkersmith.errors import UserError
from tinkersmith.split import SplitResult, format_split, split_dataset


def records(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Question {i}", "input": "", "output": f"答案 {i}", "family": {"n": i}}
        for i in range(start, start + n)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one data file of 100 records, as the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write("data/all.json", records(100))
    return tmp_path


def write(path: str, value: object) -> None:
    Path(path).write_text(json.dumps(value), encoding="utf-8")


def split(files: tuple[str, ...] = ("data/all.json",), **options: Any) -> SplitResult:
    return split_dataset(list(files), **options)


def both() -> tuple[list[Any], list[Any]]:
    train, test = (
        json.loads(Path(f"data/{side}_set.json").read_text(encoding="utf-8"))
        for side in ("train", "test")
    )
    return train, test


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").iterdir())


def test_all_records_arrive_once_in_shuffled_order_with_all_their_fields(folder: Path) -> None:
    big = {"instruction": "big", "output": "x", "id": 2**80, "rate": 0.1, "null": None}
    write("data/big.json", [big])
    write(
        "data/odd.json",
        [
            {"instruction": "half", "output": "x", "note": "\udfff", "tags": ["é", {"a": []}]},
        ],
    )
    result = split(("data/all.json", "data/big.json", "data/odd.json"))
    train, test = both()
    assert (result.train_count, result.test_count) == (len(train), len(test)) == (82, 20)
    expected = [*records(100), big, *json.loads(Path("data/odd.json").read_text(encoding="utf-8"))]
    key = json.dumps
    assert sorted(map(key, train + test)) == sorted(map(key, expected))
    order = [record["family"]["n"] for record in train if "family" in record]
    assert order != sorted(order)
    assert "答案" in Path("data/train_set.json").read_text(encoding="utf-8")
    assert result.counts == {"data/all.json": 100, "data/big.json": 1, "data/odd.json": 1}


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_files(folder: Path) -> None:
    other_answers = [{**record, "output": "0"} for record in records(50)]
    write("data/more.json", [*records(30, start=100), *other_answers])
    names = ("data/train_set.json", "data/test_set.json")
    split(("data/all.json", "data/more.json"))
    first = [Path(name).read_bytes() for name in names]
    split(("data/more.json", "data/all.json"))
    assert [Path(name).read_bytes() for name in names] == first
    split(("data/more.json", "data/all.json"), seed=43)
    assert [Path(name).read_bytes() for name in names] != first


def test_the_shuffle_is_the_one_it_has_always_been(folder: Path) -> None:
    # A change here would give users of older versions another test set for the same seed.
    write("data/ten.json", records(10))
    split(("data/ten.json",))
    train, test = both()
    assert [record["family"]["n"] for record in train + test] == GOLDEN


GOLDEN = [6, 7, 3, 5, 1, 4, 8, 2, 9, 0]


def test_repeats_of_a_question_stay_on_one_side_despite_white_space_and_other_answers(
    folder: Path,
) -> None:
    repeats = [
        {"instruction": f"  Question\n{i} ", "output": f"other {n}"}
        for i in range(100)
        for n in range(i % 3)
    ]
    write("data/repeats.json", [*repeats, *records(7)])
    result = split(("data/all.json", "data/repeats.json"))
    assert result.questions == 100
    assert result.duplicates == 7
    train, test = (load_samples([f"data/{side}_set.json"]).samples for side in ("train", "test"))
    assert overlap(train, test) == []
    assert len(train) + len(test) == 100 + len(repeats) + 7


def test_the_same_instruction_with_another_input_system_or_history_is_another_question(
    folder: Path,
) -> None:
    base = {"instruction": "Add.", "output": "x"}
    write(
        "data/near.json",
        [base, {**base, "input": "1"}, {**base, "system": "1"}, {**base, "history": [["1", "1"]]}],
    )
    assert split(("data/near.json",)).questions == 4


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.8, 0.9, 0.999])
def test_the_ratio_is_kept_as_near_as_whole_questions_allow(folder: Path, ratio: float) -> None:
    result = split(ratio=ratio)
    assert result.train_count == min(max(round(100 * ratio), 1), 99)


def test_random_data_is_split_without_loss_or_leak(folder: Path) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(30):
        n, kinds = int(rng.integers(2, 80)), int(rng.integers(2, 40))
        data: list[Any] = [
            {"instruction": f"q{' ' * int(rng.integers(1, 4))}{rng.integers(kinds)}", "output": "a"}
            for _ in range(n)
        ]
        data += [{"instruction": "q 0", "output": "a"}, {"instruction": "r", "output": "a"}]
        bad = [bad for bad in (None, 7, {"output": "a"}, []) if rng.random() < 0.5]
        mixed = [*data, *bad]
        rng.shuffle(mixed)  # type: ignore[arg-type]
        write("data/random.json", mixed)
        ratio = float(rng.uniform(0.05, 0.95))
        result = split(("data/random.json",), ratio=ratio, seed=int(rng.integers(1000)))
        train, test = both()
        assert sorted(map(json.dumps, train + test)) == sorted(map(json.dumps, data))
        assert train and test and len(result.skipped) == len(bad)
        questions = [{" ".join(r["instruction"].split()) for r in side} for side in (train, test)]
        assert not questions[0] & questions[1]


def test_skipped_records_are_counted_named_and_all_written(folder: Path) -> None:
    bad: list[Any] = [7, {"instruction": "q"}, {"instruction": "q", "output": "\ud83d"}]
    write("data/bad.json", bad * 5)
    result = split(("data/all.json", "data/bad.json"))
    lines = Path("data/split_skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(result.skipped) == len(lines) == 15
    entry = json.loads(lines[1])
    assert (entry["file"], entry["record"], entry["field"]) == ("data/bad.json", 2, "output")
    assert json.loads(entry["text"]) == {"instruction": "q"}
    text = format_split(result)
    assert "Skipped 15 records, listed in data/split_skipped.jsonl:" in text
    assert text.count("data/bad.json, record") == 3 == text.count(" (5 records)")
    split()  # nothing to skip: the old list goes
    assert files_in(folder) == [
        ".split.json",
        "all.json",
        "bad.json",
        "test_set.json",
        "train_set.json",
    ]


def test_its_own_files_are_overwritten_but_not_the_users(folder: Path) -> None:
    write("data/test_set.json", [{"mine": True}])
    with pytest.raises(UserError, match=r"data/test_set.json exists and was not written by this"):
        split()
    assert files_in(folder) == ["all.json", "test_set.json"]
    split(force=True)
    split(seed=7)
    with Path("data/train_set.json").open("a") as file:
        file.write("\n")
    before = Path("data/test_set.json").read_bytes()
    with pytest.raises(UserError, match=r"data/train_set.json exists .* was changed since"):
        split(seed=8)
    assert Path("data/test_set.json").read_bytes() == before
    Path("data/.split.json").write_text("damaged")
    with pytest.raises(UserError, match="--force"):
        split()


@pytest.mark.parametrize("failing", [1, 2])
def test_both_files_are_written_or_neither(
    folder: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split()
    before = {path.name: path.read_bytes() for path in Path("data").glob("*_set.json")}
    calls = 0
    replace = os.replace

    def fail_once(source: Any, target: Any) -> None:
        nonlocal calls
        if Path(target).name in ("train_set.json", "test_set.json"):
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_once)
        for seed in (7, 8):
            calls = 0
            with pytest.raises(UserError, match="cannot be written: No space left on device"):
                split(seed=seed)
    after = {path.name: path.read_bytes() for path in Path("data").glob("*_set.json")}
    assert after == before
    assert not [name for name in files_in(folder) if name.endswith((".new", ".tmp"))]
    split(seed=7)  # and both are still known as ours


def test_an_output_folder_that_cannot_be_is_an_error_and_nothing_is_written(folder: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"file/test\.json cannot be written"):
        split(test_out="file/test.json")
    assert files_in(folder) == ["all.json"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ratio": 0.0}, "TRAIN_RATIO is 0.0; it must be above 0 and below 1"),
        ({"ratio": 1.0}, "TRAIN_RATIO is 1.0; it must be above 0 and below 1"),
        ({"ratio": float("nan")}, "TRAIN_RATIO is nan; it must be above 0 and below 1"),
        ({"files": ("nowhere.json",)}, "nowhere.json does not exist (looked in "),
        ({"train_out": "data/all.json"}, "data/all.json is an input and an output."),
        ({"test_out": "data/../data/all.json"}, "is an input and an output."),
        ({"test_out": "data/train_set.json"}, "is named for both outputs."),
        ({"test_out": "data/test.jsonl"}, "give it a name that ends in .json."),
        ({"test_out": "data/dir.json"}, "data/dir.json is a folder."),
        ({"files": ("data/same.json",)}, "All records ask the same question"),
        ({"files": ("data/bad.json",)}, "Not one of 2 records can be used."),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    folder: Path, options: dict[str, Any], sentence: str
) -> None:
    Path("data/dir.json").mkdir()
    write("data/same.json", [records(1)[0]] * 3)
    write("data/bad.json", [1, 2])
    before = {path: path.read_bytes() for path in Path("data").glob("*.json") if path.is_file()}
    with pytest.raises(UserError) as caught:
        split(**options)
    assert sentence in str(caught.value)
    after = {path: path.read_bytes() for path in Path("data").glob("*.json") if path.is_file()}
    assert before == after and not Path("data/.split.json").exists()


def test_a_missing_input_is_a_warning(folder: Path) -> None:
    result = split(("nowhere.json", "data/all.json"))
    assert "Warning: nowhere.json does not exist (looked in " in format_split(result)


def test_the_printed_text_has_counts_shares_unit_and_both_tables(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split_command(["--inputs", "data/all.json", "--ratio", "0.75", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert "Read 100 samples from data/all.json" in text
    assert "Wrote 75 samples (75.0 %) to data/train_set.json" in text
    assert "Wrote 25 samples (25.0 %) to data/test_set.json" in text
    assert "Lengths in tokens of tinkersmith/tiny-math" in text or "Lengths in characters" in text
    assert "Training: 75 samples" in text and "Test: 25 samples" in text


def test_lengths_are_tokens_of_the_bundled_model_or_else_characters(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        "data/two.json",
        [{"instruction": "中", "output": "文"}, {"instruction": "a", "output": "b"}],
    )
    monkeypatch.setitem(BUNDLED_MODELS, "tinkersmith/tiny-math", folder / "nowhere")
    result = split(("data/two.json",))
    assert (result.unit, result.train_lengths.max) == ("characters", 2)
    make_tiny_tokenizer(folder / "model")
    monkeypatch.setitem(BUNDLED_MODELS, "tinkersmith/tiny-math", folder / "model")
    result = split(("data/two.json",))
    assert result.unit.startswith("tokens of tinkersmith/tiny-math")
    around = len("Instruction: \nResponse:\n") + 1  # one token per byte, and the end token
    lengths = sorted([result.train_lengths.max, result.test_lengths.max])
    assert lengths == [around + 2, around + 6]


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script in `folder`: it works on the files beside it."""
    shutil.copyfile(ROOT / "split_dataset.py", folder / "split_dataset.py")
    command = [sys.executable, "split_dataset.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_script_splits_and_speaks_one_sentence_without_traceback_on_a_mistake(
    folder: Path,
) -> None:
    done = run_script(folder, "--inputs", "data/all.json", "--train-out", "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("a.json").exists() and Path("data/test_set.json").exists()
    failed = run_script(folder, "--inputs", "data/none.json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: data/none.json does not exist (looked in ")
    assert failed.stderr.count("\n") == 1
    assert run_script(folder, "--ratio", "much").returncode == 2


def test_splitting_and_statistics_import_no_torch_transformers_or_tinker(folder: Path) -> None:
    shutil.copyfile(ROOT / "split_dataset.py", folder / "split_dataset.py")
    script = (
        "import runpy, sys\n"
        "def loaded(): return sorted({'torch', 'transformers', 'tinker'} & set(sys.modules))\n"
        "sys.argv = ['split_dataset.py', '--inputs', 'data/all.json']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "sys.argv[1:] = ['--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(loaded(), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    assert "Training: 80 samples" in result.stdout and "--train-out" in result.stdout


S1K = ROOT.parent / "shared" / "data" / "s1k_1.1.json"


@pytest.mark.skipif(
    not S1K.exists(), reason="the real data set s1k_1.1.json is not on this machine"
)
def test_a_real_data_set_is_split_without_loss(folder: Path) -> None:
    result = split((str(S1K),))
    assert result.train_count + result.test_count == 1000 and not result.skipped
    train, test = both()
    original = json.loads(S1K.read_text(encoding="utf-8"))
    assert sorted(map(json.dumps, train + test)) == sorted(map(json.dumps, original))
