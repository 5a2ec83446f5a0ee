"""Which states of a run may go, that the record stays true, and that deletions can be repeated."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.runs.pruning import delete_folder, note_deleted_state, old_states, size_of, sweep

EPOCH = 10  # steps


def saved(*steps: int) -> list[Checkpoint]:
    return [
        Checkpoint(
            name=f"step-{step:06}",
            step=step,
            epoch=step // EPOCH,
            state_path=f"tinker://run/weights/step-{step:06}",
            sampler_path=f"tinker://run/sampler_weights/step-{step:06}",
        )
        for step in steps
    ]


def steps_of(checkpoints: list[Checkpoint]) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints]


def test_the_last_states_and_the_ends_of_epochs_stay() -> None:
    checkpoints = saved(2, 4, 6, 8, 10, 12, 14, 16, 18)
    assert steps_of(old_states(checkpoints, [], 3)) == [2, 4, 6, 8, 12]


def test_the_state_with_the_best_validation_loss_stays() -> None:
    measured = [
        {"step": 3, "validation_loss": 0.1},  # nothing was saved there
        {"step": 4, "validation_loss": 0.5},
        {"step": 6, "loss": 0.0},
        {"step": 8, "validation_loss": 0.9},
    ]
    assert steps_of(old_states(saved(2, 4, 6, 8), measured, 1)) == [2, 6]


def test_the_state_with_the_best_score_stays_if_that_is_what_counts() -> None:
    measured = [
        {"step": step, "validation_loss": loss, "eval/n": 9, "eval/final_answer": score}
        for step, loss, score in ((2, 0.5, 0.7), (4, 0.1, 0.2), (6, 0.9, 0.7))
    ]
    assert steps_of(old_states(saved(2, 4, 6, 8), measured, 1, None, "final_answer")) == [4, 6]
    assert steps_of(old_states(saved(2, 4, 6, 8), measured, 1, None, None)) == [2, 4, 6]


def test_zero_keeps_all() -> None:
    assert old_states(saved(*range(1, 40)), [], 0) == []


@given(
    steps=st.lists(st.integers(1, 60), min_size=1, unique=True).map(sorted),
    keep_last=st.integers(0, 70),
    losses=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 9))),
)
def test_the_newest_state_always_stays(
    steps: list[int], keep_last: int, losses: list[tuple[int, float]]
) -> None:
    metrics = [{"step": step, "validation_loss": loss} for step, loss in losses]
    assert steps[-1] not in steps_of(old_states(saved(*steps), metrics, keep_last))


def test_a_deleted_state_is_noted_and_never_deleted_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for checkpoint in saved(1, 2, 3):
        run.add_checkpoint(checkpoint)
    run.rewrite("checkpoints.jsonl", [{**line} for line in run.lines("checkpoints.jsonl")])
    (old, *_) = old_states(run.checkpoints(), [], 1)
    note_deleted_state(run, old.state_path)
    assert [checkpoint.state_deleted for checkpoint in run.checkpoints()] == [True, False, False]
    assert steps_of(old_states(run.checkpoints(), [], 1)) == [2]


def test_a_deletion_that_was_interrupted_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    (path / "settings.json").write_text("{}")
    (path / "train.log").write_text("x" * 100)
    assert size_of(path) == 102

    def interrupted(folder: Path) -> None:
        (folder / "train.log").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tinkersmith.runs.pruning.shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            delete_folder(RunFolder(path))
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    sweep(path.parent)
    assert list(path.parent.iterdir()) == []
