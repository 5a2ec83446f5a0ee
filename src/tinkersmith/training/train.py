"""Settings, or an interrupted run -> a finished run: `train`."""

import atexit
import errno
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.batches.read import read_data
from tinkersmith.batches.source import DataSource
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, is_of_network, network_reason, reason_of
from tinkersmith.progress import Progress, watched
from tinkersmith.report.write import write_report_or_warn
from tinkersmith.runs.folder import SAMPLES_FILE, RunFolder, all_runs, open_run
from tinkersmith.runs.lock import locked
from tinkersmith.runs.resume import CHANGED_BY_RESUME, Resume, refuse_improvement
from tinkersmith.service.connection import Server, ServerGone
from tinkersmith.settings.comparing import comparable_setting
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.trackers.available import check_trackers
from tinkersmith.trackers.processes import end_trackers, start_trackers
from tinkersmith.trackers.protocol import State
from tinkersmith.training.divergence import Diverged
from tinkersmith.training.finish import TrainedRun
from tinkersmith.training.interruption import Interruption, interruption
from tinkersmith.training.plan import Plan, Stage, prepare
from tinkersmith.training.recovery import train_to_the_end
from tinkersmith.training.rehearsal.comparison import NotRehearsed
from tinkersmith.training.transcript import Transcript


def train(
    settings: Settings | None = None,
    *,
    resume: str | None = None,
    from_checkpoint: str | None = None,
    allow_changes: bool = False,
    resume_with: Mapping[str, Any] | None = None,
    rehearsal: str = "",
    **names: Any,
) -> TrainedRun:
    """Train a LoRA and return the run with its sampling client.

    SIGINT, SIGTERM and SIGHUP end the run in order: the step under way is finished and saved. This
    holds in the main thread, for signals that the program does not handle itself.

    Args:
        settings: from `load_settings`; or give settings by name: `train(num_epochs=2)`.
        resume: the name or folder of an interrupted run; its own settings are used.
        from_checkpoint: the name of an earlier checkpoint to resume from, such as step-000400.
        allow_changes: resume although the base model, the tokenizer or the data changed; or send
            something else than was rehearsed.
        resume_with: settings that the resumed run goes on with: LEARNING_RATE, GRAD_CLIP_NORM,
            STOP_ON_DIVERGENCE, PATIENCE, BUDGET_USD, BUDGET_MINUTES, TOKENIZER and TRACKERS may be
            changed.
        rehearsal: the name or folder of the rehearsal whose requests the run must send; by default
            the newest one of the same settings.

    Raises:
        UserError: something the user can fix, in one sentence.
        KeyboardInterrupt: on SIGINT, after saving.
        SystemExit: on SIGTERM and SIGHUP, after saving.
    """
    given = settings
    if settings is None:
        settings = settings_from({name.upper(): value for name, value in names.items()})
    elif names:
        raise UserError(f"Give settings or names such as {next(iter(names))}, not both.")
    for option, wanted in (
        ("--from", from_checkpoint is not None),
        ("resume_with", bool(resume_with)),
    ):
        if wanted and resume is None:
            raise UserError(f"{option} has no effect without --resume. Name the run to continue.")
    if rehearsal and resume is not None:
        raise UserError(
            "--rehearsal has no effect with --resume: a run goes on with the rehearsal that it "
            "began with."
        )
    run = open_run(resume, settings.output_dir) if resume is not None else None
    if run is not None:
        refuse_improvement(run)
    transcript = Transcript()
    with interruption() as signals, watched(transcript.say) as progress:
        trained = train_within(
            Surroundings(progress, transcript, signals),
            settings,
            run,
            resume_with=resume_with or {},
            from_checkpoint=from_checkpoint,
            allow_changes=allow_changes,
            given=given,
            rehearsal=rehearsal,
        )
        assert trained is not None  # only a run that is told where to pause gives None
    atexit.register(trained.close)
    return trained


@dataclass(frozen=True)
class Surroundings:
    """What a run is given by whoever starts it: alone, or as one of several in a process."""

    progress: Progress
    transcript: Transcript
    signals: Interruption
    server: Server | None = None  # None: the one that BACKEND means, for this run alone
    read: Callable[[Settings, Progress], DataSource] = read_data
    until: int | None = None  # steps after which the run pauses
    again: str = ""  # the command that continues the run; "": that of training
    begun: Callable[[RunFolder, int], None] = lambda run, steps: None  # with its steps in all


