"""Which checkpoint of a run is the best, when its patience is spent, and how one is chosen."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_folders import checkpoint, run_of_settings
from tinkersmith.errors import UserError
from tinkersmith.runs.best import (
    BestSoFar,
    best_by_of,
    best_of_run,
    best_so_far,
    choose_checkpoint,
    write_best,
)
from tinkersmith.runs.folder import RunFolder


def scores(*values: float, every: int = 10) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that hold one score after another."""
    return [
        {
            "step": every * number,
            "eval/n": 50,
            "eval/final_answer": value,
            "eval/final_answer_low": max(value - 0.1, 0.0),
            "eval/final_answer_high": min(value + 0.1, 1.0),
        }
        for number, value in enumerate(values, start=1)
    ]


def best_step(lines: list[dict[str, Any]], by: str = "final_answer") -> int | None:
    best = best_so_far(lines, by, range(1000)).best
    return best.step if best else None


def test_the_highest_score_and_the_lowest_loss_are_the_best_and_ties_go_to_the_earlier() -> None:
    assert best_step(scores(0.1, 0.5, 0.5, 0.2)) == 20
    losses = [{"step": step, "validation_loss": loss} for step, loss in ((1, 2.0), (2, 1.0))]
    assert best_step([*losses, {"step": 3, "validation_loss": 1.0}], "validation_loss") == 2
    assert best_step(losses) is None, "another measurement was asked for"


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    lines = [
        {"step": step, "validation_loss": loss}
        for step, loss in ((1, math.nan), (2, math.inf), (3, 5.0), (4, math.nan))
    ]
    seen = best_so_far(lines, "validation_loss", {1, 2, 3, 4})
    assert seen.best is not None and seen.best.step == 3 and seen.since == 1
    assert best_so_far(lines[:2], "validation_loss", {1, 2}).best is None


def test_a_step_without_a_checkpoint_is_not_the_best() -> None:
    seen = best_so_far(scores(0.1, 0.9, 0.5), "final_answer", {10, 30})
    assert seen.best is not None and seen.best.step == 30


def test_patience_counts_measurements_in_a_row_that_were_not_better() -> None:
    seen = BestSoFar("final_answer")
    spent: list[bool] = []
    for line in scores(0.5, 0.4, 0.6, 0.6, 0.1, 0.7):
        seen.add(line)
        spent.append(seen.is_spent(2))
    assert spent == [False, False, False, False, True, False]
    assert not BestSoFar("final_answer", since=99).is_spent(0)


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=20),
    cut=st.integers(0, 20),
    patience=st.integers(0, 5),
)
def test_a_resumed_run_decides_as_an_uninterrupted_one(
    values: list[float], cut: int, patience: int
) -> None:
    """The checkpoint that it goes on from may be later than the best, or any that was saved."""
    lines = scores(*values)
    whole = BestSoFar("final_answer")
    saved = {line["step"] for line in lines if whole.add(line)}
    before = [line for line in lines if line["step"] <= 10 * cut]
    resumed = best_so_far(before, "final_answer", saved | {10 * cut})
    for line in lines[len(before) :]:
        resumed.add(line)
    assert resumed == whole
    assert resumed.is_spent(patience) == whole.is_spent(patience)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three checkpoints; the one in the middle has the best score."""
    folder = run_of_settings(tmp_path / "asked", EVAL_FILES=["e.json"])
    for step in (10, 20, 30):
        folder.add_checkpoint(checkpoint(step))
    folder.append("metrics.jsonl", scores(0.2, 0.6, 0.4))
    return folder


def test_the_best_is_taken_by_default_and_it_is_said_by_what_and_how_to_take_the_last(
    run: RunFolder,
) -> None:
    chosen, sentence = choose_checkpoint(run, "")
    assert chosen == checkpoint(20)
    assert sentence == (
        f"step-000020 of {run.name}, the best checkpoint by final answer 60.0 % (50.0 to 70.0 %, "
        "n = 50). For the last, step-000030: --checkpoint last"
    )
    assert choose_checkpoint(run, "best") == (chosen, sentence)
    assert choose_checkpoint(run, "last")[0] == checkpoint(30)
    assert choose_checkpoint(run, "step-000010")[0] == checkpoint(10)


def test_the_last_is_taken_where_nothing_was_measured_and_it_is_said(tmp_path: Path) -> None:
    run = run_of_settings(tmp_path / "plain")
    for step in (10, 20):
        run.add_checkpoint(checkpoint(step))
    chosen, sentence = choose_checkpoint(run, "")
    assert chosen == checkpoint(20) and "the last checkpoint: nothing says which" in sentence
    with pytest.raises(UserError, match=r"no best checkpoint: nothing was measured .* step-000010"):
        choose_checkpoint(run, "best")


def test_a_best_checkpoint_that_is_the_last_is_said_to_be_both(run: RunFolder) -> None:
    run.append("metrics.jsonl", [{**scores(0.9)[0], "step": 30}])
    assert choose_checkpoint(run, "")[1].endswith("n = 50); it is the last, too")


def test_an_unknown_name_lists_the_checkpoints(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no checkpoint 20\. Use last, best, or one of step-0000"):
        choose_checkpoint(run, "20")


def test_only_the_settings_that_decide_must_be_right(tmp_path: Path) -> None:
    """A newer version may have made the run."""
    run = run_of_settings(tmp_path / "newer", VALIDATION_RATIO=0.1, SOMETHING_NEW=7)
    assert best_by_of(run) == "validation_loss"
    wrong = run_of_settings(tmp_path / "wrong", BEST_BY="something_new", EVAL_FILES=["e.json"])
    with pytest.raises(UserError, match=r'settings.json is damaged: BEST_BY is "something_new", w'):
        best_by_of(wrong)


def test_best_json_says_which_checkpoint_it_is_and_goes_when_none_is(run: RunFolder) -> None:
    best = best_of_run(run)
    assert best is not None
    write_best(run, best[1])
    assert json.loads(run.file("best.json").read_text()) == {
        "checkpoint": "step-000020",
        "step": 20,
        "by": "final_answer",
        "value": 0.6,
        "n": 50,
        "interval_95": [0.5, 0.7],
    }
    write_best(run, None)
    assert not run.file("best.json").exists()
