"""Whether the best checkpoint by the answers during training beats the last one on other questions.

Each seed has its own split of the bundled data, adapter and order. The learning rate is high and
constant, so that the score jumps. The test set chose nothing. All by the project's front doors.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from tinkersmith.files import write_json
from tinkersmith.runs.folder import RunFolder, newest_run

ROOT = Path(__file__).resolve().parent.parent
TRAINED, ASKED, TESTED = 160, 100, 200  # samples
SETTINGS = {
    "NUM_EPOCHS": 8,
    "BATCH_SIZE": 8,
    "LEARNING_RATE": 1e-2,
    "LR_SCHEDULE": "constant",
    "SAMPLING_MAX_TOKENS": 160,
    "EXPORT_AFTER_TRAINING": "no",
    "BACKEND": "local",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    seeds: list[int] = parser.parse_args().seeds
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(_one_seed(seed, Path(folder)))
        print(json.dumps(runs[-1]), flush=True)
    figures: dict[str, object] = {
        "samples": {"trained": TRAINED, "asked during training": ASKED, "test set": TESTED},
        "settings": SETTINGS,
        "best is not the last": sum(run["best step"] < run["last step"] for run in runs),
        "mean gain on the test set": sum(run["gain on the test set"] for run in runs) / len(runs),
        "runs": runs,
    }
    file = write_results("best_checkpoint", "python -m benchmarks.best_checkpoint", figures)
    print("written:", file)
    return 0 if figures["best is not the last"] == len(runs) else 1


def _one_seed(seed: int, folder: Path) -> dict[str, Any]:
    samples = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    random.Random(seed).shuffle(samples)
    ends = {"train": TRAINED, "ask": TRAINED + ASKED, "test": TRAINED + ASKED + TESTED}
    start = 0
    for name, end in ends.items():
        write_json(folder / f"{name}.json", samples[start:end])
        start = end
    config = folder / "config.py"
    settings = {
        **SETTINGS,
        "DATA_FILES": ["train.json"],
        "EVAL_FILES": ["ask.json"],
        "SEED": seed,
        "OUTPUT_DIR": "runs",
    }
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    seconds = _run("train_with_config.py", "--config", config)
    run = newest_run(folder / "runs")
    measured = [line for line in run.metrics() if "eval/n" in line]
    best = json.loads(run.file("best.json").read_text(encoding="utf-8"))
    tested = {which: _tested(folder, config, which) for which in ("best", "last")}
    return {
        "seed": seed,
        "scores by step": {line["step"]: line["eval/final_answer"] for line in measured},
        "best step": best["step"],
        "last step": run.checkpoints()[-1].step,
        "on the test set": tested,
        "gain on the test set": tested["best"]["rate"] - tested["last"]["rate"],
        "seconds": {
            "train": seconds,
            "of that generation": round(sum(line["eval/seconds"] for line in measured), 1),
        },
        "deleted states": _deleted(run),
    }


def _tested(folder: Path, config: Path, which: str) -> dict[str, Any]:
    """The final answers of a checkpoint on the test set."""
    out = folder / f"{which}.json"
    options = ["--checkpoint", which, "--test-data", folder / "test.json", "--output", out]
    _run("evaluate_model.py", "--config", config, *options)
    rate = json.loads(out.read_text(encoding="utf-8"))["metrics"]["final_answer"]
    return {name: rate[name] for name in ("rate", "n", "interval_95")}


def _deleted(run: RunFolder) -> int:
    """How many states KEEP_LAST deleted; the best one must not be among them."""
    best = json.loads(run.file("best.json").read_text(encoding="utf-8"))["step"]
    states = {point.step: point.state_deleted for point in run.checkpoints()}
    assert not states[best]
    return sum(states.values())


def _run(script: str, *arguments: object) -> float:
    """Run one front door; returns its wall time in seconds."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True)
    return round(time.perf_counter() - begun, 1)


if __name__ == "__main__":
    sys.exit(main())
