"""Settings and a grid, or a sweep that was stopped -> all its runs, in order of merit."""

import datetime as dt
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, Task, watched
from tinkersmith.runs.best import best_of_run
from tinkersmith.runs.folder import SAMPLES_FILE, RunFolder
from tinkersmith.runs.lock import locked
from tinkersmith.runs.measured import single_values
from tinkersmith.service.connection import Server, open_server
from tinkersmith.service.initial import initial_weights
from tinkersmith.settings.comparing import comparable_setting
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.measures import best_by, check_scores_are_measured
from tinkersmith.settings.reading import settings_from
from tinkersmith.settings.spelling import output_dir_option
from tinkersmith.sweep.crew import Begun, Crew, Ended, RunTask
from tinkersmith.sweep.grid import MOST_RUNS, combinations_of, read_grid
from tinkersmith.sweep.keeping import delete_losers
from tinkersmith.sweep.ranking import CombinationResult, Ranking, is_lower_better, rank
from tinkersmith.sweep.record import (
    SWEEP_FILE,
    UNFINISHED,
    Sweep,
    SweepRun,
    describe,
    new_sweep,
    read_sweep,
)
from tinkersmith.sweep.rungs import check_sweep_budget, rungs_within, survivors
from tinkersmith.sweep.shared_data import SharedData
from tinkersmith.sweep.size import RunSize, check_files_of_sweep, sizes_of
from tinkersmith.training.interruption import Interruption, interruption
from tinkersmith.training.transcript import Transcript

LOG_FILE = "sweep.log"
AT_A_TIME, MOST_PARALLEL = 4, 32  # runs at a time
_LOOK_EVERY = 0.2  # seconds between two looks at the signals
_LAST_WORDS = 3.0  # seconds that runs get to end after a second signal
# Settings that a resumed sweep may be given other values of: they change none of its runs.
_FREE = ("output_dir", "model_name_prefix", "best_by", "export_after_training", "server_patience")
_FREE_TOO = ("show_length_warnings", "backend", "seed")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks of a sweep; None where an option was not given."""

    grid: Sequence[str] = ()
    budget: float | None = None
    seeds: int | None = None
    by: str | None = None
    parallel: int | None = None
    name: str | None = None
    keep: str | None = None
    resume: str | None = None
    given: Sequence[str] = ()  # --config and --set as they were given, to be repeated


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that came to its end."""

    sweep: Sweep
    ranking: Ranking
    failed: list[SweepRun]


def run_sweep(
    settings: Settings,
    wanted: Wanted,
    write: Callable[[Sweep, Ranking], object],
    report: Callable[[Sweep, Ranking, Progress], None],
    *,
    has_settings: bool = True,
) -> Swept:
    """Train every combination of a grid, or those that successive halving leaves, and rank them.

    Args:
        write: writes what is known so far, after each run that ends.
        report: writes and prints what came of it.
        has_settings: whether the user gave settings, which a resumed sweep must agree with.

    Raises:
        UserError: something the user can fix, in one sentence.
        KeyboardInterrupt, SystemExit: on a signal, after all runs have saved.
    """
    _check_options(wanted)
    transcript, data = Transcript(), SharedData()
    with interruption() as signals, watched(transcript.say) as progress, ExitStack() as opened:
        if wanted.resume is not None:
            sweep = read_sweep(wanted.resume, settings.output_dir)
            _refuse_changes(sweep, settings if has_settings else None, wanted)
            sweep.keep = wanted.keep or sweep.keep
            server = opened.enter_context(_server_of(sweep, progress))
            transcript.attach(sweep.folder / LOG_FILE)
            progress.say(_left_line(sweep))
        else:
            settings, grid = _settings_and_grid(settings, wanted)
            combinations = combinations_of(grid, settings)
            _check_count(len(combinations), wanted)
            check_sweep_budget(wanted.budget, len(combinations))
            folder = _new_folder(settings, wanted)
            models = [chosen.settings.base_model for chosen in combinations]
            weights = initial_weights(settings)
            questions = check_files_of_sweep(combinations, data, progress)
            server = opened.enter_context(open_server(settings, models, progress, weights=weights))
            sizes = sizes_of(combinations, server, data, questions, progress, signals.check)
            fewest = min(size.steps for size in sizes)
            sweep = new_sweep(
                folder,
                settings,
                grid,
                combinations,
                rungs_within(wanted.budget, len(combinations), fewest),
                [size.steps for size in sizes],
                by=best_by(settings) or "",
                seeds=wanted.seeds or 1,
                budget=wanted.budget,
                keep=wanted.keep or "all",
                backend=server.kind,
            )
            for line in plan_lines(sweep, sizes, wanted.parallel or AT_A_TIME):
                progress.say(line)
            folder.mkdir(parents=True)
            sweep.write()
            transcript.attach(folder / LOG_FILE)
        crew = Crew(server, data, _command_to_resume(sweep, wanted.given))
        so_far = partial(_write_so_far, sweep, write, progress)
        parallel = wanted.parallel or AT_A_TIME
        return _conduct(sweep, crew, parallel, progress, signals, so_far, report)


