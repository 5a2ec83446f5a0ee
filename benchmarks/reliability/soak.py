"""A long training run on a tiny model: memory and handles of both processes stay where they are.

Checkpoints and validation come every 100 steps. The recipe and the engine are read every two
seconds; the first quarter is warm-up, then neither memory nor handles may grow by over 10 %. Some
growth is meant: the engine holds delivered results for ten minutes, in case a poll is repeated.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reliability.watching import Watched, draw, figures, watched
from benchmarks.results_file import RESULTS, write_results
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.runs.folder import newest_run

ROOT = Path(__file__).resolve().parent.parent.parent
ALLOWED = 0.1
SAMPLES, BATCH = 800, 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.soak")
    parser.add_argument("--steps", type=int, default=5000)
    steps: int = parser.parse_args().steps
    if steps % (SAMPLES // BATCH):
        parser.error(f"--steps must be a multiple of {SAMPLES // BATCH}.")
    curves, found = soak(steps)
    for what, unit, of_all in (
        ("memory", "MB", curves.memory),
        ("handles", "handles", curves.handles),
    ):
        name = f"reliability_soak_{what}.svg"
        draw(RESULTS / name, f"{what.title()} over {steps:,} steps", of_all, unit)
        for process, curve in of_all.items():
            print(f"{what} of the {process:8} {curve.growth():+.1%}")
    command = f"python -m benchmarks.reliability.soak --steps {steps}"
    path = write_results("reliability_soak", command, figures(curves) | found)
    print(f"{found['steps']:,} steps in {found['seconds']} s; written: {path}")
    return int(found["steps"] != steps or grew(curves))


def soak(steps: int, every: float = 2.0, samples: int = SAMPLES) -> tuple[Watched, dict[str, Any]]:
    """Train so many steps; what was read every so many seconds, and the run's own figures.

    Raises:
        RuntimeError: training failed.
    """
    with tempfile.TemporaryDirectory(prefix="tinkersmith-soak-") as temporary:
        folder = Path(temporary)
        process = _start(folder, steps, samples)
        start = time.monotonic()
        with watched(lambda: _processes(process.pid), every) as curves:
            output, _ = process.communicate()
        seconds = time.monotonic() - start
        if process.returncode:
            raise RuntimeError(f"training failed:\n{output[-3000:]}")
        lines = newest_run(folder / "runs").lines("metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    return curves, {
        "steps": len(losses),
        "seconds": round(seconds, 1),
        "first loss": losses[0],
        "last loss": losses[-1],
    }


def grew(curves: Watched) -> bool:
    every_curve = [*curves.memory.values(), *curves.handles.values()]
    return any(curve.growth() > ALLOWED for curve in every_curve)


def _start(folder: Path, steps: int, samples: int) -> "subprocess.Popen[str]":
    model = make_tiny_model(folder / "model")
    data = write(folder / "data.json", records(samples, seed=1))
    test = write(folder / "test.json", records(40, seed=2))
    config = folder / "config.py"
    config.write_text(
        f"DATA_FILES = [{str(data)!r}]\nVALIDATION_FILES = [{str(test)!r}]\n"
        f"BASE_MODEL = {str(model)!r}\nBACKEND = 'local'\nOUTPUT_DIR = {str(folder / 'runs')!r}\n"
        f"NUM_EPOCHS = {steps * BATCH // samples}\nBATCH_SIZE = {BATCH}\nLORA_RANK = 8\n"
        "LEARNING_RATE = 1e-3\nSAVE_EVERY = 100\nEVAL_EVERY = 100\nEXPORT_AFTER_TRAINING = 'no'\n"
    )
    return subprocess.Popen(
        [sys.executable, "train_with_config.py", "--config", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _processes(recipe: int) -> Mapping[str, int]:
    """The recipe and its engine, as long as they run."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(recipe)], capture_output=True, text=True
    ).stdout
    engines = [int(line.split()[0]) for line in listed.splitlines() if "tinkersmith.engine" in line]
    return {"recipe": recipe} | ({"engine": engines[0]} if engines else {})


if __name__ == "__main__":
    sys.exit(main())
