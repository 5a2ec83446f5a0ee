"""How soon something happens: --help, the data commands, the first optimizer step.

Commands are timed from the start of their process to its end, medians of several runs. The first
step is timed twice: from the command `train_with_config.py`, with the longest silence until then,
and from the moment the weights are loaded, in a process of its own. The first start of all, with
nothing compiled and no check remembered, is measured once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
# Not tinker_finetune.py: it takes no arguments and would train.
SCRIPTS = [
    "split_dataset.py",
    "train_with_config.py",
    "evaluate_model.py",
    "export_model.py",
]
DATA = "data/word_problems.json"
SAMPLES = 16  # of the bundled data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step:
        print(json.dumps(_first_step(options.threads)))
        return

    helps = {name: [name, "--help"] for name in SCRIPTS}
    helps["tinkersmith"] = ["-m", "tinkersmith", "--help"]
    with tempfile.TemporaryDirectory() as folder:
        outputs = ("--train-out", f"{folder}/train.json", "--test-out", f"{folder}/test.json")
        data = {
            "split, 2,000 samples": ["split_dataset.py", "--inputs", DATA, *outputs, "--force"],
            "stats, 2,000 samples": ["-m", "tinkersmith", "stats", DATA],
        }
        seconds = {
            "--help": _timed(helps, options),
            "data commands": _timed(data, options),
        }
    with tempfile.TemporaryDirectory() as cache:
        first_start = _command_to_step(cache)
        later = [_command_to_step(cache) for _ in range(options.repeats)]
    firsts = []
    for _ in range(options.repeats):
        output = _run(["-m", "benchmarks.start_up", "--first-step"], options.threads)
        firsts.append(json.loads(output.splitlines()[-1]))
    step = {name: round(median(times[name] for times in firsts), 3) for name in firsts[0]}
    figures: dict[str, object] = {
        "seconds": seconds,
        "command to first step, bundled model": {
            name: round(median(times[name] for times in later), 2) for name in first_start
        },
        "the same at the first start of all": {
            name: round(value, 2) for name, value in first_start.items()
        },
        "first step, bundled model, seconds": step,
        "threads": options.threads,
        "repeats": options.repeats,
    }
    print(json.dumps(figures, indent=2))
    print("written:", write_results("start_up", "python -m benchmarks.start_up", figures))


def _timed(commands: dict[str, list[str]], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each command, the commands taking turns."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            start = time.perf_counter()
            _run(command, options.threads)
            times[name].append(time.perf_counter() - start)
    return {name: round(median(values), 3) for name, values in times.items()}


def _run(command: list[str], threads: int) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-1500:]}")
    return done.stdout


def _command_to_step(cache: str) -> dict[str, float]:
    """From the start of train_with_config.py to the first step in the run's metrics.

    The engine chooses its threads itself.
    """
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    environment.pop("OMP_NUM_THREADS", None)
    with tempfile.TemporaryDirectory() as runs:
        settings = (f"OUTPUT_DIR={runs!r}", f"DATA_FILES={[DATA]!r}", "BACKEND='local'")
        sets = [part for setting in settings for part in ("--set", setting)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "train_with_config.py", *sets],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[tuple[float, str]] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append((time.perf_counter(), line))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while not _has_step(Path(runs)):
                if process.poll() is not None:
                    reader.join()
                    sys.exit("training failed:\n" + "".join(text for _, text in lines[-20:]))
                time.sleep(0.01)
            end = time.perf_counter()
        finally:
            process.terminate()
            process.wait()
            reader.join()
    moments = [start, *(moment for moment, _ in lines if moment < end), end]
    silences = [later - earlier for earlier, later in pairwise(moments)]
    return {"seconds": end - start, "longest silence, seconds": max(silences)}


def _has_step(runs: Path) -> bool:
    return any(file.stat().st_size > 0 for file in runs.glob("*/metrics.jsonl"))


def _first_step(threads: int) -> dict[str, float]:
    """A new adapter, 16 samples of the bundled data and AdamW; then the same again, for scale."""
    from tinkersmith.engine.hardware.memory import keep_freed_memory

    keep_freed_memory()  # as the engine does at its start
    import numpy as np
    import torch

    from tinkersmith.bundled import BUNDLED_MODELS
    from tinkersmith.data.load import load_samples
    from tinkersmith.engine.kernels.native.build import cache_folder, native_library
    from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig
    from tinkersmith.engine.model.adapters import new_adapter
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code
    from tinkersmith.engine.training.optimizer import new_state, optim_step
    from tinkersmith.engine.training.step import forward_backward
    from tinkersmith.text.templates import choose_template
    from tinkersmith.text.tokenize import tokenize
    from tinkersmith.text.tokenizer import load_tokenizer

    torch.set_num_threads(threads)
    model = "tinkersmith/tiny-math"
    folder = BUNDLED_MODELS[model]
    tokenizer = load_tokenizer(folder)
    template = choose_template("instruction", tokenizer, model)
    samples = load_samples([str(ROOT / DATA)]).samples[:SAMPLES]
    datums = [
        Datum(
            sample.tokens[:-1].astype(np.int64),
            {
                "target_tokens": sample.tokens[1:].astype(np.int64),
                "weights": sample.weights[1:].astype(np.float32),
            },
        )
        for sample in tokenize(samples, template, tokenizer, 1024, True).sequences
    ]
    native_library(cache_folder())  # compiled at the first start of all, and then kept
    start = time.perf_counter()
    base = load_base_model(model, folder, "auto")
    loaded = time.perf_counter()
    base = with_fast_code(base)
    adapter = new_adapter(base, LoraConfig(16, 0))
    state = new_state(adapter)
    ends = []
    for _ in range(2):
        forward_backward(base, adapter, datums, "cross_entropy", {}, only_graded=True)
        optim_step(adapter, state, AdamParams())
        ends.append(time.perf_counter())
    return {
        "weights loaded after": loaded - start,
        "first step": ends[0] - loaded,
        "second step": ends[1] - ends[0],
    }


if __name__ == "__main__":
    main()
