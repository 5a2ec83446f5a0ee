"""A trained `Plan` and its curves -> answers, advice, and the `TrainedRun` that the caller gets."""

import datetime as dt
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.batches.summary import DataSummary
from tinkersmith.errors import UserError
from tinkersmith.forecast.billing import billed_since, used_lines
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.runs.best import Measurement, best_of_run, best_so_far, write_best
from tinkersmith.runs.folder import SAMPLE_LOSSES_FILE, Checkpoint, RunFolder
from tinkersmith.runs.requests import requests_line
from tinkersmith.service.stored import stored_line
from tinkersmith.settings.measures import VALIDATION_LOSS
from tinkersmith.sources.find import find_files
from tinkersmith.training.advice import RunOutcome, advice
from tinkersmith.training.hard_samples import (
    HARD_SAMPLES_FILE,
    hard_samples_line,
    rank_samples,
    write_hard_samples,
)
from tinkersmith.training.loop import Curves
from tinkersmith.training.plan import Plan
from tinkersmith.training.shown_answers import answer_a_sample

if TYPE_CHECKING:
    import tinker


@dataclass
class TrainedRun:
    """A finished run. Its sampling client works until `close`, or the program's end.

    Client and paths are those of the best checkpoint; of the last where nothing was measured.
    """

    run: RunFolder
    sampling_client: "tinker.SamplingClient"
    sampler_path: str
    state_path: str
    epoch_losses: list[float]  # mean loss per completion token
    validation_losses: list[float]
    answers: list[str]  # to the first sample that was trained on
    _open: ExitStack = field(repr=False)

    def close(self) -> None:
        """End the session, and the embedded engine if there is one."""
        self._open.close()

    def __enter__(self) -> "TrainedRun":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finish(
    plan: Plan, curves: Curves, lengths: LengthReport, guard: ExitStack, progress: Progress
) -> TrainedRun:
    """Answer the first training sample, and print where the model is and what to try next.

    Args:
        guard: keeps the connection; the `TrainedRun` takes it over.
    """
    last = plan.run.checkpoints()[-1]
    best = best_of_run(plan.run)
    write_best(plan.run, best[1] if best else None)
    chosen = best[0] if best else last
    hard = _hard_samples(plan, progress)
    with progress.doing("answering the first training sample"):
        sampler = plan.service.create_sampling_client(chosen.sampler_path)
        answers = answer_a_sample(plan, sampler, progress.say)
    summary = lengths.summary()
    suggestions = advice(_outcome(plan, curves, summary, hard, best, last))
    progress.say("")
    progress.say(f"Model    {plan.run.name}")
    progress.say(f"Path     {chosen.sampler_path}")
    progress.say(f"State    {chosen.state_path}")
    for line in _best_lines(plan, best, last):
        progress.say(line)
    progress.say(f"Folder   {plan.run.path}")
    with suppress(UserError):  # a server need not list what it stores
        progress.say(f"Stored   {stored_line(plan.service, plan.run, plan.settings)}")
    for line in _used_lines(plan):
        progress.say(line)
    progress.say(f"Requests {requests_line(plan.run, plan.compared)}")
    for line in suggestions:
        progress.say(f"Advice   {line}")
    return TrainedRun(
        run=plan.run,
        sampling_client=sampler,
        sampler_path=chosen.sampler_path,
        state_path=chosen.state_path,
        epoch_losses=curves.epochs,
        validation_losses=curves.validation,
        answers=answers,
        _open=guard.pop_all(),
    )


def _used_lines(plan: Plan) -> list[str]:
    """What was predicted, counted and billed, where tokens cost something."""
    if plan.work is None or (plan.service.kind == "embedded" and plan.rates is None):
        return []
    trained = sum(line.get("tokens", 0) for line in plan.run.metrics())
    billed = None
    if plan.service.kind != "embedded":
        begun = dt.datetime.fromisoformat(plan.run.facts()["sessions"][0]["started"])
        now = dt.datetime.now().astimezone()
        billed = billed_since(plan.service, plan.run.name, begun, now)
    return used_lines(plan.work.trained_tokens(plan.total_steps), trained, plan.rates, billed)


def _best_lines(
    plan: Plan, best: tuple[Checkpoint, Measurement] | None, last: Checkpoint
) -> list[str]:
    """Which checkpoint is the best, and what the answers to EVAL_FILES cost."""
    lines: list[str] = []
    if best is not None:
        point, measurement = best
        what = f"Best     {point.name} by {measurement}"
        if point.step == last.step:
            lines.append(f"{what}; it is the last, too")
        else:
            lines.append(
                f"{what}. Path, evaluate and export take it; --checkpoint last takes {last.name}"
            )
    seconds = [line["eval/seconds"] for line in plan.run.metrics() if "eval/seconds" in line]
    if plan.eval_questions is not None and seconds:
        lines.append(
            f"Scored   {counted(len(seconds), 'time')} on "
            f"{counted(len(plan.eval_questions.asked), 'question')} of EVAL_FILES, "
            f"{sum(seconds):,.1f} s in all"
        )
    return lines


def _outcome(
    plan: Plan,
    curves: Curves,
    summary: DataSummary,
    hard: str,
    best: tuple[Checkpoint, Measurement] | None,
    last: Checkpoint,
) -> RunOutcome:
    checkpoints = {point.step: point.name for point in plan.run.checkpoints()}
    lowest = best_so_far(plan.run.metrics(), VALIDATION_LOSS, checkpoints).best
    return RunOutcome(
        settings=plan.settings,
        vocabulary=plan.tokenizer.vocab_size,
        samples=summary.training,
        max_length=plan.max_length,
        context=plan.service.max_context,
        truncated=summary.training_truncated,
        longest=summary.lengths.max,
        epoch_losses=curves.epochs,
        step_losses=curves.steps,
        validation_losses=curves.validation,
        best_checkpoint=checkpoints[lowest.step] if lowest else "",
        earlier_best=best[0].name if best is not None and best[0].step < last.step else "",
        hard_samples=hard,
    )


def _hard_samples(plan: Plan, progress: Progress) -> str:
    """Write hard_samples.jsonl if the server sent losses; the line of advice about it, or ""."""
    if not plan.run.file(SAMPLE_LOSSES_FILE).is_file():
        return ""
    try:
        with progress.doing("ranking the samples by their losses"):
            files, _ = find_files(plan.settings.training_files)
            hard = rank_samples(plan.run, [file.as_posix() for file in files])
            write_hard_samples(plan.run, hard, plan.source)
    except UserError as error:  # the model is trained, whatever became of these files
        progress.say(f"  Warning: {HARD_SAMPLES_FILE} is not written: {error}")
        return ""
    return hard_samples_line(hard)