def _server_of(sweep: Sweep, progress: Progress) -> AbstractContextManager[Server]:
    """The server that a sweep began on, if it is our own; else the one that BACKEND means."""
    settings = sweep.settings
    if sweep.backend == "embedded":  # its states are here, whatever is set now
        settings = settings.model_copy(update={"backend": "local"})
    models = [chosen.settings.base_model for chosen in sweep.combinations]
    return open_server(settings, models, progress, weights=initial_weights(settings))


# ---- before anything starts


def _check_options(wanted: Wanted) -> None:
    if wanted.seeds is not None and not 1 <= wanted.seeds <= 100:
        raise UserError(f"--seeds is {wanted.seeds}; it must be between 1 and 100.")
    if wanted.parallel is not None and not 1 <= wanted.parallel <= MOST_PARALLEL:
        raise UserError(
            f"--parallel is {wanted.parallel}; it must be between 1 and {MOST_PARALLEL} (a usual "
            "choice: 4)."
        )
    if wanted.resume is None and not wanted.grid:
        raise UserError(
            "A sweep needs --grid: the settings to try, such as --grid LEARNING_RATE=1e-3,3e-3 "
            "LORA_RANK=8,32"
        )


def _settings_and_grid(
    settings: Settings, wanted: Wanted
) -> tuple[Settings, dict[str, list[object]]]:
    """The settings that all runs share, with --by as BEST_BY, and the grid.

    Raises:
        UserError: nothing is measured that runs could be compared by, or an entry is wrong.
    """
    if wanted.by is not None:
        own = {name.upper(): value for name, value in settings.model_dump().items()}
        try:
            settings = settings_from({**own, "BEST_BY": wanted.by})
            check_scores_are_measured(settings)
        except UserError as error:
            raise UserError(f"--by {wanted.by}: {error}") from None
    if best_by(settings) is None:
        raise UserError(
            "A sweep compares its runs by what they measure, and nothing is measured. Set "
            "VALIDATION_RATIO, VALIDATION_FILES or EVAL_FILES, such as with --set "
            "VALIDATION_RATIO=0.1"
        )
    return settings, read_grid(wanted.grid, settings)


def _new_folder(settings: Settings, wanted: Wanted) -> Path:
    name = wanted.name or f"sweep-{dt.datetime.now():%Y%m%d-%H%M%S}"
    try:
        settings_from({"MODEL_NAME_PREFIX": f"{name}-000"})
    except UserError:
        raise UserError(
            f"--name is {name!r}; it must have at most 60 letters, digits, dots, - and _, and "
            "begin with a letter or digit."
        ) from None
    folder = Path(settings.output_dir) / name
    if folder.exists():
        if (folder / SWEEP_FILE).exists():
            raise UserError(
                f"There is a sweep {name} in {settings.output_dir} already. Go on with it with "
                f"--resume {name}, or give another --name."
            )
        raise UserError(f"{folder} exists already. Give another --name.")
    return folder


