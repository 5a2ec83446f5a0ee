"""Whether `tinkersmith improve` makes a better model than plain training, on questions held out.

Each seed has its own split of the bundled data. Four models answer the same test questions, which
chose nothing:

* start: plain training on a few solved samples; its best checkpoint by the asked questions.
* plain: plain training on the same samples for as many steps as start and improvement together.
  Its best checkpoint by the asked questions is taken.
* bare: the same, with the further questions and their bare final answers as samples: plain training
  on all that the improvement knows.
* improved: `improve` from the start. It knows the bare answers only through the checker.
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
from tinkersmith.evaluation.results import Record, read_results
from tinkersmith.evaluation.verdict import pairs_of, sentence, verdict
from tinkersmith.files import write_json
from tinkersmith.runs.folder import RunFolder, newest_run

ROOT = Path(__file__).resolve().parent.parent
SOLVED, FURTHER, ASKED, TESTED = 80, 500, 200, 400  # samples
EPOCHS = 10  # of the start
SETTINGS: dict[str, Any] = {
    "BATCH_SIZE": 8,
    "SAMPLING_MAX_TOKENS": 160,
    "EVAL_LIMIT": 0,
    "EXPORT_AFTER_TRAINING": "no",
    "BACKEND": "local",
}
METHODS: dict[str, list[str]] = {
    "rejection": ["--rounds", "2", "--answers", "4"],
    "grpo": ["--method", "grpo", "--rounds", "2", "--answers", "8", "--set", "LEARNING_RATE=0.001"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--method", choices=METHODS, default="rejection")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(_one_seed(seed, arguments.method, Path(folder)))
        print(json.dumps(runs[-1], indent=2), flush=True)
        _write(runs, arguments.method)  # a seed takes long: a stop loses only the one under way
    return 0 if all(run["verdicts"]["plain"]["is better"] for run in runs) else 1


def _write(runs: list[dict[str, Any]], method: str) -> None:
    gains = [run["verdicts"] for run in runs]
    figures: dict[str, object] = {
        "samples": {
            "solved": SOLVED,
            "further questions": FURTHER,
            "asked after each round": ASKED,
            "test set": TESTED,
        },
        "settings": {**SETTINGS, "NUM_EPOCHS of the start": EPOCHS},
        "options of improve": METHODS[method],
        "mean rate on the test set": {
            name: sum(run["rates"][name] for run in runs) / len(runs) for name in runs[0]["rates"]
        },
        "significant gains over plain": sum(gain["plain"]["is better"] for gain in gains),
        "significant gains over bare": sum(gain["bare"]["is better"] for gain in gains),
        "runs": runs,
    }
    name = "improving" if method == "rejection" else f"improving_{method}"
    seeds = " ".join(str(run["seed"]) for run in runs)
    command = f"python -m benchmarks.improving --method {method} --seeds {seeds}"
    print("written:", write_results(name, command, figures))


def _one_seed(seed: int, method: str, folder: Path) -> dict[str, Any]:
    samples = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    random.Random(seed).shuffle(samples)
    start = 0
    sizes = {"solved": SOLVED, "further": FURTHER, "asked": ASKED, "test": TESTED}
    for name, size in sizes.items():
        chosen = samples[start : start + size]
        # The solution is taken away: only the checker knows the final answer.
        write_json(folder / f"{name}.json", [_bare(x) if name == "further" else x for x in chosen])
        start += size
    first, seconds = _trained(folder, "start", seed, ["solved.json"], EPOCHS)
    begun = time.perf_counter()
    _run(
        *(folder, "improve", first.name, "--config", "start.py"),
        *("--set", "DATA_FILES=further.json", *METHODS[method]),
    )
    spent = {"start": seconds, "improve": round(time.perf_counter() - begun, 1)}
    improved = newest_run(folder / "start-runs")
    rounds = improved.lines("rounds.jsonl")
    steps = first.fact("total_steps") + improved.fact("total_steps")
    for name, files in (("plain", ["solved.json"]), ("bare", ["solved.json", "further.json"])):
        per_epoch = -(-sum(sizes[file.removesuffix(".json")] for file in files) // 8)
        _, spent[name] = _trained(folder, name, seed, files, max(1, -(-steps // per_epoch)))
    answers = {
        "start": _answers(folder, "start", "--model-path", improved.checkpoints()[0].sampler_path),
        "improved": _answers(folder, "start"),
        "plain": _answers(folder, "plain"),
        "bare": _answers(folder, "bare"),
    }
    return {
        "seed": seed,
        "steps": {"start": first.fact("total_steps"), "of all four but the start": steps},
        "rounds": [
            {name: line[name] for name in line if not name.startswith("difference_")}
            for line in rounds
        ],
        "rates": {name: _rate(records) for name, records in answers.items()},
        "verdicts": {
            name: _compared(answers["improved"], answers[name], name)
            for name in ("start", "plain", "bare")
        },
        "seconds": spent,
    }


def _bare(sample: dict[str, Any]) -> dict[str, Any]:
    marker = "答案：" if sample["language"] == "zh" else "Answer: "
    return {**sample, "output": f"{marker}{sample['answer']}"}


def _trained(
    folder: Path, name: str, seed: int, files: list[str], epochs: int
) -> tuple[RunFolder, float]:
    """A run of plain training, scored on the asked questions about ten times, and its seconds."""
    values = {
        **SETTINGS,
        "DATA_FILES": files,
        "EVAL_FILES": ["asked.json"],
        "EVAL_EVERY": 0 if name == "start" else 40,
        "NUM_EPOCHS": epochs,
        "SEED": seed,
        "OUTPUT_DIR": f"{name}-runs",
    }
    text = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    begun = time.perf_counter()
    _run(folder, "train", "--config", f"{name}.py")
    return newest_run(folder / f"{name}-runs"), round(time.perf_counter() - begun, 1)


def _answers(folder: Path, name: str, *options: str) -> list[Record]:
    """Answers to the test set; without options, of the newest run's best checkpoint."""
    out = folder / "scores.json"
    where = ("--config", f"{name}.py", "--test-data", "test.json", "--output", out.name)
    _run(folder, "evaluate", *where, *options)
    return read_results(out).trained


def _rate(records: list[Record]) -> float:
    return sum(record.scores["final_answer"] for record in records) / len(records)


def _compared(first: list[Record], second: list[Record], name: str) -> dict[str, Any]:
    found = verdict(pairs_of(first, second), "final_answer")
    return {
        "difference": found.difference.mean,
        "interval_95": [found.difference.low, found.difference.high],
        "p_value": found.p_value,
        "is better": found.shown and found.difference.mean > 0,
        "sentence": sentence(found, "the improved model", f"the model of {name}"),
    }


def _run(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "tinkersmith", *words], cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
