"""Settings -> a rehearsal: what a run of them will send, tried on a stand-in on this machine."""

import datetime as dt
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.forecast.budget import checked_rates
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.folder import REHEARSAL_FILE, REQUESTS_FILE, RunFolder
from tinkersmith.runs.rehearsals import Rehearsal, add_rehearsal
from tinkersmith.runs.requests import Compared
from tinkersmith.service.connection import ServerGone
from tinkersmith.service.initial import initial_weights, refuse_adapter
from tinkersmith.service.stand_in import embedding_rows, open_stand_in
from tinkersmith.settings.fields import Settings
from tinkersmith.trackers.available import check_trackers
from tinkersmith.training.divergence import Diverged
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.loop import Loop
from tinkersmith.training.plan import Plan, prepare
from tinkersmith.training.rehearsal.target import Target, target_of
from tinkersmith.training.shown_answers import answer_a_sample
from tinkersmith.version import __version__

TRAINED_SECONDS = 60.0  # for which the stand-in is trained
_HELD_LINES = 1000  # in memory at most
# What ends a run early by its losses, which say nothing here.
_WITHOUT_LOSSES = {"patience": 0, "stop_on_divergence": False}


def rehearse(
    settings: Settings,
    signals: Interruption,
    *,
    seconds: float = TRAINED_SECONDS,
    options: Sequence[str] = (),
) -> Rehearsal:
    """Send a run's requests to a stand-in, note the digests of all of them, and say what came.

    Args:
        seconds: after these the stand-in is trained no further. The digests are complete anyway.
        options: those of the command that has the settings, for the command that trains.

    Raises:
        UserError: something the user can fix, as a run would say it.
        KeyboardInterrupt, SystemExit: at a signal; nothing stays.
    """
    if settings.budget_minutes:
        raise UserError(
            f"--rehearse cannot know how long a step takes on the server, and BUDGET_MINUTES = "
            f"{settings.budget_minutes:g} cuts the plan by that. Rehearse with --set "
            "BUDGET_MINUTES=0; a run that its budget cuts short sends the first of the same "
            "requests only if its plan is not cut."
        )
    with (
        watched(partial(print, flush=True)) as progress,
        _ended_in_order(progress, signals),
        ExitStack() as guard,
    ):
        check_trackers(settings.trackers)
        target = target_of(settings, progress, signals.check)
        checked_rates(settings, target.name, is_cloud=target.kind != "embedded")
        refuse_adapter(initial_weights(settings), target.kind)
        progress.say(f"Rehearsal for {target.name}: {target.about}.")
        signals.check()
        place = Path(guard.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        server = guard.enter_context(
            open_stand_in(
                settings,
                place,
                target.name,
                target.kind,
                target.max_context,
                target.tokenizer,
                progress,
            )
        )
        plan = prepare(
            settings, None, guard, progress, signals.check, server=server, rehearsing=place
        )
        plan.data.start(plan.run, 0)
        planned = _noted(plan, place / "planned", progress, signals)
        trained = _trained(plan, planned, seconds, progress, signals)
        rehearsal = add_rehearsal(
            plan.settings, planned.path / REQUESTS_FILE, dt.datetime.now(), _facts(plan, trained)
        )
        for line in _lines(rehearsal, plan, target, trained, options):
            progress.say(line)
    return rehearsal


@contextmanager
def _ended_in_order(progress: Progress, signals: Interruption) -> Generator[None, None, None]:
    """Say that nothing stays of a rehearsal that a signal ends."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        signals.seen()
        progress.say("\nStopped. No rehearsal was written.")
        raise


def _noted(plan: Plan, folder: Path, progress: Progress, signals: Interruption) -> Rehearsal:
    """The requests of all steps, written to a folder that has the form of a rehearsal."""
    folder.mkdir()
    notes = RunFolder(folder)
    lines: list[dict[str, Any]] = []
    with progress.doing("computing the digests of all requests") as task:
        for line, _ in plan.planned.lines():
            lines.append(line)
            if len(lines) >= _HELD_LINES:
                signals.check()
                notes.append(REQUESTS_FILE, lines)
                lines = []
                state = f"digests of step {line['step']:,}/{plan.total_steps:,}"
                progress.reached(task, state, line["step"] / plan.total_steps)
        notes.append(REQUESTS_FILE, lines)
    (folder / REHEARSAL_FILE).touch()
    return Rehearsal(folder)


def _trained(
    plan: Plan, planned: Rehearsal, seconds: float, progress: Progress, signals: Interruption
) -> int:
    """Train the stand-in as a run does, and return after how many steps that ended.

    The loop compares each request with the digests, as that of the run will.
    """
    progress.say("")
    progress.say(
        "A stand-in with random weights is trained: its losses and answers say nothing of the "
        "model. What it saves is deleted."
    )
    settings = plan.settings.model_copy(update=_WITHOUT_LOSSES)
    rehearsed = replace(
        plan, settings=settings, budget=None, compared=Compared(planned), seconds=seconds
    )
    lengths = LengthReport(plan.data, settings.show_length_warnings, progress, listed=False)
    lengths.print_if_complete()
    try:
        Loop(rehearsed, lengths, progress, signals).run()
    except Diverged:
        progress.say(
            "  The stand-in's loss is not a number any more, which a high LEARNING_RATE does to "
            "so small a model. It is trained no further."
        )
    except ServerGone as error:
        raise UserError(f"The rehearsal failed: {error} No rehearsal was written.") from None
    saved = plan.run.checkpoints()
    if saved:
        with progress.doing("answering the first training sample"):
            sampler = plan.service.create_sampling_client(saved[-1].sampler_path)
            answer_a_sample(rehearsed, sampler, lambda line: None)
    return max((line["step"] for line in plan.run.metrics()), default=0)


def _facts(plan: Plan, trained: int) -> dict[str, Any]:
    known = plan.run.facts()
    names = (
        *("base_model", "tokenizer_digest", "template_digest", "data_digest", "questions_digest"),
        *("training_samples", "total_steps", "prompt_template"),
    )
    return {
        "versions": {"tinkersmith": __version__, "tinker": version("tinker")},
        **{name: known.get(name) for name in names},
        "max_context": plan.service.max_context,
        "trained_steps": trained,
    }


def _lines(
    rehearsal: Rehearsal, plan: Plan, target: Target, trained: int, options: Sequence[str]
) -> list[str]:
    facts = rehearsal.facts()
    tokens = counted(embedding_rows(target.tokenizer), "token")
    every = counted(plan.total_steps, "step")
    how = f"all {every}" if trained >= plan.total_steps else f"{trained:,} of {every}, in its time"
    lines = [
        "",
        f"Rehearsal  {rehearsal.path}",
        f"Requests   {facts['requests']:,} in {every}, all together sha256 {facts['digest'][:12]}",
        f"Trained    {how}, on a stand-in with a vocabulary of {tokens}",
        "Not shown  what the server computes, bills and how long it takes; saves and answers",
    ]
    if not plan.service.stand_in or not plan.service.stand_in.trains_output_layer:
        lines.append(
            "           the stand-in's output layer was not trained: with LORA_RANK = "
            f"{plan.settings.lora_rank} it needs too much memory here"
        )
    if plan.planned.creation.get("from"):
        lines.append(
            "           the weights of INITIAL_CHECKPOINT: the stand-in began with a new LoRA"
        )
    return [
        *lines,
        f"Run it     {command_line('train', *options)}",
        "           it compares each request with these, and stops before it sends another one",
    ]
