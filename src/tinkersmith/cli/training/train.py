"""`tinkersmith train` and train_with_config.py: options -> a training run, then an export."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.cli.entry_point import COMMANDS

if TYPE_CHECKING:
    from tinkersmith.settings.fields import Settings


def train_command(
    argv: Sequence[str] | None = None,
    *,
    folder: Path | str | None = None,
    prog: str | None = None,
) -> int:
    """The command line of train_with_config.py and `tinkersmith train`.

    `folder` is that of the script: its config.py must exist, unless --config names another file.
    The command has no such folder and uses config.py of the current folder if there is one.
    """
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["train"])
    parser.add_argument(
        "--config", default="", metavar="FILE", help="settings file (default: config.py)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting; with --resume only LEARNING_RATE, GRAD_CLIP_NORM, "
        "STOP_ON_DIVERGENCE, PATIENCE, BUDGET_USD, BUDGET_MINUTES, TOKENIZER and TRACKERS",
    )
    parser.add_argument(
        "--resume", metavar="RUN", help="continue an interrupted run: its name or folder"
    )
    parser.add_argument(
        "--from",
        dest="from_checkpoint",
        metavar="NAME",
        help="with --resume: the checkpoint to continue from, such as step-000400 (default: the "
        "last)",
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="with --resume: continue although the base model, the tokenizer or the data changed; "
        "with a rehearsal: train although something else is sent",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="send all requests of the run to a tiny stand-in on this machine, and note their "
        "digests; train nothing else",
    )
    parser.add_argument(
        "--rehearsal",
        metavar="NAME",
        help="the rehearsal whose requests the run must send, by name or folder (default: the "
        "newest one of the same settings)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and say what the run would cost, take and need; train nothing",
    )
    wanted = parser.parse_args(argv)
    from tinkersmith.cli.common import refuse_unread_file, user_settings
    from tinkersmith.paths import seen_from_here

    _refuse_together(wanted)
    if not wanted.resume:  # the run has its settings
        refuse_unread_file(wanted.config, folder or ".")
    config = seen_from_here(folder, "config.py") if folder and not wanted.config else wanted.config
    if wanted.resume and not wanted.config and not Path(config).is_file():
        config = ""
    resume_with, overrides = _split_changes(wanted.set) if wanted.resume else ({}, wanted.set)
    settings = user_settings(config, overrides, folder or ".")
    from tinkersmith.training.interruption import interruption

    if wanted.dry_run:
        from tinkersmith.training.dry_run import dry_run

        with interruption() as signals:
            dry_run(settings, signals)
        return 0
    if wanted.rehearse:
        from tinkersmith.training.rehearsal.rehearse import rehearse

        with interruption() as signals:
            rehearse(settings, signals, options=_options_of(wanted))
        return 0
    with interruption():  # the export, too, ends in order; `train` saves before it ends
        _train_and_export(wanted, config, settings, folder or ".", resume_with)
    return 0


def _refuse_together(wanted: argparse.Namespace) -> None:
    """Refuse options that have no effect together.

    Raises:
        UserError: two such options are given.
    """
    from tinkersmith.errors import UserError

    given = {
        "--dry-run": wanted.dry_run,
        "--rehearse": wanted.rehearse,
        "--resume": bool(wanted.resume),
        "--from": bool(wanted.from_checkpoint),
        "--allow-changes": wanted.allow_changes,
        "--rehearsal": bool(wanted.rehearsal),
    }
    for option in ("--dry-run", "--rehearse"):
        other = next((name for name, is_set in given.items() if is_set and name != option), None)
        if given[option] and other is not None:
            raise UserError(f"{option} has no effect with {other}. Leave one of the two out.")


def _options_of(wanted: argparse.Namespace) -> list[str]:
    """The options with which the same settings are read again."""
    options = ["--config", wanted.config] if wanted.config else []
    for override in wanted.set:
        options += ["--set", override]
    return options


def _split_changes(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What --set changes in the run that is resumed, and the texts that find the run.

    Raises:
        UserError: a text names another setting, which would have no effect.
    """
    from tinkersmith.errors import UserError
    from tinkersmith.runs.resume import CHANGED_BY_RESUME
    from tinkersmith.settings.fields import FIELDS
    from tinkersmith.settings.spelling import read_overrides

    changes: list[str] = []
    others: list[str] = []
    for override in overrides:
        name = override.partition("=")[0].strip().upper()
        if name in CHANGED_BY_RESUME:
            changes.append(override)
        elif name.lower() in FIELDS and name != "OUTPUT_DIR":
            raise UserError(
                f"--set {override} has no effect with --resume: a run goes on with its own "
                f"settings. Only {', '.join(CHANGED_BY_RESUME)} can be changed."
            )
        else:
            others.append(override)
    # Whether a value is right depends on the run's other settings, not on those of config.py.
    read = read_overrides(changes)
    return {field.upper(): given.value for field, given in read.items()}, others


