"""A model with and without a LoRA on its output layer -> the loss and the scores of both.

    python -m benchmarks.output_layer
    python -m benchmarks.output_layer --model FOLDER --language en --samples 256 --questions 100 \
        --set LEARNING_RATE=1e-3 --set PROMPT_TEMPLATE=instruction

Each seed has its own split of the bundled data, adapter and order, which both choices share. The
figures of other models and sizes stay in the results file.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.results_file import RESULTS, write_results
from tinkersmith.files import write_json
from tinkersmith.runs.folder import newest_run
from tinkersmith.statistics.paired import mcnemar

ROOT = Path(__file__).resolve().parent.parent
NAME = "output_layer"
CHOICES = ("no", "yes")  # of TRAIN_UNEMBED
SCORE = "final_answer"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tinkersmith/tiny-math", help="a name, or a folder")
    parser.add_argument("--language", choices=("en", "zh"), help="take only these samples")
    parser.add_argument("--samples", type=int, default=1600, help="to train on")
    parser.add_argument("--questions", type=int, default=400, help="to score the answers to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], help="a setting: NAME=VALUE")
    wanted = parser.parse_args()
    name = Path(wanted.model).name
    samples = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    samples = [s for s in samples if wanted.language in (None, s["language"])]
    options = "".join(f" --set {override}" for override in wanted.set)
    if wanted.language:
        options = f" --language {wanted.language}{options}"
    command = (
        f"python -m benchmarks.output_layer --model {name} --samples {wanted.samples} "
        f"--questions {wanted.questions}{options}"
    )
    runs: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for seed in wanted.seeds:
        chosen = random.Random(seed).sample(samples, wanted.samples + wanted.questions)
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "train.json", chosen[: wanted.samples])
            write_json(Path(folder) / "test.json", chosen[wanted.samples :])
            for choice in CHOICES:
                run = one_run(Path(folder), wanted.model, seed, choice, wanted.set)
                runs.append(run)
                print(json.dumps({key: run[key] for key in run if key != "right"}), flush=True)
        figures = {"command": command, "samples": wanted.samples, "questions": wanted.questions}
        figures |= compared(runs)
        figures["runs"] = [{key: run[key] for key in run if key != "right"} for run in runs]
        _write(f"{name}, {wanted.samples:,} samples", figures)  # a kill keeps the seeds before
    print(json.dumps({key: figures[key] for key in figures if key != "runs"}, indent=2))


def _write(name: str, figures: dict[str, Any]) -> None:
    file = RESULTS / f"{NAME}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.is_file() else {}
    write_results(NAME, "python -m benchmarks.output_layer", {**before, name: figures})


def one_run(
    folder: Path, model: str, seed: int, choice: str, overrides: list[str]
) -> dict[str, Any]:
    """Train and evaluate once, by the commands that users call."""
    settings = {
        "BASE_MODEL": model,
        "TRAIN_UNEMBED": choice,
        "DATA_FILES": ["train.json"],
        "VALIDATION_FILES": ["test.json"],
        "SEED": seed,
        "OUTPUT_DIR": f"runs-{seed}-{choice}",
        "SAMPLING_MAX_TOKENS": 160,
        "EXPORT_AFTER_TRAINING": "no",
        "BACKEND": "local",
    }
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    (folder / "config.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sets = [word for override in overrides for word in ("--set", override)]
    _call(folder, "train", *sets)
    run = newest_run(folder / str(settings["OUTPUT_DIR"]))
    losses = [line["validation_loss"] for line in run.metrics() if "validation_loss" in line]
    scores = folder / f"scores-{seed}-{choice}.json"
    _call(folder, "evaluate", "--test-data", "test.json", "--output", scores.name)
    result = json.loads(scores.read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "TRAIN_UNEMBED": choice,
        "validation loss": losses[-1],
        "right": [bool(sample["scores"][SCORE]) for sample in result["samples"]],
        SCORE: result["metrics"][SCORE]["rate"],
    }


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of both choices, and McNemar's test over the questions of all seeds."""
    without, with_it = ([run for run in runs if run["TRAIN_UNEMBED"] == c] for c in CHOICES)
    before, after = (np.concatenate([run["right"] for run in side]) for side in (without, with_it))
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return {
        "without it": _means(without),
        "with it": _means(with_it),
        "questions that only the one with it has right": won,
        "questions that only the one without it has right": lost,
        "p of McNemar's test": round(mcnemar(won, lost), 3),
    }


def _means(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: round(mean(run[name] for run in runs), 4) for name in ("validation loss", SCORE)}


def _call(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "tinkersmith", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")


if __name__ == "__main__":
    main()
