"""`tinkersmith runs`: list the runs of OUTPUT_DIR, delete one, or prune old states."""

import argparse
import datetime as dt
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from tinkersmith.cli.common import add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.folder import RunFolder, all_runs, lost_lines, open_run
from tinkersmith.runs.lock import locked
from tinkersmith.runs.pruning import delete_folder, size_of, sweep
from tinkersmith.service.connection import Service
from tinkersmith.service.stored import (
    OldStates,
    StoredOnServer,
    all_checkpoints,
    checkpoints_of,
    connection_of,
    run_ids,
    size_text,
    states_to_delete,
    total,
)
from tinkersmith.settings.fields import Settings

_NAMED = 20  # unknown checkpoints that are named one by one
_FRESH = dt.timedelta(minutes=10)  # a run under way names a checkpoint only after it is saved


def runs_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith runs`."""
    common = argparse.ArgumentParser(add_help=False)
    add_settings_options(common)
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["runs"], parents=[common])
    actions = parser.add_subparsers(dest="action", metavar="list | delete | prune")
    actions.add_parser("list", parents=[common], help="list the runs, newest first (the default)")
    delete = actions.add_parser(
        "delete", parents=[common], help="delete a run: its folder and its checkpoints"
    )
    delete.add_argument("run", metavar="RUN", help="the run's name or folder")
    delete.add_argument(
        "--keep-checkpoints", action="store_true", help="delete the folder only, ask no server"
    )
    prune = actions.add_parser(
        "prune", parents=[common], help="delete old states of all runs, as KEEP_LAST says"
    )
    prune.add_argument("--keep-last", type=int, metavar="N", help="instead of KEEP_LAST")
    prune.add_argument(
        "--delete-unknown",
        action="store_true",
        help="also delete checkpoints on this machine that belong to no run here",
    )
    for action in (delete, prune):
        action.add_argument("--yes", action="store_true", help="do not ask")
    wanted = parser.parse_args(argv)
    settings = user_settings(wanted.config, wanted.set)
    with watched(print) as progress:
        if wanted.action == "delete":
            _delete(settings, wanted.run, wanted.keep_checkpoints, wanted.yes, progress)
        elif wanted.action == "prune":
            keep = settings.keep_last if wanted.keep_last is None else wanted.keep_last
            _prune(settings, keep, wanted.delete_unknown, wanted.yes, progress)
        else:
            _list(settings, progress)
    return 0


# ---- list


@dataclass(frozen=True, slots=True)
class _Row:
    """A run in the list."""

    name: str
    date: str
    steps: str
    loss: str
    checkpoints: str
    folder: str
    server: str


def _list(settings: Settings, progress: Progress) -> None:
    runs = all_runs(settings.output_dir)
    if not runs:
        progress.say(f"There are no runs in {settings.output_dir}.")
        return
    damaged: list[str] = []
    sound: list[tuple[RunFolder, _Row]] = []
    for run in runs:
        try:
            facts, metrics = run.facts(), run.metrics()
            sound.append((run, _row(run, facts, metrics)))
            damaged += [f"{run.name}: {lost}" for lost in lost_lines(run, metrics)]
        except UserError as error:
            damaged.append(f"{run.name}: {error}")
    stored, unreached = _stored_of(settings, [run for run, _ in sound], progress)
    heads = _Row("RUN", "STARTED", "STEPS", "LOSS", "CHECKPOINTS", "FOLDER", "STORED")
    rows = [heads]
    for run, row in sound:
        known = stored.get(run.path)
        rows.append(row if known is None else replace(row, server=size_text(total(known))))
    table: list[tuple[str, ...]] = [astuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        progress.say("  ".join(padded).rstrip())
    for line in (*damaged, *unreached):
        progress.say(line)


def _row(run: RunFolder, facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> _Row:
    """A run's row, but for what the server stores of it.

    Raises:
        UserError: checkpoints.jsonl is damaged.
    """
    checkpoints = run.checkpoints()
    losses = [line for line in metrics if "loss" in line]
    started = dt.datetime.fromtimestamp(run.file("settings.json").stat().st_mtime)
    states = sum(not checkpoint.state_deleted for checkpoint in checkpoints)
    return _Row(
        name=run.name,
        date=f"{started:%Y-%m-%d %H:%M}",
        steps=f"{losses[-1]['step'] if losses else 0:,}/{facts.get('total_steps', 0):,}",
        loss=f"{losses[-1]['loss']:.4f}" if losses else "-",
        checkpoints=f"{len(checkpoints):,} ({counted(states, 'state')})",
        folder=size_text(size_of(run.path)),
        server="?",
    )


def _stored_of(
    settings: Settings, runs: Iterable[RunFolder], progress: Progress
) -> tuple[dict[Path, list[StoredOnServer]], list[str]]:
    """What the servers store of each run, and a sentence for each server that was not reached."""
    stored: dict[Path, list[StoredOnServer]] = {}
    unreached: list[str] = []
    for backend, its_runs in _by_backend(runs).items():
        wanted = {run.path: run_ids(run) for run in its_runs}
        if not any(wanted.values()):
            stored |= {path: [] for path in wanted}
            continue
        try:
            with connection_of(settings, backend, progress) as service:
                stored |= {path: checkpoints_of(service, ids) for path, ids in wanted.items()}
        except UserError as error:
            names = ", ".join(run.name for run in its_runs)
            unreached.append(f"The size of the checkpoints is not known for {names}: {error}")
    return stored, unreached


def _by_backend(runs: Iterable[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs by the kind of server that has their checkpoints: "embedded" or "remote"."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        kind = "embedded" if run.facts().get("backend") == "embedded" else "remote"
        groups.setdefault(kind, []).append(run)
    return groups


# ---- delete


def _delete(
    settings: Settings, name: str, keep_checkpoints: bool, yes: bool, progress: Progress
) -> None:
    output_dir = Path(settings.output_dir)
    sweep(output_dir)
    run = open_run(name, output_dir)
    others = {
        path
        for other in all_runs(run.path.parent)
        if other.path != run.path
        for path in _paths(other)
    }
    with ExitStack() as stack:
        stack.enter_context(locked(run, "deleting it", progress.say))
        service: Service | None = None
        stored: list[StoredOnServer] = []
        ids = [] if keep_checkpoints else run_ids(run)
        if ids:
            try:
                (backend,) = _by_backend([run])
            except UserError as error:
                raise UserError(
                    f"{error} To delete its folder as it is, add --keep-checkpoints."
                ) from None
            service = stack.enter_context(connection_of(settings, backend, progress))
            found = checkpoints_of(service, ids)
            stored = [checkpoint for checkpoint in found if checkpoint.path not in others]
            if len(stored) < len(found):
                progress.say(
                    f"{counted(len(found) - len(stored), 'checkpoint')} of {run.name} stay: "
                    "another run names them too."
                )
        folder = size_of(run.path)
        what = f"its folder {run.path} ({size_text(folder)})"
        if stored:
            what += f" and {counted(len(stored), 'checkpoint')} ({size_text(total(stored))})"
        _confirm(f"Delete {run.name}: {what}?", yes)
        _delete_all(service, stored, progress)
        delete_folder(run)
    progress.say(f"Deleted {run.name}: {size_text(folder + total(stored))} are free.")


def _paths(run: RunFolder) -> set[str]:
    """The tinker:// paths that a run names; none if its record is damaged."""
    with suppress(UserError):
        saved = run.checkpoints()
        return {path for record in saved for path in (record.state_path, record.sampler_path)}
    return set()


def _delete_all(
    service: Service | None, stored: Sequence[StoredOnServer], progress: Progress
) -> None:
    if service is None:
        return
    with progress.doing(f"deleting {counted(len(stored), 'checkpoint')}") as task:
        for number, checkpoint in enumerate(stored, start=1):
            service.delete_checkpoint(checkpoint.path)
            progress.reached(task, f"{number:,} of {len(stored):,} deleted", number / len(stored))


def _confirm(question: str, yes: bool) -> None:
    """Ask, unless --yes answered already.

    Raises:
        UserError: the answer is no, or nobody can answer.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Nobody can answer here; add --yes to the command.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was deleted.")


# ---- prune


def _prune(
    settings: Settings, keep_last: int, delete_unknown: bool, yes: bool, progress: Progress
) -> None:
    if keep_last < 0:
        raise UserError(f"--keep-last is {keep_last}; it must be 0 (keep all) or more.")
    sweep(Path(settings.output_dir))
    runs = all_runs(settings.output_dir)
    if keep_last == 0:
        progress.say("KEEP_LAST is 0: no state of a run is deleted.")
    with ExitStack() as held:
        prunable = [
            run for run in runs if keep_last and _is_prunable(run, keep_last, held, progress)
        ]
        for backend, its_runs in _by_backend(prunable).items():
            count = sum(len(states_to_delete(run, keep_last)) for run in its_runs)
            names = ", ".join(run.name for run in its_runs)
            _confirm(f"Delete {counted(count, 'old state')} of {names}?", yes)
            with connection_of(settings, backend, progress) as service:
                deleted = sum(
                    OldStates(service, run, keep_last, progress.say).delete() for run in its_runs
                )
            progress.say(f"Deleted {counted(deleted, 'state')} {_where(backend)}.")
    if keep_last and not prunable:
        progress.say("No run has a state that is no longer needed.")
    if (Path(settings.output_dir) / ".engine").is_dir():
        _unknown(settings, delete_unknown, yes, progress)


def _is_prunable(run: RunFolder, keep_last: int, held: ExitStack, progress: Progress) -> bool:
    """Whether the run has states to delete and nobody works on it; it is locked then."""
    try:
        run.facts()
        if not states_to_delete(run, keep_last):
            return False
        held.enter_context(locked(run, "deleting its old states", progress.say))
        return True
    except UserError as error:
        progress.say(f"{run.name} stays as it is: {error}")
        return False


def _unknown(settings: Settings, delete: bool, yes: bool, progress: Progress) -> None:
    """Name the checkpoints in the engine's folder that belong to no run here, or delete them.

    Raises:
        UserError: the record of a run is damaged, so that not all that belongs to one is known.
    """
    records = Path(settings.output_dir).glob("*/checkpoints.jsonl")
    known = {run_id for file in records for run_id in run_ids(RunFolder(file.parent))}
    with connection_of(settings, "embedded", progress) as service:
        unknown = [found for found in all_checkpoints(service) if found.run_id not in known]
        if not unknown:
            return
        progress.say(
            f"{counted(len(unknown), 'checkpoint')} in the engine's folder "
            f"({size_text(total(unknown))}) belong to no run in {settings.output_dir}:"
        )
        for checkpoint in unknown[:_NAMED]:
            progress.say(f"  {checkpoint.path} ({size_text(checkpoint.size)})")
        if len(unknown) > _NAMED:
            progress.say(f"  ... and {len(unknown) - _NAMED:,} more.")
        if not delete:
            progress.say("They stay; --delete-unknown deletes them.")
            return
        now = dt.datetime.now(dt.UTC)
        old = [found for found in unknown if now - found.saved > _FRESH]
        if len(old) < len(unknown):
            progress.say(
                f"{counted(len(unknown) - len(old), 'checkpoint')} of the last "
                f"{_FRESH.seconds // 60} minutes stay: a run under way may have saved them."
            )
        if old:
            _confirm(f"Delete {counted(len(old), 'checkpoint')} for good?", yes)
            _delete_all(service, old, progress)
            progress.say(f"Deleted {counted(len(old), 'checkpoint')}.")


def _where(backend: str) -> str:
    return "on this machine" if backend == "embedded" else "on the server"
