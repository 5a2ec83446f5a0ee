"""The checkpoints of a run -> those whose states are no longer needed, and a true record of them.

This module knows no server: whoever calls it deletes the states. Sampler weights always stay.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinkersmith.runs.best import best_so_far
from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.settings.measures import VALIDATION_LOSS

_DELETED = ".deleted-"  # begins the name of a run's folder from its deletion until it is gone


def old_states(
    checkpoints: Sequence[Checkpoint],
    metrics: Iterable[dict[str, Any]],
    keep_last: int,
    protected_step: int | None = None,
    by: str | None = VALIDATION_LOSS,
) -> list[Checkpoint]:
    """The checkpoints whose states may go; oldest first.

    The last `keep_last` stay (0: all), the best one by the measurement `by`, the last of each
    epoch, and the last sound one. The newest is always among them, so that the run can be resumed.

    Args:
        protected_step: the last state saved up to this step stays, too: the loss was sound there.
    """
    with_state = [checkpoint for checkpoint in checkpoints if not checkpoint.state_deleted]
    if keep_last == 0 or len(with_state) <= keep_last:
        return []
    kept = {checkpoint.step for checkpoint in with_state[-keep_last:]} | _ends_of_epochs(
        checkpoints
    )
    if protected_step is not None:
        sound = [point.step for point in with_state if point.step <= protected_step]
        kept |= set(sound[-1:])
    old = [checkpoint for checkpoint in with_state if checkpoint.step not in kept]
    if not old:
        return []
    best = best_so_far(metrics, by, {checkpoint.step for checkpoint in with_state}).best
    return [checkpoint for checkpoint in old if best is None or checkpoint.step != best.step]


def note_deleted_state(run: RunFolder, state_path: str) -> None:
    """Say in checkpoints.jsonl that the state at this path is gone."""
    run.rewrite(
        "checkpoints.jsonl",
        [
            {**line, "state_deleted": True} if line["state_path"] == state_path else line
            for line in run.lines("checkpoints.jsonl")
        ],
    )


def delete_folder(run: RunFolder) -> None:
    """Delete the run's folder. A kill leaves the whole run, or a folder that `sweep` deletes."""
    deleted = run.path.with_name(f"{_DELETED}{run.name}")
    run.path.rename(deleted)
    shutil.rmtree(deleted)


def sweep(output_dir: Path) -> None:
    """Finish deletions that were interrupted."""
    for folder in output_dir.glob(f"{_DELETED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """The bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _ends_of_epochs(checkpoints: Sequence[Checkpoint]) -> set[int]:
    """The steps at which epochs ended: each epoch is saved there, before the next one begins."""
    ends: set[int] = set()
    epochs = 0
    for checkpoint in checkpoints:
        if checkpoint.epoch > epochs:
            ends.add(checkpoint.step)
            epochs = checkpoint.epoch
    return ends
