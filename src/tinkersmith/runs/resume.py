"""An interrupted run -> where to continue it, and what is set aside for that."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.runs.best import (
    best_by_of,
    best_of_run,
    best_so_far,
    names_of_checkpoints,
    write_best,
)
from tinkersmith.runs.folder import (
    IMPROVEMENT_FACT,
    MEASURED_FILE,
    REQUESTS_FILE,
    SAMPLE_LOSSES_FILE,
    SAMPLES_FILE,
    SHOWN_ANSWERS_FILE,
    Checkpoint,
    RunFolder,
)
from tinkersmith.settings.spelling import override_text

# Settings that a resumed run may go on with another value of: after its loss has risen.
CHANGED_BY_RESUME = (
    "LEARNING_RATE",
    "GRAD_CLIP_NORM",
    "STOP_ON_DIVERGENCE",
    "PATIENCE",
    "BUDGET_USD",
    "BUDGET_MINUTES",
    "TOKENIZER",  # its digest must be the run's
    "TRACKERS",  # one that fails must not keep a run from going on
)
_ROUND_OF = "round_of"  # in settings.json of a training within an improvement
_AGAINST_DIVERGENCE = ("LEARNING_RATE", "GRAD_CLIP_NORM")  # what is advised after that
# .jsonl: the files that a resume cuts
_CUT = ("checkpoints", "metrics", "sample_losses", "measured", "shown_answers", "requests")


@dataclass(frozen=True, slots=True)
class Resume:
    """An interrupted run, and how to continue it."""

    run: RunFolder
    from_checkpoint: str | None = None  # None: the last one
    allow_changes: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])  # by upper-case names


def starting_checkpoint(resume: Resume) -> Checkpoint | None:
    """The checkpoint to continue from; None where the run saved nothing yet.

    A run that has diverged goes on from the last checkpoint before its loss rose, unless it was
    resumed since and is to go on although it diverges.

    Raises:
        UserError: the run is finished, or has no checkpoint of that name.
    """
    run, saved = resume.run, resume.run.checkpoints()
    if resume.from_checkpoint is not None:
        named = [point for point in saved if point.name == resume.from_checkpoint]
        if not named:
            raise UserError(
                f"{run.name} has no checkpoint {resume.from_checkpoint}; it has "
                f"{names_of_checkpoints(saved) or 'none yet'}."
            )
        if named[-1].state_deleted:
            left = [point for point in saved if not point.state_deleted]
            raise UserError(
                f"The state of {resume.from_checkpoint} was deleted to save space (KEEP_LAST). "
                f"{run.name} can be continued from {names_of_checkpoints(left)}."
            )
        return named[-1]
    if run.file(SAMPLES_FILE).is_file() and saved:  # the last file that a run writes
        _refuse_finished(resume, saved)
    sound = diverged_after(run)
    if sound is None:
        return saved[-1] if saved else None
    if not _stopped_by_divergence(run) and saved:
        is_wanted = not resume.changes.get("STOP_ON_DIVERGENCE", _stops_on_divergence(run))
        if is_wanted or saved[-1].step >= run.fact("total_steps"):  # or it did not diverge again
            return saved[-1]
    return last_sound(saved, sound)


def round_facts(run: RunFolder, job: RunFolder, initial_state: str) -> dict[str, Any]:
    """The facts of a training that is a round of another job."""
    return {
        _ROUND_OF: Path(os.path.relpath(job.path, run.path)).as_posix(),
        "initial_state": initial_state,
    }


def refuse_improvement(run: RunFolder) -> None:
    """Refuse to train an improvement, or a round of one, by itself.

    Raises:
        UserError: `run` is one of them; the sentence says how to continue it.
    """
    facts = run.facts()
    place = facts.get(_ROUND_OF)
    if isinstance(place, str):
        job = Path(os.path.normpath(run.path / place))
        raise UserError(
            f"{run.name} is a round of the improvement {job.name}, which trains it. Continue that "
            f"with: {command_line('improve', '--resume', job)}"
        )
    if IMPROVEMENT_FACT in facts:
        raise UserError(
            f"{run.name} is an improvement by a model's own answers. Continue it with: "
            f"{command_line('improve', '--resume', run.path)}"
        )


def last_sound(saved: Sequence[Checkpoint], sound: int) -> Checkpoint | None:
    """The last of these checkpoints that a run can go on from and that is of step `sound` at most.

    Args:
        sound: the last step before the loss rose.
    """
    states = [point for point in saved if point.step <= sound and not point.state_deleted]
    return states[-1] if states else None


def _refuse_finished(resume: Resume, saved: list[Checkpoint]) -> None:
    """Raise UserError if the run was trained to its end, or to where its patience was spent."""
    run = resume.run
    best = best_of_run(run)
    path = best[0].sampler_path if best else saved[-1].sampler_path
    output_dir = override_text("output_dir", str(run.path.parent))
    evaluate = command_line("evaluate", "--model-path", path, "--set", output_dir)
    if saved[-1].step >= run.fact("total_steps") and run.facts().get("cut_to_budget"):
        start = override_text("initial_checkpoint", run.name)
        further = command_line("train", "--set", start, "--set", output_dir)
        raise UserError(
            f"{run.name} is finished: its budget cut the plan to {run.fact('total_steps'):,} "
            "steps, and its learning rate ended with them. Evaluate it with: "
            f"{evaluate} - or train further in another run, with a plan and a budget of its own: "
            f"{further}"
        )
    if saved[-1].step >= run.fact("total_steps"):
        raise UserError(
            f"{run.name} is finished; nothing is left to train. Evaluate it with: {evaluate}"
        )
    patience: int = resume.changes.get("PATIENCE", run.settings().patience)
    steps = {point.step for point in saved}
    seen = best_so_far(run.metrics(), best_by_of(run), steps)
    if seen.is_spent(patience):
        again = command_line("train", "--resume", run.path, "--set", "PATIENCE=0")
        raise UserError(
            f"{run.name} stopped early at step {saved[-1].step:,}: its last {seen.since:,} "
            f"measurements were not better, and PATIENCE is {patience}. Evaluate it with: "
            f"{evaluate} - or train it to its end with: {again}"
        )


def diverged_after(run: RunFolder) -> int | None:
    """The last step before the loss rose; None where the run never stopped because it had.

    A resume cuts the line of metrics.jsonl that says so. The fact in settings.json stays until a
    setting changes that can help.
    """
    stops = _stopped_by_divergence(run)
    return stops[-1]["last_sound_step"] if stops else run.facts().get("diverged_after")


def note_divergence(run: RunFolder, changes: Mapping[str, Any]) -> bool:
    """Before a resume cuts metrics.jsonl: note in settings.json whether the loss will rise again.

    Args:
        changes: the settings that the run goes on with, by upper-case names.

    Returns:
        Whether the run had diverged, and goes on with the settings that made it so.
    """
    facts, sound = run.facts(), diverged_after(run)
    if sound is None:
        return False
    present: dict[str, Any] = {**facts["settings"], **changes}
    sessions: list[dict[str, Any]] = facts.get("sessions") or []
    before: Any = sessions[-1].get("settings") if sessions else None
    # Somebody may have edited the settings in the file since that process.
    former = cast("dict[str, Any]", before if isinstance(before, dict) else facts["settings"])
    rises = all(present.get(name) == former.get(name) for name in _AGAINST_DIVERGENCE)
    noted = {name: value for name, value in facts.items() if name != "diverged_after"}
    if rises:
        noted["diverged_after"] = sound
    write_json(run.file("settings.json"), noted)
    return rises


def _stopped_by_divergence(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line.get("diverged")]


def _stops_on_divergence(run: RunFolder) -> bool:
    return bool(run.facts()["settings"].get("STOP_ON_DIVERGENCE", True))


def checkpoint_refused(resume: Resume, checkpoint: Checkpoint, reason: str) -> UserError:
    """What to do when the server does not load `checkpoint`: insist, or go further back."""
    run = resume.run.path
    if "--allow-changed-base" in reason:  # an option of the engine, which train does not have
        insist = command_line("train", "--resume", run, "--allow-changes")
        reason = re.sub(r"[^.:;]*--allow-changed-base[^.:;]*[.:;]?", "", reason).rstrip()
        return UserError(f"{reason} Use the former base model, or insist with: {insist}")
    earlier = [
        point
        for point in resume.run.checkpoints()
        if point.step < checkpoint.step and not point.state_deleted
    ]
    if not earlier:
        return UserError(f"{reason} {resume.run.name} has no earlier checkpoint; start a new run.")
    before = max(earlier, key=lambda point: point.step)
    again = command_line("train", "--resume", run, "--from", before.name)
    return UserError(f"{reason} Continue from the checkpoint before it with: {again}")


def set_aside(run: RunFolder, done: int) -> list[str]:
    """Cut what the run measured and saved after step `done`: those steps are done again.

    The lines that are cut go to files of their own, such as metrics.before-resume-1.jsonl.

    Returns:
        What was cut, line by line, for the user.
    """
    number = 1
    while any(run.file(_aside(name, number)).exists() for name in _CUT) or (
        run.file(_samples_aside(number)).exists()
    ):
        number += 1
    said: list[str] = []
    run.checkpoints()  # says what is damaged
    saved = run.lines("checkpoints.jsonl")  # with the fields of newer versions
    later = [line for line in saved if line["step"] > done]
    if later:
        run.rewrite(_aside("checkpoints", number), later)
        run.rewrite("checkpoints.jsonl", [line for line in saved if line["step"] <= done])
        said.append(f"{counted(len(later), 'checkpoint')} in {_aside('checkpoints', number)}")
    measured = run.metrics()
    undone = [line for line in measured if line["step"] > done]
    if undone:
        run.rewrite(_aside("metrics", number), undone)
        run.rewrite("metrics.jsonl", [line for line in measured if line["step"] <= done])
        said.append(f"{counted(len(undone), 'measurement')} in {_aside('metrics', number)}")
    if cut := run.cut_lines(SAMPLE_LOSSES_FILE, done, _aside("sample_losses", number)):
        said.append(f"the losses of {counted(cut, 'step')} in {_aside('sample_losses', number)}")
    if cut := run.cut_lines(MEASURED_FILE, done, _aside("measured", number)):
        said.append(f"{counted(cut, 'list')} of single values in {_aside('measured', number)}")
    if cut := run.cut_lines(SHOWN_ANSWERS_FILE, done, _aside("shown_answers", number)):
        said.append(f"{counted(cut, 'shown answer')} in {_aside('shown_answers', number)}")
    if cut := run.cut_lines(REQUESTS_FILE, done, _aside("requests", number)):
        said.append(f"{counted(cut, 'line')} about requests in {_aside('requests', number)}")
    with suppress(FileNotFoundError):  # it would say that the run is finished
        run.file(SAMPLES_FILE).rename(run.file(_samples_aside(number)))
        said.append(f"the answers in {_samples_aside(number)}")
    best = best_of_run(run)
    write_best(run, best[1] if best else None)
    if not said:
        return []
    return [f"  What came after step {done:,} is done again. Set aside: {', '.join(said)}."]


def _samples_aside(number: int) -> str:
    return SAMPLES_FILE.replace(".json", f".before-resume-{number}.json")


def _aside(name: str, number: int) -> str:
    return f"{name}.before-resume-{number}.jsonl"
