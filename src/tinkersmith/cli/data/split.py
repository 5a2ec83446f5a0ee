"""`tinkersmith split` and split_dataset.py: options -> a training and a test file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_settings_options, reading_settings, settings_file
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.paths import data_file_seen_from_here, seen_from_here
from tinkersmith.sources.find import TEST_FILE, TRAIN_FILE, refuse_inputs_as_outputs
from tinkersmith.split import (
    INPUT_FILES,
    SEED,
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
    folder: Path | str = ".",
    prog: str | None = None,
) -> int:
    """The command line of split_dataset.py and `tinkersmith split`, with these defaults.

    Relative names in the defaults start from `folder`, where config.py is looked for as well.
    """
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["split"])
    parser.add_argument(
        "--inputs",
        nargs="+",
        default=[data_file_seen_from_here(folder, name) for name in inputs],
        metavar="FILE",
        help=f"files to merge (default: {', '.join(inputs)})",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        default=ratio,
        help="share of the samples that goes into the training file (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=seed, help="decides the split (default: %(default)s)"
    )
    parser.add_argument(
        "--train-out",
        default=seen_from_here(folder, train_out),
        metavar="FILE",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--test-out",
        default=seen_from_here(folder, test_out),
        metavar="FILE",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite files that this command did not write"
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)

    def act() -> None:
        outputs = (Path(wanted.train_out), Path(wanted.test_out))
        refuse_inputs_as_outputs(outputs, [settings_file(wanted.config, folder)])
        reading = reading_settings(wanted.config, wanted.set, folder)
        result = split_dataset(
            wanted.inputs,
            wanted.ratio,
            wanted.seed,
            wanted.train_out,
            wanted.test_out,
            wanted.force,
            columns=reading.columns,
            encoding=reading.encoding,
        )
        print(format_split(result))

    return run_entry_point(act)
