"""A rehearsal is no run, is found by its settings, and says what is not as it was."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import run_of_settings
from tinkersmith.cli.training.runs import runs_command
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import REHEARSAL_FILE, REQUESTS_FILE, all_runs, newest_run, open_run
from tinkersmith.runs.rehearsals import (
    Rehearsal,
    add_rehearsal,
    all_rehearsals,
    changed_settings,
    changes_since,
    difference,
    matching_rehearsal,
    open_rehearsal,
)
from tinkersmith.runs.requests import Compared, SentRequests, compared_before, requests_line
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.service.digests import creation_line
from tinkersmith.settings.reading import settings_from

LINES: list[dict[str, Any]] = [
    creation_line({"base_model": "tiny-math", "rank": 4}),
    {"step": 1, "kind": "forward_backward", "requests": 1, "datums": 2, "digest": "a" * 64}
    | {"samples": "1" * 8 + "2" * 8},
    {"step": 1, "kind": "optim_step", "requests": 1, "digest": "b" * 64}
    | {"content": {"learning_rate": 0.1, "beta1": 0.9}},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.json").write_text('[{"instruction": "a", "output": "b"}]')
    return tmp_path


def settings(**names: Any) -> Any:
    return settings_from({"DATA_FILES": ["train.json"], "BASE_MODEL": "tiny-math", **names})


def rehearsed(**names: Any) -> Rehearsal:
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    Path("lines").write_text(lines)
    facts = {"base_model": "tinkersmith/tiny-math", "total_steps": 1, "data_digest": "d"}
    return add_rehearsal(settings(**names), Path("lines"), dt.datetime.now(), facts)


def test_nothing_takes_a_rehearsal_for_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsal = rehearsed()
    assert all_runs("runs") == []
    with pytest.raises(UserError, match="no finished run in runs"):
        newest_run("runs")
    with pytest.raises(UserError, match="no finished run in runs"):
        find_trained_model(settings())
    for name in (rehearsal.name, str(rehearsal.path)):
        with pytest.raises(UserError, match="is a rehearsal: it holds what a run is to send"):
            open_run(name, "runs")
    runs_command(["list"], prog="runs")
    assert "rehearsal" not in capsys.readouterr().out
    older = run_of_settings(Path("runs/older"))
    assert all_runs("runs") == [older]


def test_a_rehearsal_is_found_by_the_settings_that_decide_what_is_sent(folder: Path) -> None:
    rehearsal = rehearsed(LEARNING_RATE=0.25)
    alike = settings(LEARNING_RATE=0.25, MODEL_NAME_PREFIX="other", KEEP_LAST=9)
    assert matching_rehearsal(alike) == (rehearsal, "")
    found, note = matching_rehearsal(settings(LEARNING_RATE=0.5))
    assert found is None
    assert "LEARNING_RATE is 0.5 (rehearsed: 0.25)" in note
    assert matching_rehearsal(settings(OUTPUT_DIR="elsewhere", LEARNING_RATE=0.25)) == (None, "")
    assert open_rehearsal(rehearsal.name, "runs") == open_rehearsal(str(rehearsal.path), "x")
    with pytest.raises(UserError, match=f"no rehearsal nothing in .*{rehearsal.name}"):
        open_rehearsal("nothing", "runs")


def test_a_project_that_has_moved_still_has_its_rehearsals(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed()
    moved = folder.with_name("moved")
    folder.rename(moved)
    monkeypatch.chdir(moved)
    found, note = matching_rehearsal(settings())
    assert found is not None and note == ""
    assert found.changed_files() == []


def test_a_damaged_rehearsal_is_a_sentence_and_is_passed_over(folder: Path) -> None:
    sound = rehearsed()
    damaged = rehearsed()
    (damaged.path / REHEARSAL_FILE).write_text("{")
    found, _ = matching_rehearsal(settings())
    assert found == sound
    with pytest.raises(UserError, match=r"rehearsal\.json is damaged.*Rehearse again"):
        damaged.settings()
    (sound.path / REQUESTS_FILE).write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"requests\.jsonl, line 1 is damaged"):
        sound.digests()


def test_what_changed_since_is_named_with_the_file(folder: Path) -> None:
    rehearsal = rehearsed()
    digests = {"data_digest": "d", "tokenizer_digest": None, "template_digest": None}
    assert changes_since(rehearsal, digests, 1, None) == []
    Path("train.json").write_text("[]")
    changes = changes_since(rehearsal, {**digests, "data_digest": "e"}, 2, 512)
    assert changes == [
        "train.json has changed since",
        "the training data is other data",
        "the plan has 2 steps instead of 1",
        "the server's model takes 512 tokens instead of a number of tokens that nobody says",
    ]
    Path("train.json").unlink()
    assert rehearsal.changed_files() == ["train.json cannot be read any more"]
    assert changed_settings(rehearsal.settings(), settings(SEED=3, BUDGET_MINUTES=4.0)) == [
        "SEED is 3 (rehearsed: 42)"
    ]


def test_a_difference_names_the_sample_or_the_value(folder: Path) -> None:
    from tinkersmith.data.samples import Source

    rehearsal = rehearsed()
    batch = {**LINES[1], "digest": "0", "samples": "1" * 8 + "3" * 8}
    sources = [Source("train.json", 7), Source("train.json", 9)]
    text = difference(rehearsal, batch, sources)
    assert text == f"sample 2 in step 1, {sources[1]}"
    longer = {**LINES[1], "digest": "0", "datums": 3}
    assert difference(rehearsal, longer) == "step 1 has 3 samples (rehearsed: 2)"
    rate = {**LINES[2], "digest": "0", "content": {"learning_rate": 0.2, "beta1": 0.9}}
    assert difference(rehearsal, rate) == (
        "the optimizer in step 1: learning_rate is 0.2 (rehearsed: 0.1)"
    )
    assert difference(rehearsal, {**LINES[1], "step": 2}) == "step 2 was not rehearsed"


def test_lines_are_compared_noted_once_and_counted(folder: Path) -> None:
    rehearsal = rehearsed()
    run = run_of_settings(Path("runs/run"))
    compared = Compared(rehearsal)
    sent = SentRequests(run, compared)
    assert sent.first_other(LINES) is None
    other = {**LINES[2], "digest": "c"}
    assert sent.first_other([*LINES[:2], other]) == other
    sent.note(LINES[:2])
    assert not run.file(REQUESTS_FILE).exists()
    sent.write()
    assert requests_line(run, compared).endswith("which has 1 more lines")
    again = SentRequests(run, compared)
    again.note(LINES[1:])  # the step is there already
    again.write()
    assert run.file(REQUESTS_FILE).read_bytes() == (rehearsal.path / REQUESTS_FILE).read_bytes()
    assert requests_line(run, compared).startswith(f"all 3 equal those of {rehearsal.name}")
    assert requests_line(run, None).endswith("not rehearsed")


def test_a_run_knows_its_rehearsal_by_its_own_folder(folder: Path) -> None:
    rehearsal = rehearsed()
    run = run_of_settings(Path("runs/run"))
    assert compared_before(run, allow_changes=False) is None
    facts = {**run.facts(), **Compared(rehearsal, True).fact(run.path)}
    run.file("settings.json").write_text(json.dumps(facts))
    assert compared_before(run, allow_changes=False) == Compared(rehearsal, True)
    facts |= Compared(rehearsal).fact(run.path)
    run.file("settings.json").write_text(json.dumps(facts))
    (rehearsal.path / REHEARSAL_FILE).unlink()
    with pytest.raises(UserError, match="compared with a rehearsal that cannot be read"):
        compared_before(run, allow_changes=False)
    assert compared_before(run, allow_changes=True) is None
    assert all_rehearsals("runs") == []