def _check_count(combinations: int, wanted: Wanted) -> None:
    runs = combinations * (wanted.seeds or 1)
    if runs == 1:
        raise UserError(
            "--grid has one combination, which is one run. Give a setting several values, or "
            f"--seeds; a single run is for: {command_line('train')}"
        )
    if runs > MOST_RUNS:
        raise UserError(
            f"--grid and --seeds make {runs:,} runs, and a sweep has at most {MOST_RUNS}. Give "
            "fewer values."
        )


def _refuse_changes(sweep: Sweep, settings: Settings | None, wanted: Wanted) -> None:
    """Refuse options and settings that differ from those that the sweep began with.

    Raises:
        UserError: the sentence names the first of them.
    """
    new = f"Start a new sweep for that, or resume {sweep.name} without it."
    if wanted.name is not None and wanted.name != sweep.name:
        raise UserError(f"--name {wanted.name}: a sweep that is resumed keeps its name. {new}")
    if wanted.grid:
        grid = read_grid(wanted.grid, sweep.settings)
        if grid != sweep.grid:
            raise UserError(
                f"--grid {describe(grid)}: {sweep.name} began with {describe(sweep.grid)}. {new}"
            )
    for option, value, own in (
        ("--budget", wanted.budget, sweep.budget),
        ("--seeds", wanted.seeds, sweep.seeds),
        ("--by", wanted.by, sweep.by),
    ):
        if value is not None and value != own:
            began = "no such option" if own is None else own
            raise UserError(f"{option} {value}: {sweep.name} began with {began}. {new}")
    for name in FIELDS if settings is not None else ():
        if name in (*_FREE, *_FREE_TOO) or name.upper() in sweep.grid or settings is None:
            continue
        if comparable_setting(settings, name) != comparable_setting(sweep.settings, name):
            raise UserError(
                f"{name.upper()} is {getattr(settings, name)!r}, and {sweep.name} began with "
                f"{getattr(sweep.settings, name)!r}. Undo that change, or start a new sweep."
            )


def _command_to_resume(sweep: Sweep, given: Sequence[str]) -> str:
    # config.py may say something else than what was given, and is compared with the sweep.
    options = list(given)
    if not any(text.upper().startswith("OUTPUT_DIR=") for text in given):
        options += output_dir_option(sweep.settings.output_dir)
    return command_line("sweep", "--resume", sweep.name, *options)


def plan_lines(sweep: Sweep, sizes: Sequence[RunSize], parallel: int) -> list[str]:
    """What the sweep will do: its runs, steps and tokens."""
    count, by = len(sweep.combinations), sweep.by.replace("_", " ")
    of = f"{counted(count, 'combination')} of {describe(sweep.grid)}"
    seeds = f", {counted(sweep.seeds, 'seed')} each" if sweep.seeds > 1 else ""
    lines = [
        f"Sweep {sweep.name}: {counted(len(sweep.runs), 'run')}",
        f"  {of}{seeds}; up to {min(parallel, len(sweep.runs))} at a time, compared by {by}",
    ]
    done = [0] * count
    whole = sum(size.steps for size in sizes) * sweep.seeds
    steps, tokens = 0.0, 0.0
    for number, rung in enumerate(sweep.rungs, start=1):
        until = [rung.steps(size.steps) for size in sizes]
        # Which combinations go on is not known yet: the mean over all of them.
        mean = sum(b - a for a, b in zip(done, until, strict=True)) / count
        share = sum(
            (b - a) / size.steps * (size.tokens or 0.0)
            for a, b, size in zip(done, until, sizes, strict=True)
        )
        steps += mean * rung.combinations * sweep.seeds
        tokens += share / count * rung.combinations * sweep.seeds
        done = until
        if len(sweep.rungs) > 1:
            reach = f"{min(until):,}" if min(until) == max(until) else f"{rung.share:.1%}"
            where = f"step {reach}" if min(until) == max(until) else f"{reach} of their steps"
            lines.append(
                f"  Rung {number}: {counted(rung.combinations, 'combination')} up to {where}"
            )
    about = "about " if len(sweep.rungs) > 1 and len({size.steps for size in sizes}) > 1 else ""
    of_all = f" of the {whole:,} that all would need" if len(sweep.rungs) > 1 else ""
    known = all(size.tokens is not None for size in sizes)
    amount = f"about {tokens:,.0f} tokens" if known else "the tokens of large files are not counted"
    lines.append(f"  In all {about}{steps:,.0f} steps{of_all}, {amount}")
    if sweep.settings.export_after_training not in ("ask", "no"):
        lines.append("  A sweep exports nothing (EXPORT_AFTER_TRAINING); its end says how to.")
    return lines


