"""Sampling: our engine and transformers' `generate` at several batch sizes, and its own batching.

Same model, prompts, numbers of tokens, precision and threads; every measurement has its own
process, ours before each peer (A B A C ...).
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

from benchmarks.results_file import write_results
from benchmarks.training_data import SHAPE, add_arguments, data_lengths, random_model

ROOT = Path(__file__).resolve().parent.parent
OURS = "tinkersmith"
CONTINUOUS = "continuous batching"
CASES = {
    "equal": "every answer has the same number of tokens",
    "real": "every answer has as many tokens as the data's own",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, when all are equal")
    parser.add_argument("--longest", type=int, default=256, help="tokens of an answer otherwise")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 48, 96])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=15, help="one round is always made")
    parser.add_argument(
        "--quick", action="store_true", help="vocabulary 32000, 12 prompts, 8 tokens, one batch"
    )
    options = parser.parse_args()
    if options.quick:
        options.vocabulary, options.prompts, options.tokens, options.longest = 32000, 12, 8, 12
        options.batches, options.rounds = [6], 1

    lengths, source = answer_lengths(options.data, options.prompts, options.longest)
    jobs = {
        "equal": [[prompt, options.tokens] for prompt, _ in lengths],
        "real": lengths,
    }
    peers = [f"generate, batch {size}" for size in options.batches] + [CONTINUOUS]
    started = time.perf_counter()
    runs: list[dict] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(Path(temporary), options.vocabulary)
        exact = _worker({"what": "exactness", "folder": str(folder)}, options.threads)
        for round_number in range(options.rounds):
            if round_number and time.perf_counter() - started > options.minutes * 60:
                break
            for case, peer in ((case, peer) for case in CASES for peer in peers):
                if peer in failed or (round_number and peer == CONTINUOUS):  # slow: once
                    continue
                for name in (OURS, peer):
                    job = {"what": name, "folder": str(folder), "lengths": jobs[case]}
                    run = _worker(job, options.threads)
                    if "failed" in run:
                        failed[name] = run["failed"]
                        print(f"{name}: {run['failed']}", flush=True)
                        break
                    run |= {"name": name, "case": case, "round": round_number + 1, "against": peer}
                    runs.append(run)
                    print(
                        f"{case:6} {round_number + 1} {name:22}",
                        f"{run['seconds']:7.2f} s {run['tokens'] / run['seconds']:6.0f} tokens/s",
                        f"{run['peak_memory_gb']:5.1f} GB",
                        flush=True,
                    )
    figures: dict[str, object] = {
        "lengths": source,
        "prompts": options.prompts,
        "prompt tokens": sum(prompt for prompt, _ in lengths),
        "answer tokens": {case: sum(answer for _, answer in jobs[case]) for case in CASES},
        "shape": SHAPE | {"vocabulary": options.vocabulary},
        "threads": options.threads,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        **exact,
        "cases": {case: {"what": CASES[case], **_summary(runs, case)} for case in CASES},
        "failed": failed,
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in figures.items() if k != "runs"}, indent=2))
    name, flag = ("sampling_quick", " --quick") if options.quick else ("sampling", "")
    print("written:", write_results(name, f"python -m benchmarks.sampling{flag}", figures))


def answer_lengths(data: Path, count: int, longest: int) -> tuple[list[list[int]], str]:
    """[prompt, answer] tokens of some samples, and where they come from."""
    pairs, source = data_lengths(data, count)
    whole = [[max(2, int(prompt)), min(max(1, int(answer)), longest)] for prompt, answer in pairs]
    return whole, source + f"; answers of at most {longest}"


def _summary(runs: list[dict], case: str) -> dict[str, object]:
    """Medians of each contestant, and of the ratios to the run of ours just before."""
    contestants: dict[str, dict] = {}
    for name in dict.fromkeys(run["name"] for run in runs if run["case"] == case):
        own = [run for run in runs if (run["case"], run["name"]) == (case, name)]
        contestants[name] = {
            "tokens a second": round(median(run["tokens"] / run["seconds"] for run in own), 1),
            "peak memory, GB": round(median(run["peak_memory_gb"] for run in own), 2),
            "measurements": len(own),
        }
        if name == OURS:
            continue
        ratios = [
            run["seconds"] / ours["seconds"]
            for run in own
            for ours in runs
            if ours["name"] == OURS
            and (ours["case"], ours["round"], ours["against"]) == (case, run["round"], name)
        ]
        contestants[name]["ours is faster, times"] = round(median(ratios), 2)
    peers = [name for name in contestants if name.startswith("generate")]
    best = max(peers, key=lambda name: contestants[name]["tokens a second"])
    return {"contestants": contestants, "generate's best batch": best}


def _worker(job: dict, threads: int) -> dict:
    """Run one job in a process of its own; its last line is the answer."""
    job = {**job, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sampling_worker", json.dumps(job)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        if job["what"] == CONTINUOUS:  # it need not run on every machine
            lines = done.stderr.strip().splitlines()
            return {"failed": lines[-1][:300] if lines else f"exit status {done.returncode}"}
        sys.exit(f"{job['what']} failed:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
