"""python -m benchmarks.gpu: the command. The package's own text says what it does."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import benchmarks.gpu as package

if TYPE_CHECKING:
    from benchmarks.gpu.runner import Block, Outcome

NEEDED = ("torch", "transformers", "peft", "numpy", "safetensors", "tokenizers")
NO_GPU = "There is no GPU here; --quick checks on a CPU that the benchmark works."
_AT_ONCE = 6  # blocks that check correctness, where each can have two cores
_LAST = 5  # seconds of the budget for ending processes and writing the last results


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    options = _parser().parse_args(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"Error: benchmarks.gpu needs {', '.join(missing)}, which {sys.executable} does not "
            "have: install it, or put a folder with it on PYTHONPATH.",
            file=sys.stderr,
        )
        return 1
    from benchmarks.gpu.blocks import all_blocks, environment_block  # they import torch
    from benchmarks.gpu.report import HEAD, comparisons, is_defect, summary

    deadline = start + 60 * options.minutes - _LAST
    out = options.out or package.ROOT / "benchmarks/results" / _file_name(options.quick)
    command = f"python -m benchmarks.gpu{' --quick' if options.quick else ''}"
    print(HEAD, flush=True)
    [machine] = show([environment_block()], deadline, out, command)
    device = machine.figures.get("device")
    if device is None:
        print(f"Error: the machine could not be looked at: {machine.reason}", file=sys.stderr)
        return 1
    if device == "cpu" and not options.quick:
        print(NO_GPU, file=sys.stderr)
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", _threads(device))
    blocks = all_blocks(device, machine.figures.get("optional", ()), quick=options.quick)
    wanted = [word.lower() for word in options.only]
    if wanted:
        blocks = [block for block in blocks if any(word in block.name.lower() for word in wanted)]
    outcomes = show(blocks, deadline, out, command, earlier=[machine])
    for line in [] if options.quick else comparisons(outcomes):
        print(line)
    print(f"{summary(outcomes)}, in {time.monotonic() - start:.0f} s; written: {out}")
    return int(any(is_defect(outcome) for outcome in outcomes))


def show(
    blocks: Sequence["Block"],
    deadline: float,
    out: Path,
    command: str,
    *,
    earlier: Sequence["Outcome"] = (),
) -> list["Outcome"]:
    """Run blocks; print a row and write the results, with the `earlier` ones, as each ends."""
    from benchmarks.gpu.report import row, write
    from benchmarks.gpu.runner import run

    outcomes: list[Outcome] = []
    for outcome in run(blocks, deadline, _at_once()):
        outcomes.append(outcome)
        print(row(outcome), flush=True)
        write(out, command, [*earlier, *outcomes])
    return outcomes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="for everything (default: %(default)g)"
    )
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/gpu.json, or gpu_quick.json"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="blocks whose names contain a word"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, on a CPU too")
    return parser


def _file_name(quick: bool) -> str:
    return "gpu_quick.json" if quick else "gpu.json"


def _at_once() -> int:
    return max(1, min(_AT_ONCE, (os.cpu_count() or 1) // 2))


def _threads(device: str) -> str:
    """On the CPU alone the work is tiny, and threads would only wait for each other."""
    return "1" if device == "cpu" else str(max(1, (os.cpu_count() or 1) // _at_once()))


if __name__ == "__main__":
    sys.exit(main())