def train_within(
    around: Surroundings,
    settings: Settings,
    run: RunFolder | None,
    *,
    resume_with: Mapping[str, Any] | None = None,
    from_checkpoint: str | None = None,
    allow_changes: bool = False,
    given: Settings | None = None,
    rehearsal: str = "",
) -> TrainedRun | None:
    """Train within `around`, which may be shared with other runs; see `train`.

    Args:
        run: the run to continue, with its own settings; None for a new one.
        given: the user's settings, to say which of them have no effect on `run`.
        rehearsal: that a new run is compared with; "": the newest one of its settings.

    Returns:
        None where the run pauses before its end: it is saved, and can be continued.

    Raises:
        UserError, KeyboardInterrupt, SystemExit: as `train`.
    """
    progress, signals, changes = around.progress, around.signals, dict[str, Any]()
    with ExitStack() as held, ExitStack() as guard:
        if run is not None:
            held.enter_context(locked(run, "training", progress.say))
            changes = _changes(resume_with or {}, run)
            settings = _settings_of(run, changes)
            for line in _changed_settings(given, run, changes):
                progress.say(line)
        with _explained(run, settings, around, under_way=False):
            check_trackers(settings.trackers)
            resumed = Resume(run, from_checkpoint, allow_changes, changes) if run else None
            plan = prepare(
                settings,
                resumed,
                guard,
                progress,
                signals.check,
                server=around.server,
                read=around.read,
                until=around.until,
                rehearsal=rehearsal,
                allow_changes=allow_changes and run is None,
            )
            if run is None:
                held.enter_context(locked(plan.run, "training", progress.say))
            around.begun(plan.run, plan.total_steps)
        with _explained(plan.run, settings, around, under_way=True):
            around.transcript.attach(plan.run.file("train.log"))
            plan.data.start(plan.run, plan.first_step)
            lengths = LengthReport(plan.data, settings.show_length_warnings, progress)
            lengths.print_if_complete()
            with _tracked(plan, progress), reported(plan.run, progress):
                trained = train_to_the_end(plan, lengths, guard, progress, signals)
            signals.check()
    return trained


@contextmanager
def _tracked(plan: Plan, progress: Progress) -> Generator[None, None, None]:
    """TRACKERS show the run while the block trains, and how it ended."""
    settings = plan.settings
    trackers = start_trackers(plan.run, settings.trackers, plan.first_step, progress)
    state: State = "failed"
    try:
        yield
        # A run that pauses, as within a sweep, writes no answers yet.
        state = "finished" if plan.run.file(SAMPLES_FILE).is_file() else "interrupted"
    except Diverged:
        state = "diverged"
        raise
    except (KeyboardInterrupt, SystemExit, BrokenPipeError):
        state = "interrupted"
        raise
    finally:
        end_trackers(trackers, state, progress)


@contextmanager
def reported(run: RunFolder, progress: Progress) -> Generator[None, None, None]:
    """Write the run's report after the block, however it ends; a failure is a warning."""
    try:
        yield
    except BaseException:
        if run.file("metrics.jsonl").is_file():  # else there is nothing to show
            write_report_or_warn(run, progress.say)
        raise
    with progress.doing("writing the report"):
        if (file := write_report_or_warn(run, progress.say)) is not None:
            progress.say(f"Report   {file}")


def train_stage(
    settings: Settings, stage: Stage, progress: Progress, signals: Interruption
) -> RunFolder:
    """Train one round of another job, and return its run folder.

    A run that an interruption left in the stage's folder is continued; a finished one is returned.
    What is said goes to the round's train.log alone.

    Raises:
        Diverged: the loss has risen for long.
        UserError: something the user can fix, in one sentence.
        KeyboardInterrupt: on SIGINT, after saving.
        SystemExit: on SIGTERM and SIGHUP, after saving.
    """
    before = all_runs(stage.folder)
    if before and before[0].file(SAMPLES_FILE).is_file():  # the last file that a run writes
        return before[0]
    resume = Resume(before[0]) if before else None
    transcript = Transcript(prints=False)
    with ExitStack() as guard, progress.aside(transcript.say):
        plan = prepare(settings, resume, guard, progress, signals.check, stage=stage)
        transcript.attach(plan.run.file("train.log"))
        plan.data.start(plan.run, plan.first_step)
        lengths = LengthReport(plan.data, settings.show_length_warnings, progress)
        lengths.print_if_complete()
        trained = train_to_the_end(plan, lengths, guard, progress, signals)
        assert trained is not None  # only a run that is told where to pause gives None
        trained.close()
        signals.check()
        return trained.run


