"""`tinkersmith compare`: two files of results -> which model is better."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.entry_point import COMMANDS


def compare_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith compare`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["compare"])
    parser.add_argument("first", metavar="A", help="a file that `tinkersmith evaluate` wrote")
    parser.add_argument("second", metavar="B", help="another one, of the same test set")
    parser.add_argument(
        "--metric",
        default="",
        metavar="M",
        help="the score that the verdict, groups and lists are about (default: final_answer)",
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FILE.json",
        help="write all questions there, and as a table to FILE.csv (default: write nothing)",
    )
    wanted = parser.parse_args(argv)
    from tinkersmith.evaluation.compare import (
        check_comparison_output,
        compare_files,
        comparison_lines,
        write_comparison,
    )

    output = Path(wanted.output) if wanted.output else None
    inputs = [Path(wanted.first), Path(wanted.second)]
    if output:
        check_comparison_output(output, inputs)
    compared = compare_files(inputs[0], inputs[1], wanted.metric)
    written = write_comparison(compared, output) if output else []
    for line in comparison_lines(compared, output):
        print(line)
    if written:
        print(f"\nWritten: {' and '.join(map(str, written))}")
    return 0
