"""The demo's scores over three seeds, by the project's own front doors: split, train, evaluate.

Every seed has its own split, adapter and sample order; the base model is scored on each test set.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from benchmarks.results_file import write_results

RATES = ("exact_match", "final_answer", "contains_answer")
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(_one_seed(seed, Path(folder)))
        print(json.dumps(runs[-1]), flush=True)
    figures: dict[str, object] = {
        "base, mean": {rate: mean(run["base"][rate] for run in runs) for rate in RATES},
        "tuned, mean": {rate: mean(run["tuned"][rate] for run in runs) for rate in RATES},
        "runs": runs,
    }
    print(json.dumps({name: figures[name] for name in ("base, mean", "tuned, mean")}, indent=2))
    print("written:", write_results("demo", "python -m benchmarks.demo", figures))


def _one_seed(seed: int, folder: Path) -> dict:
    train, test, scores = folder / "train.json", folder / "test.json", folder / "scores.json"
    seconds = {}
    seconds["split"] = _run(
        "split_dataset.py", "--seed", seed, "--train-out", train, "--test-out", test
    )
    overrides = [f"SEED={seed}", f"DATA_FILES={[str(train)]!r}", f"OUTPUT_DIR={str(folder)!r}"]
    sets = [part for override in overrides for part in ("--set", override)]
    seconds["train"] = _run("train_with_config.py", *sets, "--set", "EXPORT_AFTER_TRAINING=no")
    seconds["evaluate"] = _run(
        "evaluate_model.py", "--test-data", test, "--compare-base", "--output", scores, *sets
    )
    result = json.loads(scores.read_text())
    return {
        "seed": seed,
        "test samples": result["counts"]["evaluated"],
        "base": _rates(result["base"]["metrics"]),
        "tuned": _rates(result["metrics"]),
        "seconds": seconds,
    }


def _rates(metrics: dict) -> dict[str, float]:
    return {rate: metrics[rate]["rate"] for rate in RATES}


def _run(script: str, *arguments: object) -> float:
    """Run one front door; returns its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
