"""Planted wrong answers in the bundled data -> how well hard_samples.jsonl finds them.

5 % of the samples get a wrong number of one of four kinds. A run with the default settings trains
on all of them. The AUC is the probability that a wrong sample has a higher score than a right one
(0.5 is chance, 1 is perfect). At least 0.95 is promised for each seed.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results_file import write_results
from tinkersmith import train
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.hard_samples import HardSamples, rank_samples

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.05
PROMISED = 0.95
KINDS = ("final answer", "last result and final answer", "result of the first step", "operand")


def planted(
    records: list[dict[str, str]], seed: int, share: float = SHARE
) -> tuple[list[dict[str, str]], dict[int, str]]:
    """The records with wrong numbers in a share of them, and the kind by record, from 1."""
    chance = random.Random(seed)
    changed = [dict(record) for record in records]
    chosen = sorted(chance.sample(range(len(records)), round(share * len(records))))
    kinds: dict[int, str] = {}
    for number, place in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        changed[place]["output"] = _with_wrong_number(records[place], kind, chance)
        kinds[place + 1] = kind
    return changed, kinds


def auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """The probability that one of `wrong` has a higher score than one that is not (Mann-Whitney).

    Args:
        scores: (N,) of the samples.
        wrong: (N,) bool.
    """
    above = scores[wrong][:, None] > scores[~wrong][None, :]
    equal = scores[wrong][:, None] == scores[~wrong][None, :]
    return float((above + 0.5 * equal).mean())


def trained_on(records: list[dict[str, str]], seed: int, folder: Path) -> HardSamples:
    """The ranking of a run with default settings on these records."""
    data = folder / "data.json"
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    settings = settings_from(
        {
            "DATA_FILES": [str(data)],
            "OUTPUT_DIR": str(folder / "runs"),
            "BACKEND": "local",
            "SEED": seed,
            "EXPORT_AFTER_TRAINING": "no",
        }
    )
    with train(settings) as trained:
        return rank_samples(trained.run, [str(data)])


def figures_of(hard: HardSamples, kinds: dict[int, str]) -> dict[str, object]:
    """AUC of the score, of plain losses, and of each kind; and how many stand out."""
    records = [sample.source.record for sample in hard.samples]
    wrong = np.array([record in kinds for record in records])
    scores = np.array([sample.score for sample in hard.samples])
    losses = np.array([sample.losses for sample in hard.samples], dtype=float)  # (N, epochs)
    return {
        "samples": len(records),
        "planted": int(wrong.sum()),
        "AUC": round(auc(scores, wrong), 4),
        "AUC of the mean loss": round(auc(losses.mean(axis=1), wrong), 4),
        "AUC of each epoch's loss": [round(auc(column, wrong), 4) for column in losses.T],
        "AUC of each kind": {
            kind: round(auc(scores[of_kind], wrong[of_kind]), 4)
            for kind in KINDS
            if (of_kind := np.array([kinds.get(record, kind) == kind for record in records])).any()
        },
        "stand out": hard.outstanding,
        "planted among them": int(wrong[: hard.outstanding].sum()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--size", type=int, default=0, help="samples; 0 is all of the bundled data")
    arguments = parser.parse_args()
    bundled = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    runs: dict[str, dict[str, object]] = {}
    for seed in arguments.seeds:
        chosen = random.Random(seed).sample(bundled, arguments.size or len(bundled))
        records, kinds = planted(chosen, seed)
        with tempfile.TemporaryDirectory() as folder:
            runs[f"seed {seed}"] = figures_of(trained_on(records, seed, Path(folder)), kinds)
    columns = ("AUC", "AUC of the mean loss", "planted", "stand out", "planted among them")
    print(f"{'':8}" + "".join(f"{column:>22}" for column in columns))
    for name, run in runs.items():
        print(f"{name:8}" + "".join(f"{run[column]!s:>22}" for column in columns))
    if not arguments.size:
        print(
            "written:", write_results("label_errors", "python -m benchmarks.label_errors", {**runs})
        )
    is_kept = all(float(str(run["AUC"])) >= PROMISED for run in runs.values())
    return 0 if is_kept else 1


def _with_wrong_number(record: dict[str, str], kind: str, chance: random.Random) -> str:
    """The output of a record with one number changed, plausibly."""
    output, answer = record["output"], record["answer"]
    if kind == "final answer":
        steps, last = output.rsplit("\n", 1)
        return f"{steps}\n{last.replace(answer, _other(answer, chance))}"
    if kind == "last result and final answer":
        wrong = _other(answer, chance)
        lines = output.split("\n")
        for place in (-2, -1):
            before, _, after = lines[place].rpartition(answer)
            lines[place] = before + wrong + after
        return "\n".join(lines)
    pattern = r"= (\d+)" if kind == "result of the first step" else r"(\d+) [×+÷-] "
    match = re.search(pattern, output)
    assert match is not None, output
    return output[: match.start(1)] + _other(match[1], chance) + output[match.end(1) :]


def _other(number: str, chance: random.Random) -> str:
    """A number near this one."""
    nearby = [int(number) + by for by in (-10, -3, -2, -1, 1, 2, 3, 10, 20)]
    return str(chance.choice([value for value in nearby if value >= 0]))


if __name__ == "__main__":
    sys.exit(main())
