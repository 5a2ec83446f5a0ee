"""`tinkersmith report`: a run -> report.html."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.errors import UserError


def report_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith report`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["report"])
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="the run's name or folder (default: the newest)"
    )
    parser.add_argument(
        "--results",
        default="",
        metavar="FILE",
        help="an evaluation of this run (default: evaluation_results.json, if it is one)",
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), help="the language of the page (default: as LANG says)"
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="default: report.html in the run's folder"
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    from tinkersmith.report.write import check_report_target, write_report
    from tinkersmith.runs.folder import all_runs, open_run

    settings = user_settings(wanted.config, wanted.set)
    if wanted.run:
        run = open_run(wanted.run, settings.output_dir)
    else:
        runs = all_runs(settings.output_dir)
        if not runs:
            raise UserError(f"There are no runs in {settings.output_dir}. Train one first.")
        run = runs[0]
    out = Path(wanted.out) if wanted.out else None
    if out is not None:
        check_report_target(out)
    results = Path(wanted.results) if wanted.results else None
    print(f"Written: {write_report(run, results=results, language=wanted.lang, out=out)}")
    return 0
