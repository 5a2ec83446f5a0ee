"""A long training run on a tiny model: memory and handles of both processes stay where they are.

Checkpoints and validation come every 100 steps. The recipe and the engine are read every two
seconds; the first quarter is warm-up, then neither memory nor handles may grow by over 5 %.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.reliability.watching import draw, figures, watched
from benchmarks.results_file import write_results
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.runs.folder import newest_run

ROOT = Path(__file__).resolve().parent.parent.parent
ALLOWED = 0.05
SAMPLES, BATCH = 800, 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.soak")
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinkersmith-soak-") as temporary:
        folder = Path(temporary)
        process = _start(folder, options.steps)
        start = time.monotonic()
        with watched(lambda: _processes(process.pid)) as curves:
            output, _ = process.communicate()
        seconds = time.monotonic() - start
        if process.returncode:
            print(output[-3000:], file=sys.stderr)
            return 1
        steps = [
            line for line in newest_run(folder / "runs").lines("metrics.jsonl") if "loss" in line
        ]
    found = figures(curves)
    found |= {
        "steps": len(steps),
        "seconds": round(seconds, 1),
        "first loss": steps[0]["loss"],
        "last loss": steps[-1]["loss"],
    }
    draw("reliability_soak_memory", f"Memory over {len(steps):,} steps", curves.memory, "MB")
    draw(
        "reliability_soak_handles", f"Handles over {len(steps):,} steps", curves.handles, "handles"
    )
    command = f"python -m benchmarks.reliability.soak --steps {options.steps}"
    path = write_results("reliability_soak", command, found)
    growths = {
        f"{what} of the {name}": curve.growth()
        for what, of_all in (("memory", curves.memory), ("handles", curves.handles))
        for name, curve in of_all.items()
    }
    for name, growth in growths.items():
        print(f"{name:24} {growth:+.1%}")
    print(f"{len(steps):,} steps in {seconds:.0f} s; written: {path}")
    return int(len(steps) != options.steps or any(growth > ALLOWED for growth in growths.values()))


def _start(folder: Path, steps: int) -> "subprocess.Popen[str]":
    model = make_tiny_model(folder / "model")
    data = write(folder / "data.json", records(SAMPLES, seed=1))
    test = write(folder / "test.json", records(40, seed=2))
    epochs, rest = divmod(steps, SAMPLES // BATCH)
    if rest:
        sys.exit(f"--steps must be a multiple of {SAMPLES // BATCH}.")
    config = folder / "config.py"
    config.write_text(
        f"DATA_FILES = [{str(data)!r}]\nVALIDATION_FILES = [{str(test)!r}]\n"
        f"BASE_MODEL = {str(model)!r}\nBACKEND = 'local'\nOUTPUT_DIR = {str(folder / 'runs')!r}\n"
        f"NUM_EPOCHS = {epochs}\nBATCH_SIZE = {BATCH}\nLORA_RANK = 8\nLEARNING_RATE = 1e-3\n"
        "SAVE_EVERY = 100\nEVAL_EVERY = 100\nEXPORT_AFTER_TRAINING = 'no'\n"
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
