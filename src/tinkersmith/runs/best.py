"""The measurements of a run -> its best checkpoint, and whether the run has been patient enough.

metrics.jsonl is the truth: everything here is computed from its lines, so a resumed run decides as
an uninterrupted one does. best.json tells other programs what came of it.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.settings.measures import (
    VALIDATION_LOSS,
    best_by,
    is_better,
    measurement_name,
    score_text,
)
from tinkersmith.settings.reading import settings_from

BEST_FILE = "best.json"
_DECIDING = (
    *("BEST_BY", "VALIDATION_FILES", "VALIDATION_RATIO", "EVAL_FILES", "METRICS"),
    *("JUDGE_URL", "JUDGE_MODEL"),  # METRICS may need them
)
_LISTED = 10  # names of checkpoints in a sentence


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one measurement of a run says, by what BEST_BY names."""

    step: int
    by: str  # "validation_loss", "final_answer"
    value: float
    n: int = 0  # questions; 0 for the validation loss
    interval: tuple[float, float] | None = None  # 95 %, of a score

    @property
    def title(self) -> str:
        """The name of what was measured, in words."""
        return self.by.replace("_", " ")

    def __str__(self) -> str:
        return f"{self.title} {value_text(self.by, self.value, self.n, self.interval)}"

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"step": self.step, "by": self.by, "value": self.value}
        if self.interval is not None:
            content |= {"n": self.n, "interval_95": list(self.interval)}
        return content


@dataclass
class BestSoFar:
    """Sees each measurement once, in order. Of equal ones, the earlier is the best."""

    by: str | None  # None: nothing is measured, and nothing is the best
    best: Measurement | None = None
    since: int = 0  # measurements after the best one

    def add(self, line: Mapping[str, Any], saved: Collection[int] | None = None) -> bool:
        """Take a line of metrics.jsonl into account; True if it is the best so far.

        Args:
            saved: the steps that have a checkpoint; no other step is the best. None: all have.
        """
        measured = measurement_in(line, self.by)
        if measured is None:
            return False
        if (
            math.isfinite(measured.value)
            and (saved is None or measured.step in saved)
            and (self.best is None or is_better(measured.by, measured.value, self.best.value))
        ):
            self.best, self.since = measured, 0
            return True
        self.since += 1
        return False

    def is_spent(self, patience: int) -> bool:
        """Whether so many measurements in a row were not better; never with a patience of 0."""
        return 0 < patience <= self.since


def measurement_in(line: Mapping[str, Any], by: str | None) -> Measurement | None:
    """The measurement that a line of metrics.jsonl holds; None if it holds no such."""
    if by is None:
        return None
    name = measurement_name(by)
    if name not in line:
        return None
    interval = None
    if f"{name}_low" in line and f"{name}_high" in line:
        interval = (float(line[f"{name}_low"]), float(line[f"{name}_high"]))
    n = 0 if by == VALIDATION_LOSS else int(line.get(f"{name}_n", line.get("eval/n", 0)))
    return Measurement(line["step"], by, float(line[name]), n, interval)


def best_so_far(
    metrics: Iterable[Mapping[str, Any]], by: str | None, saved: Collection[int]
) -> BestSoFar:
    """The best of the measurements at steps that were saved."""
    seen = BestSoFar(by)
    for line in metrics:
        seen.add(line, saved)
    return seen


def best_by_of(run: RunFolder) -> str | None:
    """What the run's best checkpoint is best by; None where nothing is measured.

    Raises:
        UserError: settings.json is damaged in what decides that. Other settings are not looked at.
    """
    values = run.facts()["settings"]
    try:
        settings = settings_from({name: values[name] for name in _DECIDING if name in values})
    except UserError as error:
        raise UserError(
            f"{run.file('settings.json')} is damaged: {error} Restore the file from a backup, or "
            "take the last checkpoint with --checkpoint last."
        ) from None
    return best_by(settings)


def best_of_run(run: RunFolder) -> tuple[Checkpoint, Measurement] | None:
    """The run's best checkpoint, and what it is the best by; None where nothing was measured.

    Raises:
        UserError: a file of the run is damaged.
    """
    by = best_by_of(run)
    if by is None:
        return None
    checkpoints = {checkpoint.step: checkpoint for checkpoint in run.checkpoints()}
    best = best_so_far(run.metrics(), by, checkpoints).best
    return None if best is None else (checkpoints[best.step], best)


def write_best(run: RunFolder, best: Measurement | None) -> None:
    """Write best.json, or remove it where nothing is the best any more."""
    if best is None:
        run.file(BEST_FILE).unlink(missing_ok=True)
        return
    named = [point for point in run.checkpoints() if point.step == best.step]
    write_json(run.file(BEST_FILE), {"checkpoint": named[-1].name, **best.to_json()})


def choose_checkpoint(run: RunFolder, which: str) -> tuple[Checkpoint, str]:
    """The checkpoint to use, and a sentence that says which it is, and how to take another.

    Args:
        which: "best", "last", the name of a checkpoint, or "": the best where one was measured,
            else the last.

    Raises:
        UserError: the run has no such checkpoint, or a file of it is damaged.
    """
    saved = run.checkpoints()
    last = saved[-1]
    if which == "last":
        return last, f"{last.name} of {run.name}, the last checkpoint"
    if which in ("", "best"):
        if (best := best_of_run(run)) is not None:
            return best[0], _best_sentence(run, *best, last)
        if which:
            raise UserError(
                f"{run.name} has no best checkpoint: nothing was measured where one was saved. "
                "Take the last with --checkpoint last, or name one of "
                f"{names_of_checkpoints(saved)}."
            )
        return last, f"{last.name} of {run.name}, the last checkpoint: nothing says which is best"
    named = [point for point in saved if point.name == which]
    if not named:
        raise UserError(
            f"{run.name} has no checkpoint {which}. Use last, best, or one of "
            f"{names_of_checkpoints(saved)}."
        )
    return named[-1], f"{which} of {run.name}"


def value_text(by: str, value: float, n: int, interval: tuple[float, float] | None) -> str:
    """A measured value for the user: see `score_text`, or a loss."""
    return f"{value:.4f}" if by == VALIDATION_LOSS else score_text(by, value, interval, n)


def names_of_checkpoints(saved: Sequence[Checkpoint]) -> str:
    """The names of the newest checkpoints, for a sentence."""
    names = list(dict.fromkeys(point.name for point in saved))
    more = f"{len(names) - _LISTED} older ones, " if len(names) > _LISTED else ""
    return more + ", ".join(names[-_LISTED:])


def _best_sentence(run: RunFolder, point: Checkpoint, best: Measurement, last: Checkpoint) -> str:
    what = f"{point.name} of {run.name}, the best checkpoint by {best}"
    if point.step == last.step:
        return f"{what}; it is the last, too"
    return f"{what}. For the last, {last.name}: --checkpoint last"
