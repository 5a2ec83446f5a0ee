"""Test questions that were trained on: by what the run remembers, not by today's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_files import write
from tinkersmith.batches.read import read_data
from tinkersmith.data import large_files
from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.evaluation.leaks import RECORD, TODAY, leak_lines, leaks_from
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import TRAINED_QUESTIONS_FILE, RunFolder
from tinkersmith.runs.trained_questions import remember
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import TextTemplate

SUMS = [
    {"instruction": "Add the numbers.", "input": f"{n} + {n + 1}", "output": f"Answer: {2 * n + 1}"}
    for n in range(40)
]
STORY = (
    "A farmer named {} has {} cows and buys {} more at the market on a rainy morning in May. How "
    "many cows does the farmer have in the evening, if none of them runs away?"
)


def run_of(folder: Path, settings: Settings, *, remembers: bool = True) -> RunFolder:
    """A run folder with what training writes before its first step."""
    run = RunFolder(folder / "runs" / "r")
    run.path.mkdir(parents=True)
    run.write_facts(
        settings, TextTemplate("x", "{instruction}", "{instruction}", "", "", ()), base_model="b"
    )
    run.rewrite("skipped.jsonl", [])
    if remembers:
        collector = read_data(settings, Progress(lambda line: None)).questions()
        remember(run, collector, "digest", "digest")
    return run


def settings_of(folder: Path, **changes: Any) -> Settings:
    return settings_from({"DATA_FILES": [str(folder / "train.json")], **changes})


def samples_of(file: Path) -> list[Sample]:
    return load_samples([str(file)]).samples


def pairs(run: RunFolder, samples: list[Sample]) -> list[tuple[int, int]]:
    """(record of the test set, record of the training data) of equal questions."""
    return [
        (shared.test.record, shared.training.record) for shared in leaks_from(run, samples).exact
    ]


def test_after_another_split_the_run_knows_what_it_was_trained_on(tmp_path: Path):
    write(tmp_path / "train.json", SUMS[:20])
    run = run_of(tmp_path, settings_of(tmp_path))
    # The user splits again: 9 test questions were trained on, 11 of today's training data were not.
    write(tmp_path / "train.json", [*SUMS[:11], *SUMS[20:29]])
    test = write(tmp_path / "test.json", [*SUMS[11:20], *SUMS[29:]])
    leaks = leaks_from(run, samples_of(test))
    assert leaks.compared_with == RECORD
    assert [(s.test.record, s.training.record) for s in leaks.exact] == [
        (n, n + 11) for n in range(1, 10)
    ]
    assert all(shared.same_answer for shared in leaks.exact)
    lines = leak_lines(leaks, 20)
    assert "train.json has changed since r was trained." in lines[0]
    assert lines[1].startswith("Warning: 9 of 20 test questions are also in the training data")
    # The other direction: what only today's file has was never trained on.
    others = samples_of(write(tmp_path / "other.json", SUMS[20:29]))
    assert leaks_from(run, others).exact == []
    assert "No question of the test set is in the training data." in leak_lines(
        leaks_from(run, others), 9
    )


def test_a_file_that_went_is_said_and_the_comparison_still_holds(tmp_path: Path):
    write(tmp_path / "train.json", SUMS[:20])
    run = run_of(tmp_path, settings_of(tmp_path))
    (tmp_path / "train.json").unlink()
    leaks = leaks_from(run, samples_of(write(tmp_path / "test.json", SUMS[18:22])))
    assert len(leaks.exact) == 2
    assert "is not there any more" in leak_lines(leaks, 4)[0]


def test_samples_that_were_held_out_were_not_trained_on(tmp_path: Path):
    write(tmp_path / "train.json", SUMS)
    settings = settings_of(tmp_path, VALIDATION_RATIO=0.25)
    run = run_of(tmp_path, settings)
    leaks = leaks_from(run, samples_of(tmp_path / "train.json"))
    assert len(leaks.exact) == 30
    separate = settings_of(tmp_path, VALIDATION_FILES=[str(write(tmp_path / "v.json", SUMS[:5]))])
    write(tmp_path / "train.json", SUMS[5:])
    assert len(pairs(run_of(tmp_path / "2", separate), samples_of(tmp_path / "v.json"))) == 0


def test_samples_that_the_length_policy_left_out_were_not_trained_on(tmp_path: Path):
    train = write(tmp_path / "train.json", SUMS[:3])
    run = run_of(tmp_path, settings_of(tmp_path))
    event = {"kind": "too long", "file": train.as_posix(), "record": 2, "tokens_before": 9}
    cut = {"kind": "truncated", "file": train.as_posix(), "record": 3, "tokens_after": 5}
    run.rewrite("skipped.jsonl", [{**event, "tokens_after": 0}, cut])
    assert pairs(run, samples_of(train)) == [(1, 1), (3, 3)]


def test_a_stream_is_remembered_like_files_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in SUMS))
    settings = settings_from({"DATA_FILES": [str(file)], "VALIDATION_RATIO": 0.25})
    monkeypatch.setattr(large_files, "STREAMED_ABOVE", 100)
    run = run_of(tmp_path, settings)
    test = samples_of(write(tmp_path / "test.json", SUMS))
    assert len(pairs(run, test)) == 30
    assert all(tested == trained for tested, trained in pairs(run, test))


def test_near_duplicates_are_named_apart_from_equal_questions(tmp_path: Path):
    stories = [
        {"instruction": STORY.format(name, n, n + 3), "output": str(2 * n + 3)}
        for n, name in enumerate(("Ann", "Bob", "Cid"), start=11)
    ]
    others = [
        {"instruction": f"What is the capital of country number {n}, and why?", "output": "x"}
        for n in range(20)
    ]
    write(tmp_path / "train.json", [*stories, *others])
    run = run_of(tmp_path, settings_of(tmp_path))
    test = [
        {"instruction": stories[0]["instruction"], "output": "Another answer."},
        {"instruction": stories[1]["instruction"].replace("rainy", "sunny"), "output": "27"},
        {"instruction": "How tall is the highest mountain of the moon?", "output": "x"},
    ]
    leaks = leaks_from(run, samples_of(write(tmp_path / "test.json", test)))
    assert [(s.test.record, s.training.record, s.same_answer) for s in leaks.exact] == [
        (1, 1, False)
    ]
    assert leaks.near is not None
    assert [(s.test.record, s.training.record) for s in leaks.near] == [(2, 2)]
    assert 0.8 <= leaks.near[0].similarity < 1
    exact, near = leak_lines(leaks, 3)
    assert "1 of 3 test questions is also in the training data" in exact
    assert "1 of them with another answer." in exact
    assert "1 more of 3 test questions is nearly equal to one that was trained on" in near


def test_a_run_of_an_earlier_version_is_compared_with_todays_files_and_that_is_said(
    tmp_path: Path,
):
    train = write(tmp_path / "train.json", SUMS[:20])
    run = run_of(tmp_path, settings_of(tmp_path), remembers=False)
    leaks = leaks_from(run, samples_of(write(tmp_path / "test.json", SUMS[18:22])))
    assert leaks.compared_with == TODAY and len(leaks.exact) == 2 and leaks.near is None
    note, warning = leak_lines(leaks, 4)
    assert "does not remember its questions: its data files are compared as they are today" in note
    assert warning.startswith("Warning: 2 of 4")
    train.unlink()
    gone = leaks_from(run, samples_of(tmp_path / "test.json"))
    assert gone.pairs is None
    (line,) = leak_lines(gone, 4)
    assert line.startswith("Overlap with the training data is not checked: r was trained by")


def test_a_damaged_record_is_said_and_todays_files_are_compared(tmp_path: Path):
    write(tmp_path / "train.json", SUMS[:20])
    run = run_of(tmp_path, settings_of(tmp_path))
    run.file(TRAINED_QUESTIONS_FILE).write_bytes(b"nonsense")
    leaks = leaks_from(run, samples_of(write(tmp_path / "test.json", SUMS[18:22])))
    assert leaks.compared_with == TODAY and len(leaks.exact) == 2
    assert f"{TRAINED_QUESTIONS_FILE} is damaged: its first line" in leak_lines(leaks, 4)[0]


def test_a_model_without_a_run_folder_is_not_compared():
    leaks = leaks_from(None, [alpaca_sample("q", "", "a", Source("f", 1))])
    assert leaks.pairs is None and leaks.to_json()["compared_with"] is None
    assert leak_lines(leaks, 1) == [
        "Overlap with the training data is not checked: no run folder says what this model was "
        "trained on."
    ]