def _left_line(sweep: Sweep) -> str:
    left = sum(run.status in UNFINISHED for run in sweep.runs)
    ended = len(sweep.runs) - left
    return (
        f"Sweep {sweep.name}: {ended} of {counted(len(sweep.runs), 'run')} have ended; {left} go on"
    )


# ---- the runs


def _conduct(
    sweep: Sweep,
    crew: Crew,
    parallel: int,
    progress: Progress,
    signals: Interruption,
    write: Callable[[], None],
    report: Callable[[Sweep, Ranking, Progress], None],
) -> Swept:
    with locked(RunFolder(sweep.folder), "sweeping", progress.say):
        try:
            with progress.doing("training the runs of the sweep") as task, signals.held_back():
                for rung in range(len(sweep.rungs)):
                    _climb(sweep, rung, crew, parallel, progress, task, signals, write)
        except (KeyboardInterrupt, SystemExit, BrokenPipeError):
            signals.seen()
            _wind_up(sweep, crew, progress)
            write()
            progress.say(f"\nStopped. Continue with: {crew.again}")
            raise
        finally:
            _end_all(crew)
        failed = [run for run in sweep.runs if run.status == "failed"]
        if all(run.status in ("failed", "diverged") for run in sweep.runs):
            first = sweep.runs[0]
            reason = _without(first.reason, crew.again)
            raise UserError(
                f"No run of {sweep.name} came to its end. The first, {sweep.label(first)}: "
                f"{reason} Correct that, and continue with: {crew.again}"
            )
        ranking = rank(sweep.by, results_of(sweep))
        sweep.ranking = ranking.to_json()
        sweep.write()
        report(sweep, ranking, progress)
        if sweep.keep == "best" and ranking.rows:
            delete_losers(sweep, ranking, crew.server, progress)
        if failed:
            progress.say(f"  {counted(len(failed), 'run')} failed. To try again: {crew.again}")
    return Swept(sweep, ranking, failed)


def _write_so_far(
    sweep: Sweep, write: Callable[[Sweep, Ranking], object], progress: Progress
) -> None:
    """Write the page and the table while runs are at work; a failure is a warning."""
    try:
        write(sweep, rank(sweep.by, results_of(sweep)))
    except (OSError, UserError) as error:
        progress.say(f"  Warning: the page of {sweep.name} is not written: {error}")


def _without(reason: str, again: str) -> str:
    """A run's reason without the command that it ends with, which the sweep says itself."""
    return reason.removesuffix(f"Continue with: {again}").rstrip()


def _end_all(crew: Crew) -> None:
    """Give runs that are still at work, after an error or a second signal, a moment to end."""
    crew.stop()
    end = time.monotonic() + _LAST_WORDS
    while crew.at_work and time.monotonic() < end:
        with suppress(queue.Empty):
            event = crew.events.get(timeout=_LOOK_EVERY)
            if isinstance(event, Ended):
                crew.ended(event.number)


