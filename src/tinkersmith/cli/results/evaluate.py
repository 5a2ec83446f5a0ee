"""`tinkersmith evaluate` and evaluate_model.py: options -> an evaluation."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_checkpoint_option, add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.paths import data_file_seen_from_here, seen_from_here
from tinkersmith.report.write import write_report
from tinkersmith.runs.folder import run_of
from tinkersmith.settings.fields import Settings
from tinkersmith.training.interruption import interruption


def evaluate_command(
    argv: Sequence[str] | None = None,
    *,
    model_path: str = "",
    checkpoint: str = "",
    test_file: str = "data/test_set.json",
    base_model: str = "",
    compare_base: bool = False,
    limit: int = 0,
    output_file: str = "evaluation_results.json",
    folder: Path | str = ".",
    prog: str | None = None,
) -> int:
    """The command line of evaluate_model.py and `tinkersmith evaluate`, with these defaults.

    Relative names in the defaults start from `folder`, where config.py is looked for as well.
    """
    test_file = data_file_seen_from_here(folder, test_file)
    output_file = seen_from_here(folder, output_file)
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["evaluate"])
    parser.add_argument(
        "--model-path",
        default=model_path,
        help="tinker:// path (default: a checkpoint of the newest run)",
    )
    add_checkpoint_option(parser, checkpoint)
    parser.add_argument(
        "--test-data", default=test_file, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--base-model", default=base_model, help="for paths without a run folder")
    parser.add_argument(
        "--compare-base",
        action="store_true",
        default=compare_base,
        help="score the untouched base model on the same set",
    )
    parser.add_argument("--limit", type=int, default=limit, help="only so many samples; 0 is all")
    parser.add_argument(
        "--output", default=output_file, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an evaluation that was stopped"
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)

    def act() -> None:
        options = [] if not wanted.config else ["--config", wanted.config]
        options += [word for override in wanted.set for word in ("--set", override)]
        settings = user_settings(wanted.config, wanted.set, folder)
        with interruption() as signals:
            result = evaluate(
                settings,
                model_path=wanted.model_path,
                checkpoint=wanted.checkpoint,
                test_file=wanted.test_data,
                base_model=wanted.base_model,
                compare_base=wanted.compare_base,
                limit=wanted.limit,
                output_file=wanted.output,
                resume=wanted.resume,
                options=options,
                check=signals.check,
            )
        _refresh_report(result.model_path, Path(wanted.output), settings)

    return run_entry_point(act)


def _refresh_report(model_path: str, results: Path, settings: Settings) -> None:
    """Write the scores into the report of the run that was evaluated, if it is here."""
    try:
        found = run_of(model_path, settings.output_dir)
        if found is not None:
            print(f"Report: {write_report(found[0], results=results)}")
    except UserError as error:  # the scores themselves are written
        print(f"Warning: the run's report is not written anew: {error}")
