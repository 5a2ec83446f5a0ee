"""A real data set through statistics, one epoch of training, evaluation of 50 samples, and export.

Shows that no sample is lost: records in the file = trained + skipped, every skipped one named.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a JSON array of samples")
    parser.add_argument("--cut", action="store_true", help="cut long samples, not skip")
    arguments = parser.parse_args()
    records = len(json.loads(arguments.data.read_text(encoding="utf-8")))
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        sets = []
        for override in (
            f"DATA_FILES={[str(arguments.data.resolve())]!r}",
            f"OUTPUT_DIR={str(output)!r}",
            f"TRUNCATE_LONG_SEQUENCES={arguments.cut}",
            "NUM_EPOCHS=1",
            "LEARNING_RATE=2e-3",
            "EXPORT_AFTER_TRAINING=no",
            "SAMPLING_MAX_TOKENS=128",
        ):
            sets += ["--set", override]
        seconds["statistics"] = _run("-m", "tinkersmith", "stats", arguments.data.resolve())
        seconds["train"] = _run("train_with_config.py", *sets)
        scores = output / "scores.json"
        seconds["evaluate 50"] = _run(
            "evaluate_model.py", "--test-data", arguments.data.resolve(), "--limit", 50,
            "--output", scores, *sets,
        )  # fmt: skip
        seconds["export"] = _run("export_model.py", "--out", output / "adapter", "--verify", *sets)
        run = next(
            folder for folder in sorted(output.iterdir()) if (folder / "metrics.jsonl").exists()
        )
        events = _lines(run / "skipped.jsonl")
        metrics = _lines(run / "metrics.jsonl")
        evaluated = json.loads(scores.read_text(encoding="utf-8"))["counts"]["evaluated"]
    kinds = [event["kind"] for event in events]
    skipped = sum(kind != "truncated" for kind in kinds)
    trained = sum(line.get("samples", 0) for line in metrics)
    losses = [line["loss"] for line in metrics if "loss" in line]
    figures: dict[str, object] = {
        "records in the file": records,
        "trained": trained,
        "cut (trained, shortened)": kinds.count("truncated"),
        "skipped, each named": skipped,
        "nothing lost": records == trained + skipped,
        "evaluated": evaluated,
        "loss, first and last step": [losses[0], losses[-1]],
        "seconds": seconds,
    }
    print(json.dumps(figures, indent=2))
    name = "real_data_cut" if arguments.cut else "real_data_skip"
    flag = " --cut" if arguments.cut else ""
    print("written:", write_results(name, f"python -m benchmarks.real_data FILE{flag}", figures))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(*arguments: object) -> float:
    """Run one command of the project; returns its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
