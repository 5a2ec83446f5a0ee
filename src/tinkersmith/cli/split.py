"""`tinkersmith split` and split_dataset.py: options -> a training and a test file."""

import argparse
from collections.abc import Sequence

from tinkersmith.cli.front_door import run_front_door
from tinkersmith.split import (
    INPUT_FILES,
    SEED,
    TEST_FILE,
    TRAIN_FILE,
    TRAIN_RATIO,
    format_split,
    split_dataset,
)


def split_command(
    argv: Sequence[str] | None = None,
    *,
    inputs: Sequence[str] = INPUT_FILES,
    ratio: float = TRAIN_RATIO,
    seed: int = SEED,
    train_out: str = TRAIN_FILE,
    test_out: str = TEST_FILE,
    prog: str | None = None,
) -> int:
    """The command line of split_dataset.py and `tinkersmith split`, with these defaults."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Merge data files, shuffle them by seed, and write a training and a test file.",
    )
    parser.add_argument("--inputs", nargs="+", default=list(inputs), metavar="FILE")
    parser.add_argument("--ratio", type=float, default=ratio, help="share of the training file")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--train-out", default=train_out, metavar="FILE")
    parser.add_argument("--test-out", default=test_out, metavar="FILE")
    parser.add_argument(
        "--force", action="store_true", help="overwrite files that were not written here"
    )
    wanted = parser.parse_args(argv)

    def act() -> None:
        result = split_dataset(
            wanted.inputs,
            wanted.ratio,
            wanted.seed,
            wanted.train_out,
            wanted.test_out,
            wanted.force,
        )
        print(format_split(result))

    return run_front_door(act)
