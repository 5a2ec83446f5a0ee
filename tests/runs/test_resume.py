"""Where an interrupted run goes on, and what is set aside for that."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import checkpoint, run_of_settings
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.resume import (
    Resume,
    checkpoint_refused,
    diverged_after,
    last_sound,
    note_divergence,
    set_aside,
    starting_checkpoint,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Saved at 2, 4 and 6; measured up to 7."""
    folder = RunFolder(tmp_path)
    facts = {"settings": {}, "prompt_template": {}, "total_steps": 8}
    folder.file("settings.json").write_text(json.dumps(facts))
    for step in (2, 4, 6):
        folder.add_checkpoint(checkpoint(step))
    folder.append(
        "metrics.jsonl", [{"step": step, "validation_loss": 1 / step} for step in range(1, 8)]
    )
    return folder


def steps(run: RunFolder, name: str) -> list[Any]:
    return [line["step"] for line in run.lines(name)]


def test_the_last_checkpoint_is_continued_unless_another_is_named(run: RunFolder) -> None:
    assert starting_checkpoint(Resume(run)) == checkpoint(6)
    assert starting_checkpoint(Resume(run, "step-000002")) == checkpoint(2)


def test_an_unknown_name_lists_those_that_exist(run: RunFolder) -> None:
    with pytest.raises(UserError, match="has no checkpoint step-3; it has step-000002, step-00"):
        starting_checkpoint(Resume(run, "step-3"))


def test_a_finished_run_goes_on_only_from_an_earlier_checkpoint(run: RunFolder) -> None:
    run.add_checkpoint(checkpoint(8))
    run.file("samples.json").write_text("[]")
    with pytest.raises(UserError, match="is finished"):
        starting_checkpoint(Resume(run))
    assert starting_checkpoint(Resume(run, "step-000006")) == checkpoint(6)


def test_a_plan_that_a_budget_cut_goes_on_in_another_run(run: RunFolder) -> None:
    facts = {**run.facts(), "cut_to_budget": True}
    run.file("settings.json").write_text(json.dumps(facts))
    run.add_checkpoint(checkpoint(8))
    run.file("samples.json").write_text("[]")
    for changes in ({}, {"BUDGET_USD": 100.0}):
        with pytest.raises(UserError, match="its budget cut the plan to 8 steps") as told:
            starting_checkpoint(Resume(run, changes=changes))
        assert f"--set INITIAL_CHECKPOINT={run.name}" in str(told.value)


def test_a_run_that_stopped_early_goes_on_only_with_more_patience(tmp_path: Path) -> None:
    names = {"VALIDATION_RATIO": 0.1, "EVAL_EVERY": 2, "PATIENCE": 2}
    run = run_of_settings(tmp_path / "early", **names)
    for step, loss in ((2, 1.0), (4, 2.0), (6, 2.0)):
        run.add_checkpoint(checkpoint(step))
        run.append("metrics.jsonl", [{"step": step, "validation_loss": loss}])
    run.file("samples.json").write_text("[]")
    with pytest.raises(UserError) as caught:
        starting_checkpoint(Resume(run))
    said = str(caught.value)
    assert said.startswith("early stopped early at step 6: its last 2 measurements were not better")
    assert checkpoint(2).sampler_path in said, "the best one is evaluated"
    assert said.endswith(f" --resume {run.path} --set PATIENCE=0")
    assert starting_checkpoint(Resume(run, changes={"PATIENCE": 3})) == checkpoint(6)
    assert starting_checkpoint(Resume(run, changes={"PATIENCE": 0})) == checkpoint(6)
    run.file("samples.json").unlink()
    assert starting_checkpoint(Resume(run)) == checkpoint(6), "it was killed before its end"


def test_the_answers_of_a_finished_run_are_set_aside_and_the_best_one_is_written_anew(
    tmp_path: Path,
) -> None:
    """Else a kill after the last save would leave a run that seems to be finished."""
    run = run_of_settings(tmp_path / "mine", VALIDATION_RATIO=0.1)
    for step in (2, 4):
        run.add_checkpoint(checkpoint(step))
        run.append("metrics.jsonl", [{"step": step, "validation_loss": 1 / step}])
    run.file("samples.json").write_text("[1]")
    run.file("best.json").write_text('{"step": 4}')
    (said,) = set_aside(run, 2)
    assert said.endswith("the answers in samples.before-resume-1.json.")
    assert not run.file("samples.json").exists()
    assert run.file("samples.before-resume-1.json").read_text() == "[1]"
    assert json.loads(run.file("best.json").read_text())["step"] == 2
    set_aside(run, 0)
    assert not run.file("best.json").exists()


def test_a_run_that_diverged_goes_on_from_the_last_sound_checkpoint(run: RunFolder) -> None:
    run.append("metrics.jsonl", [{"step": 8, "diverged": True, "last_sound_step": 5}])
    assert diverged_after(run) == 5
    assert starting_checkpoint(Resume(run)) == checkpoint(4)
    assert starting_checkpoint(Resume(run, "step-000006")) == checkpoint(6)
    assert last_sound(run.checkpoints(), 5) == checkpoint(4)
    assert last_sound(run.checkpoints(), 1) is None


