"""`tinkersmith evaluate` and evaluate_model.py: options -> an evaluation."""

import argparse
from collections.abc import Sequence

from tinkersmith.cli.common import user_settings
from tinkersmith.cli.front_door import run_front_door
from tinkersmith.evaluation.evaluate import evaluate


def evaluate_command(
    argv: Sequence[str] | None = None,
    *,
    model_path: str = "",
    test_file: str = "data/test_set.json",
    base_model: str = "",
    compare_base: bool = False,
    limit: int = 0,
    output_file: str = "evaluation_results.json",
    prog: str | None = None,
) -> int:
    """The command line of evaluate_model.py and `tinkersmith evaluate`, with these defaults."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Score a trained model on a test set, and the base model beside it."
    )
    parser.add_argument(
        "--model-path", default=model_path, help="tinker:// path; newest run if none"
    )
    parser.add_argument("--test-data", default=test_file, metavar="FILE")
    parser.add_argument("--base-model", default=base_model, help="for paths without a run folder")
    parser.add_argument(
        "--compare-base",
        action="store_true",
        default=compare_base,
        help="score the untouched base model on the same set",
    )
    parser.add_argument("--limit", type=int, default=limit, help="only so many samples; 0 is all")
    parser.add_argument("--output", default=output_file, metavar="FILE")
    parser.add_argument("--config", default="", help="settings file; config.py if it is there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    wanted = parser.parse_args(argv)

    def act() -> None:
        evaluate(
            user_settings(wanted.config, wanted.set),
            model_path=wanted.model_path,
            test_file=wanted.test_data,
            base_model=wanted.base_model,
            compare_base=wanted.compare_base,
            limit=wanted.limit,
            output_file=wanted.output,
        )

    return run_front_door(act)