def _climb(
    sweep: Sweep,
    rung: int,
    crew: Crew,
    parallel: int,
    progress: Progress,
    task: Task,
    signals: Interruption,
    write: Callable[[], None],
) -> None:
    """Train up to a rung, and stop the combinations that do not go on from it.

    Raises:
        UserError: the server is gone.
    """
    is_last = rung == len(sweep.rungs) - 1
    waiting = [
        run for run in sweep.runs if run.status in UNFINISHED and len(run.rung_values) <= rung
    ]
    while waiting or crew.at_work:
        signals.check()
        while waiting and len(crew.at_work) < parallel:
            _start(sweep, waiting.pop(0), rung, crew, progress)
        with suppress(queue.Empty):
            if crew.at_work:
                event = crew.events.get(timeout=_LOOK_EVERY)
                _take(sweep, event, rung, crew, progress)
                if isinstance(event, Ended):
                    write()
        _show(sweep, rung, crew, progress, task)
    if is_last or not waiting_for_next(sweep, rung):
        return
    values = rung_values(sweep, rung)
    going_on = survivors(
        values, sweep.rungs[rung + 1].combinations, lower=is_lower_better(sweep.by)
    )
    for run in sweep.runs:
        if run.status == "paused" and run.combination not in going_on:
            run.status = "stopped"
    sweep.write()
    names = "; ".join(sweep.combinations[place].label for place in going_on)
    progress.say(f"  Rung {rung + 1} is reached. Going on: {names}")


def waiting_for_next(sweep: Sweep, rung: int) -> bool:
    """Whether runs have paused at this rung, so that a choice among them is due."""
    return any(run.status == "paused" and len(run.rung_values) == rung + 1 for run in sweep.runs)


def rung_values(sweep: Sweep, rung: int) -> dict[int, float | None]:
    """The value at a rung of each combination that reached it: the mean over its seeds."""
    values: dict[int, float | None] = {}
    for place in range(len(sweep.combinations)):
        runs = [run for run in sweep.runs if run.combination == place]
        reached = [run.rung_values[rung] for run in runs if len(run.rung_values) > rung]
        if reached:
            values[place] = sum(reached) / len(reached) if len(reached) == len(runs) else None
    return values


def _start(sweep: Sweep, run: SweepRun, rung: int, crew: Crew, progress: Progress) -> None:
    folder = sweep.folder_of(run)
    if run.folder and folder is None:
        progress.say(f"  {run.folder} is gone, and is trained again.")
        run.folder, run.rung_values = "", []
    if folder is not None and folder.file(SAMPLES_FILE).is_file() and folder.checkpoints():
        # It was killed between its last file and the line of sweep.json.
        _note_end(sweep, run, folder, "finished", 0.0, rung)
        sweep.write()
        return
    run.status, run.reason = "interrupted", ""  # until it reports its end
    until = sweep.rungs[rung].steps(run.total_steps)
    crew.start(RunTask(run.number, sweep.settings_of(run), folder, until))


def _take(sweep: Sweep, event: Begun | Ended, rung: int, crew: Crew, progress: Progress) -> None:
    """Note what a run reports.

    Raises:
        UserError: the server is gone, so that no run can go on.
    """
    run = sweep.runs[event.number - 1]
    if isinstance(event, Begun):
        if run.folder != event.folder.name:
            run.folder, run.status = event.folder.name, "interrupted"  # until it reports its end
            sweep.write()
        return
    crew.ended(event.number)
    folder = sweep.folder_of(run)
    _note_end(sweep, run, folder, event.status, event.seconds, rung)
    run.reason = event.reason if event.status in ("failed", "diverged") else ""
    sweep.write()
    if event.fault is not None:
        raise event.fault
    if event.server_gone:
        crew.stop()
        _wind_up(sweep, crew, progress)
        raise UserError(f"{event.reason}")
    place = f"  [{_ended_count(sweep)} of {len(sweep.runs)}] {sweep.label(run)}"
    if event.status in ("finished", "paused"):
        best = best_of_run(folder) if folder else None
        when = f" at step {best[1].step:,}" if best else ""
        progress.say(f"{place}: {best[1] if best else 'nothing measured'}{when}")
    else:
        progress.say(f"{place}: {event.status}. {run.reason}".rstrip())