def _changes(resume_with: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """What a resumed run is to change, by the upper-case names of the settings.

    Raises:
        UserError: a setting cannot be changed within a run, or its value is wrong.
    """
    changes = {name.upper(): value for name, value in resume_with.items()}
    for name in changes:
        if name not in CHANGED_BY_RESUME:
            raise UserError(
                f"{name} cannot be changed when a run is resumed; only "
                f"{', '.join(CHANGED_BY_RESUME)} can. Start a new run."
            )
    own = {name.upper(): value for name, value in run.settings().model_dump().items()}
    checked = settings_from({**own, **changes})
    return {name: getattr(checked, name.lower()) for name in changes}


def _changed_settings(
    given: Settings | None, run: RunFolder, changes: Mapping[str, Any]
) -> list[str]:
    """Say which of the user's settings differ from those of the run that is resumed."""
    own = run.settings()
    if given is None:
        return []
    changed = [
        f"{name.upper()} ({getattr(given, name)!r}; the run has {getattr(own, name)!r})"
        for name in FIELDS
        if name != "output_dir"
        and name.upper() not in changes
        and comparable_setting(given, name) != comparable_setting(own, name)
    ]
    if not changed:
        return []
    return [
        f"{run.name} goes on with its own settings. These differ from yours, which have no "
        f"effect: {', '.join(changed)}."
    ]


def _settings_of(run: RunFolder, changes: Mapping[str, Any]) -> Settings:
    """The settings to continue a run with: its own with `changes`, wherever its folder is now."""
    changed = {name.lower(): value for name, value in changes.items()}
    settings = run.settings().model_copy(update={"output_dir": str(run.path.parent), **changed})
    if run.facts().get("backend") == "embedded":  # its states are here, whatever is set now
        settings = settings.model_copy(update={"backend": "local"})
    return settings


@contextmanager
def _explained(
    run: RunFolder | None,
    settings: Settings,
    around: Surroundings,
    *,
    under_way: bool,
) -> Generator[None, None, None]:
    """Failures within the block say how to continue the run, if there is one to continue."""
    progress = around.progress
    again = around.again or (command_line("train", "--resume", run.path) if run else "")
    how = f"Continue with: {again}" if run else ""
    try:
        yield
    except (Diverged, NotRehearsed):
        raise
    except UserError as error:
        if not (under_way or isinstance(error, ServerGone)):
            raise
        sentence = f"{error} {how}".strip()
        if isinstance(error, ServerGone):  # whoever trains several runs ends them all
            raise ServerGone(sentence, final=error.final, forgot=error.forgot) from None
        raise UserError(sentence) from None
    except (KeyboardInterrupt, SystemExit):
        around.signals.seen()
        progress.say(f"\nStopped. {how or 'Nothing was begun.'}")
        raise
    except BrokenPipeError:  # the reader of our output has gone; the log says how to go on
        progress.say(f"\nStopped: nobody reads the output any more. {how}".rstrip())
        raise
    except OSError as error:
        raise UserError(f"{_trouble(error, run, settings)} {how}".strip()) from None


def _trouble(error: OSError, run: RunFolder | None, settings: Settings) -> str:
    """A sentence about a file that cannot be used. Errors of writing do not name their file."""
    if is_of_network(error):
        return (
            f"A host on the network was not reached ({network_reason(error)}). Check the network "
            "and the proxy settings."
        )
    where = run.path if run else Path(settings.output_dir)
    reason = reason_of(error)
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if file and not Path(file).absolute().is_relative_to(Path(settings.output_dir).absolute()):
        return f"{file} cannot be used: {reason}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{where} cannot be written to: {reason}. Free some space or choose another OUTPUT_DIR."
        )
    return f"{file or where} cannot be used: {reason}. Correct that, or choose another OUTPUT_DIR."
