"""One training step: our engine, a plain transformers + peft loop, and TRL's SFTTrainer.

Same lengths, tokens, weights, precision and threads; every measurement has its own process, ours
before each peer (A B A C ...). What is timed: 16 samples forward and backward, and one AdamW step.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.results_file import write_results
from benchmarks.training_data import SHAPE, add_arguments, random_model, step_lengths, useful_flops

ROOT = Path(__file__).resolve().parent.parent
OURS = "tinkersmith"
WITH_OUTPUT = "tinkersmith, output layer too"  # as the SDK's default and our recipe's have it
PLAIN = ["plain, batch 1", "plain, batch 2 padded"]
TRL = ["TRL batch 1, no checkpointing", "TRL defaults", "TRL packed, no checkpointing"]
# As time allows; before the first run, its cost is guessed as so many runs of the plain loop.
GUESSED = {PLAIN[1]: 1.5, TRL[2]: 6.0}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[151936, 32000])
    parser.add_argument("--max-tokens", type=int, default=16384, help="longer samples are cut")
    parser.add_argument(
        "--minutes",
        type=float,
        default=7.5,
        help="one run of each main peer is always made; more, and the others, until this",
    )
    parser.add_argument(
        "--quick", action="store_true", help="vocabulary 32000, 256 tokens, two peers, once"
    )
    options = parser.parse_args()
    if options.quick:
        options.vocabularies, options.max_tokens, options.minutes = [32000], 256, 0.0

    trl = True
    if any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")):
        print("TRL is not installed and is left out: see benchmarks/README.md.", flush=True)
        trl = False
    lengths, source = step_lengths(options.data, ROUNDS, options.max_tokens)
    started = time.perf_counter()
    runs: list[dict] = []
    peaks: list[float] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            size: random_model(Path(temporary) / str(size), size) for size in options.vocabularies
        }
        # What is compiled at the first start is compiled here, too.
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        exact = _worker(
            {"what": "exactness", "folder": str(folders[min(folders)])}, options.threads
        )
        del exact["wall"]
        plan = _plan(options.vocabularies, options.quick)
        for round_number, size, peer, required in plan:
            if peer in TRL and not trl:
                continue
            left = options.minutes * 60 - (time.perf_counter() - started)
            if not required and _expected(runs, size, peer) > left:
                skipped.append(f"{peer}, vocabulary {size}, round {round_number + 1}")
                continue
            peaks.append(_worker({"what": "peak"}, options.threads)["gflops"])
            job = {"folder": str(folders[size]), "lengths": lengths[round_number]}
            for name in (OURS, peer):
                run = _worker({"what": name, **job}, options.threads)
                run |= {"name": name, "vocabulary": size, "round": round_number + 1}
                run |= {"against": peer}
                runs.append(run)
                print(
                    f"{size:7,} {round_number + 1} {name:30}",
                    f"{run['seconds']:7.2f} s {run['tokens'] / run['seconds']:6.0f} tokens/s",
                    f"{run['peak_memory_gb']:5.1f} GB  loss {run['loss']:.4f}",
                    flush=True,
                )
    figures: dict[str, object] = {
        "lengths": source,
        "longest sample, tokens": max(sum(pair) for part in lengths for pair in part),
        "shape": SHAPE,
        "threads": options.threads,
        "bf16 matrix-product peak, GFLOP/s": median(peaks),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        **exact,
        "vocabularies": {
            str(size): _summary(runs, size, median(peaks), lengths) for size in options.vocabularies
        },
        "not run, for want of time": skipped,
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in figures.items() if k != "runs"}, indent=2))
    name, flag = ("training_quick", " --quick") if options.quick else ("training", "")
    packages = ("trl", "datasets") if trl else ()
    command = f"python -m benchmarks.training{flag}"
    print("written:", write_results(name, command, figures, packages=packages))


def _plan(sizes: list[int], quick: bool) -> list[tuple[int, int, str, bool]]:
    """(round, vocabulary, peer, required) in the order of their worth."""
    if quick:
        return [(0, size, peer, True) for size in sizes for peer in (PLAIN[0], TRL[0])]
    plan = [(0, size, peer, True) for size in sizes for peer in (PLAIN[0], TRL[0])]
    for number in range(ROUNDS):
        plan += [(number, size, PLAIN[0], False) for size in sorted(sizes) if number]
        plan += [(number, size, PLAIN[1], False) for size in sorted(sizes)]
    for number in range(ROUNDS):
        plan += [(number, size, TRL[0], False) for size in sorted(sizes) if number]
        plan += [(number, size, TRL[2], False) for size in sorted(sizes)]
    plan += [(0, size, WITH_OUTPUT, True) for size in sizes]
    return plan + [(0, size, TRL[1], True) for size in sizes]


def _expected(runs: list[dict], size: int, peer: str) -> float:
    """Seconds that a run of ours and one of this peer will take, processes and all."""
    own = _of(runs, size, peer)
    plain = _of(runs, size, PLAIN[0])[-1]["wall"]
    return _of(runs, size, OURS)[-1]["wall"] + (own[-1]["wall"] if own else GUESSED[peer] * plain)


def _of(runs: list[dict], size: int, name: str) -> list[dict]:
    return [run for run in runs if run["vocabulary"] == size and run["name"] == name]


def _summary(runs: list[dict], size: int, peak: float, lengths: list) -> dict[str, object]:
    """Medians of each contestant, and of the ratios to the run of ours just before."""
    contestants: dict[str, dict] = {}
    for name in dict.fromkeys(run["name"] for run in runs if run["vocabulary"] == size):
        own = _of(runs, size, name)
        contestants[name] = {
            "tokens a second": round(median(run["tokens"] / run["seconds"] for run in own), 1),
            "peak memory, GB": round(median(run["peak_memory_gb"] for run in own), 2),
            "share of the bf16 peak": round(
                median(
                    useful_flops(lengths[run["round"] - 1], size) / run["seconds"] for run in own
                )
                / peak
                / 1e9,
                3,
            ),
            "measurements": len(own),
        }
        if name == OURS:
            contestants[name] |= {
                "loading, s": round(median(run["load_seconds"] for run in own), 2),
                "compiling, s": [round(run["compile_seconds"], 2) for run in own],
                "first step / the same step later": round(
                    median(run["first_step"] / run["same_step_later"] for run in own), 2
                ),
            }
            continue
        ratios = [
            run["seconds"] / ours["seconds"]
            for run in own
            for ours in _of(runs, size, OURS)
            if (ours["round"], ours["against"]) == (run["round"], name)
        ]
        contestants[name]["ours is faster, times"] = round(median(ratios), 2)
        contestants[name]["its memory / ours, times"] = round(
            contestants[name]["peak memory, GB"] / contestants[OURS]["peak memory, GB"], 2
        )
    best = {}
    for family, members in (("plain", PLAIN), ("TRL", TRL)):
        ran = [name for name in members if name in contestants]
        if ran:
            best[family] = max(ran, key=lambda name: contestants[name]["tokens a second"])
    return {"contestants": contestants, "best setting": best}


def _worker(job: dict, threads: int) -> dict:
    """Run one job in a process of its own; its last line is the answer."""
    job = {**job, "threads": threads}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_worker", json.dumps(job)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{job['what']} failed:\n{done.stderr[-1500:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - start}


if __name__ == "__main__":
    main()