def _note_end(
    sweep: Sweep,
    run: SweepRun,
    folder: RunFolder | None,
    status: str,
    seconds: float,
    rung: int,
) -> None:
    run.status, run.seconds = status, round(run.seconds + seconds, 2)
    if folder is None:
        return
    run.steps_done = max((line["step"] for line in folder.metrics()), default=0)
    if status in ("finished", "paused"):
        best = best_of_run(folder)
        if best is None:
            run.status, run.reason = "failed", "It measured nothing that is a number."
            return
        # A run that ended early, by PATIENCE, has its value at all later rungs.
        count = len(sweep.rungs) if status == "finished" else rung + 1
        run.rung_values += [best[1].value] * (count - len(run.rung_values))


def _ended_count(sweep: Sweep) -> int:
    return sum(run.status not in ("waiting", "interrupted") for run in sweep.runs)


def _show(sweep: Sweep, rung: int, crew: Crew, progress: Progress, task: Task) -> None:
    """Show how many runs are done, and how far all are together."""
    shares = crew.shares()
    target = sweep.rungs[rung].share
    steps = sum(
        (shares[run.number] * run.total_steps) if shares.get(run.number) else run.steps_done
        for run in sweep.runs
    )
    done = _ended_count(sweep)
    share = steps / max(sum(run.total_steps for run in sweep.runs), 1)
    state = f"{done} of {counted(len(sweep.runs), 'run')} done, {len(crew.at_work)} at work"
    state += f", {share:.0%} of all steps"
    if len(sweep.rungs) > 1:
        state += f"; this rung goes to {target:.0%}"
    progress.reached(task, state, share)


def _wind_up(sweep: Sweep, crew: Crew, progress: Progress) -> None:
    """Let all runs save and end, after a signal. A second signal ends this at once."""
    if crew.at_work:
        progress.say(
            f"\nStopping: {counted(len(crew.at_work), 'run')} at work finish their step and save. "
            "A second signal stops at once."
        )
    try:
        crew.stop()
        while crew.at_work:
            with suppress(queue.Empty):
                event = crew.events.get(timeout=_LOOK_EVERY)
                run = sweep.runs[event.number - 1]
                if isinstance(event, Begun):
                    run.folder = event.folder.name
                    continue
                crew.ended(event.number)
                _note_stop(sweep, run, event)
    finally:
        sweep.write()


def _note_stop(sweep: Sweep, run: SweepRun, event: Ended) -> None:
    """Note the end of a run that was asked to stop. One that came to its end before is finished."""
    folder = sweep.folder_of(run)
    rung = len(run.rung_values)
    _note_end(sweep, run, folder, event.status, event.seconds, rung)
    run.reason = event.reason if event.status in ("failed", "diverged") else ""


# ---- what came of it


def results_of(sweep: Sweep) -> list[CombinationResult]:
    """What each combination measured; without those of which a run failed or diverged."""
    results: list[CombinationResult] = []
    for place in range(len(sweep.combinations)):
        runs = [run for run in sweep.runs if run.combination == place]
        if any(run.status not in ("finished", "stopped", "paused") for run in runs):
            continue
        values: dict[int, float] = {}
        single: dict[int, Any] = {}
        for run in runs:
            folder = sweep.folder_of(run)
            values[run.seed] = run.rung_values[-1]
            best = best_of_run(folder) if folder else None
            single[run.seed] = None
            if folder is not None and best is not None:
                values[run.seed] = best[1].value
                single[run.seed] = single_values(folder, sweep.by, best[1].step)
        whole = all(run.status == "finished" for run in runs)
        results.append(CombinationResult(place, values, single, whole))
    return results


def comparable_values(sweep: Sweep) -> Mapping[int, float]:
    """The value of each combination after equally much training, to compare their settings by."""
    first = rung_values(sweep, 0)
    return {place: value for place, value in first.items() if value is not None}
