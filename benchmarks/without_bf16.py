"""A training step on a processor with AVX2 alone: a base in bfloat16 and in float32, against peers.

The processor is simulated: torch's libraries are told to use AVX2 only, and the engine that there
are no instructions for bfloat16. Contestants take turns, each run in a process of its own; what is
timed is two samples, a step's shortest and longest, forward and backward, and one AdamW step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.process_memory import resident_gb
from benchmarks.results_file import write_results
from benchmarks.training_data import (
    SHAPE,
    Lengths,
    add_arguments,
    random_model,
    random_samples,
    step_lengths,
)

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX2 |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}
VOCABULARY = 32000
CONTESTANTS = [  # who, and the precision of the frozen weights
    ("tinkersmith", "bfloat16"),
    ("plain, batch 1", "bfloat16"),
    ("tinkersmith", "float32"),
    ("plain, batch 1", "float32"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(_measured(**json.loads(options.job), threads=options.threads)))
        return

    [lengths], source = step_lengths(options.data, 1, 16384)
    by_length = sorted(lengths, key=sum)
    pair = [by_length[0], by_length[-1]]
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(Path(temporary) / "model", VOCABULARY)
        environment = os.environ | AVX2 | {"XDG_CACHE_HOME": f"{temporary}/cache"}
        for round_number in range(options.rounds):
            for who, dtype in CONTESTANTS:
                job = {"who": who, "dtype": dtype, "folder": str(folder), "lengths": pair}
                command = [sys.executable, "-m", "benchmarks.without_bf16"]
                command += ["--threads", str(options.threads), "--job", json.dumps(job)]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                run = json.loads(done.stdout.splitlines()[-1])
                runs.setdefault(f"{who}, {dtype}", []).append(run)
                print(f"{round_number + 1} {who}, {dtype}:", run, flush=True)
    ours, theirs = (runs[f"{who}, bfloat16"] for who in ("tinkersmith", "plain, batch 1"))
    figures = {
        "lengths": source,
        "tokens": sum(map(sum, pair)),
        "vocabulary": VOCABULARY,
        "shape": SHAPE,
        "threads": options.threads,
        "rounds": options.rounds,
        "contestants": {
            name: {what: round(median(run[what] for run in found), 2) for what in found[0]}
            for name, found in runs.items()
        },
        "bfloat16: times as fast as the plain loop": round(
            median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)), 1
        ),
        "runs": runs,
    }
    command = "python -m benchmarks.without_bf16"
    print("written:", write_results("without_bf16", command, figures))


def _measured(
    who: str, dtype: str, folder: str, lengths: Lengths, threads: int
) -> dict[str, float]:
    """One step's seconds and loss, after one of the shortest sample, and the memory at the most."""
    from tinkersmith.engine import base_model
    from tinkersmith.engine.memory import keep_freed_memory

    if who == "tinkersmith":
        keep_freed_memory()  # as the engine does at its start, before torch has threads
    import torch

    from benchmarks.training_worker import our_step, plain_step

    torch.set_num_threads(threads)
    samples = random_samples(lengths, VOCABULARY)
    if who == "tinkersmith":
        base_model.multiplies_bf16 = lambda: False  # pyright: ignore[reportPrivateImportUsage]
        step, _ = our_step(Path(folder), dtype=dtype)
    else:
        step = plain_step(Path(folder), 1, dtype)
    step(samples[:1])
    start = time.perf_counter()
    loss = step(samples)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "loss": loss, "peak_memory_gb": resident_gb("VmHWM")}


if __name__ == "__main__":
    main()