def diverged_and_resumed(run: RunFolder, changes: dict[str, Any]) -> bool:
    """Whether the loss will rise again in a run that goes on from step 4 and stops at step 6."""
    run.append("metrics.jsonl", [{"step": 8, "diverged": True, "last_sound_step": 5}])
    rises = note_divergence(run, changes)
    set_aside(run, 4)
    facts = run.facts()
    sessions = [{"settings": facts["settings"] | changes}]
    content = facts | {"settings": facts["settings"] | changes, "sessions": sessions}
    run.file("settings.json").write_text(json.dumps(content))
    run.add_checkpoint(checkpoint(6))
    return rises


@pytest.mark.parametrize("changes", [{}, {"LEARNING_RATE": 0.1}, {"SEED": 4}])
def test_a_divergence_outlives_the_line_that_a_resume_cuts(
    run: RunFolder, changes: dict[str, Any]
) -> None:
    facts = run.facts() | {"settings": {"LEARNING_RATE": 0.1, "GRAD_CLIP_NORM": 1.0}}
    run.file("settings.json").write_text(json.dumps(facts))
    assert diverged_and_resumed(run, changes)
    assert not any(line.get("diverged") for line in run.metrics())
    assert diverged_after(run) == 5
    assert starting_checkpoint(Resume(run)) == checkpoint(4)
    assert starting_checkpoint(Resume(run, "step-000006")) == checkpoint(6)
    assert note_divergence(run, {}), "and outlives the next resume, too"


@pytest.mark.parametrize("changes", [{"LEARNING_RATE": 0.01}, {"GRAD_CLIP_NORM": 0.5}])
def test_a_divergence_is_over_when_a_setting_changes_that_can_help(
    run: RunFolder, changes: dict[str, Any]
) -> None:
    facts = run.facts() | {"settings": {"LEARNING_RATE": 0.1, "GRAD_CLIP_NORM": 1.0}}
    run.file("settings.json").write_text(json.dumps(facts))
    assert not diverged_and_resumed(run, changes)
    assert diverged_after(run) is None
    assert starting_checkpoint(Resume(run)) == checkpoint(6)


def test_a_run_that_is_to_diverge_goes_on_from_its_last_state(run: RunFolder) -> None:
    assert diverged_and_resumed(run, {"STOP_ON_DIVERGENCE": False})
    assert diverged_after(run) == 5
    assert starting_checkpoint(Resume(run)) == checkpoint(6)
    stop = Resume(run, changes={"STOP_ON_DIVERGENCE": True})
    assert starting_checkpoint(stop) == checkpoint(4)


def test_a_run_that_reached_its_end_without_a_rise_is_finished_from_there(run: RunFolder) -> None:
    assert diverged_and_resumed(run, {})
    run.add_checkpoint(checkpoint(8))
    assert starting_checkpoint(Resume(run)) == checkpoint(8)


def test_the_losses_of_samples_are_cut_as_well(run: RunFolder) -> None:
    lines = [{"step": step, "epoch": 1, "losses": {}} for step in (1, 2, 3, 5, 6)]
    run.append("sample_losses.jsonl", lines)
    with run.file("sample_losses.jsonl").open("a") as file:
        file.write('{"step": 7, "ep')  # cut short by a kill
    (said,) = set_aside(run, 3)
    assert "the losses of 2 steps in sample_losses.before-resume-1.jsonl" in said
    assert run.lines("sample_losses.jsonl") == lines[:3]
    assert run.lines("sample_losses.before-resume-1.jsonl") == lines[3:]
    assert set_aside(run, 3) == []


def test_the_shown_answers_are_cut_as_well(run: RunFolder) -> None:
    lines = [{"step": step, "answers": ["text"]} for step in (2, 2, 4)]
    run.append("shown_answers.jsonl", lines)
    (said,) = set_aside(run, 3)
    assert "1 shown answer in shown_answers.before-resume-1.jsonl" in said
    assert run.lines("shown_answers.jsonl") == lines[:2]
    assert run.lines("shown_answers.before-resume-1.jsonl") == lines[2:]


def test_what_is_cut_goes_to_files_of_its_own_each_time(run: RunFolder) -> None:
    (said,) = set_aside(run, 6)
    assert "1 measurement in metrics.before-resume-1.jsonl" in said
    (said,) = set_aside(run, 2)
    assert "2 checkpoints in checkpoints.before-resume-2.jsonl" in said
    assert set_aside(run, 2) == []
    assert steps(run, "metrics.jsonl") == [1, 2]
    assert steps(run, "metrics.before-resume-1.jsonl") == [7]
    assert steps(run, "metrics.before-resume-2.jsonl") == [3, 4, 5, 6]
    assert steps(run, "checkpoints.jsonl") == [2]
    assert steps(run, "checkpoints.before-resume-2.jsonl") == [4, 6]


def test_a_refused_checkpoint_offers_the_one_before_it(run: RunFolder) -> None:
    error = checkpoint_refused(Resume(run), checkpoint(6), "Its weights are damaged.")
    assert str(error).startswith("Its weights are damaged. Continue from the checkpoint before it")
    assert str(error).endswith(f" --resume {run.path} --from step-000004")
    error = checkpoint_refused(Resume(run), checkpoint(2), "Its weights are damaged.")
    assert "has no earlier checkpoint; start a new run" in str(error)


def test_a_changed_base_model_offers_to_insist(run: RunFolder) -> None:
    reason = "It was trained on another base model. Start the engine with --allow-changed-base."
    error = checkpoint_refused(Resume(run), checkpoint(6), reason)
    assert "--allow-changed-base" not in str(error)
    assert str(error).endswith(f" --resume {run.path} --allow-changes")
