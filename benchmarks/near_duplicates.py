"""100,000 samples with planted near-duplicates -> what the check of data finds, and what it takes.

Half of the samples are English-like, half Chinese. A share of them are earlier samples with a few
edits, or equal but for white space. The similarity of every planted pair, and of every pair that is
reported, is computed the slow way. The search runs in a process of its own, reading included, and
then the whole check. With --long, samples are as long as 16,000 tokens and the file is streamed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.process_memory import resident_gb
from benchmarks.results_file import write_results
from tests.support.near_texts import edited, han_words, jaccard, text, words

ROOT = Path(__file__).resolve().parent.parent
THRESHOLD = 0.8
PLANTED = 0.05  # of the samples
TWINS = 0.2  # of the planted ones
LONG = 60_000  # characters of a sample of 16,000 tokens

SEARCH = """
import sys
from tinkersmith.data.near_duplicates import Signatures
from tinkersmith.doctor.reading import Reading
from tinkersmith.doctor.texts import TextStore, answer_text, question_text
signatures, store = Signatures(), TextStore()
for sample in Reading([sys.argv[1]]).samples():
    question, answer = question_text(sample), answer_text(sample)
    store.add(question, answer)
    signatures.add(f"{question}\\n{answer}")
pairs = signatures.pairs(lambda number: f"{store.question(number)}\\n{store.answer(number)}")
print(len(pairs))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=500, help="of a sample, on average")
    parser.add_argument("--long", action="store_true", help=f"few samples of {LONG:,} characters")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.long:
        options.samples, options.characters = min(options.samples, 1000), LONG
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts, planted = _texts(random.Random(options.seed), options.samples, options.characters)
        file = folder / "samples.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for number, content in enumerate(texts):
                question, answer = content.split("\n")
                record = {"id": number, "instruction": question, "output": answer}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
        search = _measured([sys.executable, "-c", SEARCH, str(file)], folder)
        check = _measured(
            [sys.executable, "-m", "tinkersmith", "check", str(file), "--out", "found.jsonl"],
            folder,
        )
        found = _found(folder / "found.jsonl")
        size = file.stat().st_size
    figures: dict[str, object] = {
        "samples": len(texts),
        "megabytes": round(size / 1e6, 1),
        "characters a sample": round(mean(map(len, texts))),
        "search": search,
        "whole check": check,
        **_recall(texts, planted, found),
    }
    print(json.dumps(figures, indent=2))
    name = "near_duplicates_long" if options.long else "near_duplicates"
    command = "python -m benchmarks.near_duplicates" + (" --long" if options.long else "")
    print("written:", write_results(name, command, figures, packages=("datasketch", "scipy")))
    right = figures["recall"] >= 0.95 and figures["twins found"] == figures["twins planted"]  # type: ignore[operator]
    sys.exit(0 if right and not figures["false pairs"] else 1)


def _texts(
    rng: random.Random, count: int, characters: int
) -> tuple[list[str], list[tuple[int, int]]]:
    """The texts, each a question and an answer in two lines, and the planted (copy, original)."""
    english, chinese = words(rng), han_words(rng)
    texts: list[str] = []
    planted: list[tuple[int, int]] = []
    for number in range(count):
        if number and rng.random() < PLANTED:
            original = rng.randrange(number)
            question, answer = texts[original].split("\n")
            if rng.random() < TWINS:
                texts.append(f"{question}\n{answer} ")
            else:
                most = max(len(answer) // 20, 1)  # of similarity 0.6 and more
                texts.append(f"{question}\n{edited(rng, answer, rng.randint(1, most))}")
            planted.append((number, original))
            continue
        length = max(round(rng.lognormvariate(0, 0.4) * characters * 0.92), 60)
        vocabulary, gap = (english, " ") if rng.random() < 0.5 else (chinese, "")
        question = text(rng, vocabulary, length // 5, gap)
        texts.append(f"{question}\n{text(rng, vocabulary, length - length // 5, gap)}")
    return texts, planted


def _measured(command: list[str], folder: Path) -> dict[str, float]:
    """The wall and processor time of a program, and the most memory that it had."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0.0
    while process.poll() is None:
        try:
            peak = max(peak, resident_gb("VmHWM", process.pid))
        except (OSError, ValueError):  # it has just ended
            break
        time.sleep(0.05)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors.decode())
    after = os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor seconds": round(processor, 1),
        "gigabytes": round(peak, 3),
    }


def _found(listed: Path) -> list[dict[str, Any]]:
    """The near and exact duplicates that the check lists."""
    lines = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] in ("near-duplicates", "exact-duplicates")]


def _recall(
    texts: list[str], planted: list[tuple[int, int]], found: list[dict[str, Any]]
) -> dict[str, object]:
    """How many of the planted pairs are found, and how many reported pairs are not pairs."""
    cluster_of: dict[int, int] = {}
    false = 0
    # Exact duplicates join the cluster of the sample that they equal.
    for line in sorted(found, key=lambda line: line["kind"], reverse=True):
        first = line.get("cluster_first") or line["copy_of"]
        number, origin = line["record"] - 1, first["record"] - 1
        cluster = cluster_of.setdefault(origin, origin)
        cluster_of[number] = cluster
        other = (line.get("near") or line["copy_of"])["record"] - 1
        false += jaccard(texts[number], texts[other]) < THRESHOLD
    similarities = {pair: jaccard(texts[pair[0]], texts[pair[1]]) for pair in planted}
    near = [pair for pair, value in similarities.items() if value >= THRESHOLD]
    twins = [pair for pair, value in similarities.items() if value == 1]

    def together(pairs: list[tuple[int, int]]) -> int:
        return sum(
            copy in cluster_of and cluster_of.get(original) == cluster_of[copy]
            for copy, original in pairs
        )

    return {
        "planted": len(planted),
        f"planted at {THRESHOLD} or more": len(near),
        "found of these": together(near),
        "recall": round(together(near) / len(near), 4),
        "twins planted": len(twins),
        "twins found": together(twins),
        "pairs reported": len(found),
        "false pairs": false,
    }


if __name__ == "__main__":
    main()
