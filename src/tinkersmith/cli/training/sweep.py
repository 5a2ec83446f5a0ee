"""`tinkersmith sweep`: options -> the runs of a grid, their order, and the files about it."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tinkersmith.cli.common import add_settings_options, refuse_unread_file, user_settings
from tinkersmith.cli.entry_point import COMMANDS

if TYPE_CHECKING:
    from pathlib import Path

    from tinkersmith.progress import Progress
    from tinkersmith.sweep.ranking import Effect, Ranking
    from tinkersmith.sweep.record import Sweep


def sweep_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith sweep`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["sweep"])
    add_settings_options(parser)
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=V1,V2",
        help="the settings to try, in all combinations: LEARNING_RATE=1e-4,3e-4 LORA_RANK=8,32",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="N",
        help="train as many steps as N whole runs have: the better half of the combinations goes "
        "on at each rung, the others stop (successive halving)",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="K", help="repeat each combination with K seeds (default: 1)"
    )
    parser.add_argument(
        "--by",
        metavar="METRIC",
        help="what the runs are compared by: validation_loss, or a score of METRICS on EVAL_FILES "
        "(default: BEST_BY)",
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="runs that train at the same time (default: 4)"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the sweep's name (default: sweep-DATE-TIME)"
    )
    parser.add_argument(
        "--keep",
        choices=("all", "best"),
        help="best: delete the checkpoints of the other combinations at the end (default: all)",
    )
    parser.add_argument(
        "--resume", metavar="NAME", help="go on with a sweep that was stopped: its name or folder"
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), help="the language of sweep.html (default: LANG)"
    )
    wanted = parser.parse_args(argv)
    from tinkersmith.cli.common import settings_file
    from tinkersmith.errors import UserError

    if not wanted.resume:  # a sweep has its settings
        refuse_unread_file(wanted.config)
    settings = user_settings(wanted.config, wanted.set)
    if settings.budget_usd or settings.budget_minutes:
        name = "BUDGET_USD" if settings.budget_usd else "BUDGET_MINUTES"
        raise UserError(
            f"{name} limits a single run, and not a sweep, whose runs must be of one length. Leave "
            "it at 0; --budget takes steps instead."
        )
    others = [text for text in wanted.set if not text.upper().startswith("OUTPUT_DIR=")]
    from tinkersmith.pages.words import page_language
    from tinkersmith.sweep.conduct import Wanted, run_sweep

    given = ["--config", wanted.config] if wanted.config else []
    given += [word for text in wanted.set for word in ("--set", text)]
    language = page_language(wanted.lang)
    swept = run_sweep(
        settings,
        Wanted(
            grid=wanted.grid,
            budget=wanted.budget,
            seeds=wanted.seeds,
            by=wanted.by,
            parallel=wanted.parallel,
            name=wanted.name,
            keep=wanted.keep,
            resume=wanted.resume,
            given=given,
        ),
        partial(_write, language=language, say=lambda _: None),  # the report says it once
        partial(_report, language=language),
        has_settings=bool(others) or settings_file(wanted.config).is_file(),
    )
    return 1 if swept.failed else 0


def _effects(sweep: "Sweep") -> "list[Effect]":
    from tinkersmith.sweep.conduct import comparable_values
    from tinkersmith.sweep.ranking import effects

    chosen = [combination.values for combination in sweep.combinations]
    return effects(sweep.grid, chosen, comparable_values(sweep))


def _write(
    sweep: "Sweep", ranking: "Ranking", language: str, say: "Callable[[str], None]"
) -> "tuple[Path, Path]":
    """Write sweep.csv and sweep.html."""
    from tinkersmith.sweep.page import write_sweep_page
    from tinkersmith.sweep.table import write_sweep_table

    page = write_sweep_page(sweep, ranking, _effects(sweep), language, say)
    return write_sweep_table(sweep, ranking), page


def _report(sweep: "Sweep", ranking: "Ranking", progress: "Progress", language: str) -> None:
    """Print the ranking, and write sweep.csv and sweep.html."""
    from tinkersmith.sweep.words import (
        effect_line,
        limits,
        next_lines,
        table_lines,
        verdict_sentence,
    )

    progress.say("")
    for line in table_lines(sweep, ranking):
        progress.say(f"  {line}")
    progress.say("")
    progress.say(f"  {verdict_sentence(sweep, ranking)}")
    for line in limits(sweep, ranking):
        progress.say(f"  {line}")
    for effect in _effects(sweep):
        progress.say(f"  {effect_line(sweep, effect)}")
    progress.say("")
    table, page = _write(sweep, ranking, language, progress.say)
    progress.say(f"Table    {table}")
    progress.say(f"Page     {page}")
    for line in next_lines(sweep, ranking):
        progress.say(line)