def _train_and_export(
    wanted: argparse.Namespace,
    config: str,
    settings: "Settings",
    folder: Path | str,
    resume_with: dict[str, Any],
) -> None:
    from tinkersmith.training.train import train

    begin = partial(
        train,
        resume=wanted.resume,
        from_checkpoint=wanted.from_checkpoint,
        allow_changes=wanted.allow_changes,
        resume_with=resume_with,
        rehearsal=wanted.rehearsal or "",
    )
    has_settings = bool(config) or (Path(folder) / "config.py").is_file()
    if wanted.resume and not has_settings:  # there are no settings that could differ
        trained = begin(output_dir=settings.output_dir)
    else:
        trained = begin(settings)
    trained.close()
    runs = str(trained.run.path.parent)
    own = trained.run.settings()
    offer_export(
        own.export_after_training,
        trained.state_path,
        settings.model_copy(update={"output_dir": runs, "backend": own.backend}),
        folder=folder,
        options=_options_to_find(runs, own.backend, wanted.config, folder),
    )


def _options_to_find(runs: str, backend: str, config: str, folder: Path | str) -> tuple[str, ...]:
    """The options with which a command finds the runs in `runs` and the server of a run there."""
    from tinkersmith.cli.common import user_settings
    from tinkersmith.errors import UserError
    from tinkersmith.settings.spelling import override_text

    options: tuple[str, ...] = ()
    try:
        settings = user_settings("", (), folder)  # what the command uses without options
    except UserError:
        if not config:
            raise
        options, settings = ("--config", config), user_settings(config, ())
    if runs != settings.output_dir:
        options += ("--set", override_text("output_dir", runs))
    if settings.backend not in ("auto", backend):
        options += ("--set", f"BACKEND={backend}")
    return options


def offer_export(
    choice: str,
    tinker_path: str,
    settings: "Settings",
    *,
    folder: Path | str = ".",
    options: Sequence[str] | None = None,
) -> None:
    """Export as EXPORT_AFTER_TRAINING says; "ask" asks only where somebody can answer.

    Exports go to exported/ in `folder`. Where nothing is exported, the command for it is printed;
    `options` are what that command needs to find the run, None sets OUTPUT_DIR.
    """
    from tinkersmith.settings.spelling import override_text

    how = ("--set", override_text("output_dir", settings.output_dir))
    how = how if options is None else options
    if choice == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        answer = input("Export it now? [a]dapter, [m]erged model, or Enter for no: ").strip()
        choice = {"a": "adapter", "m": "merged"}.get(answer[:1].lower(), "no")
    if choice in ("adapter", "merged"):
        from tinkersmith.export.export import export_model
        from tinkersmith.export.targets.folder import EXPORTS
        from tinkersmith.paths import seen_from_here

        exports = seen_from_here(folder, EXPORTS)
        try:
            export_model(settings, tinker_path, merged=choice == "merged", exports=exports)
        except (KeyboardInterrupt, SystemExit):
            _print_how_to_export(
                "\nStopped. The run is finished; export it with:", tinker_path, how
            )
            raise
        return
    _print_how_to_export("Export  ", tinker_path, how)


def _print_how_to_export(words: str, tinker_path: str, options: Sequence[str]) -> None:
    from tinkersmith.command_line import command_line

    with contextlib.suppress(OSError):  # the run is finished, whether or not this can be printed
        print(f"{words} {command_line('export', '--model-path', tinker_path, *options)}")
        sys.stdout.flush()
