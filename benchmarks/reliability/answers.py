"""Labelled pairs of answers -> how often the scores agree with the label, beside math-verify alone.

    python -m benchmarks.reliability.answers --answers 10000

It also scores long answers for speed and hostile ones for the longest time. A false equal is a pair
that differs and is scored as equal; the promise is none, and agreement of 98 %.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from tinkersmith.grading.formulas.second_opinion import LONGEST_WAIT, warm_up
from tinkersmith.grading.scoring import score

PAIRS = Path(__file__).parents[2] / "tests" / "grading" / "pairs"
LEAST_AGREEMENT = 0.98
LONGEST_ANSWER = 2.0  # seconds of our own work, and of waiting for math-verify
LONGEST_CAMPAIGN = 60.0  # CPU seconds for 10,000 answers of 2,000 characters
# math-verify reads mathematics; choices, dates and texts are no part of its promise.
MATHEMATICS = {
    "number", "expression", "set", "interval", "inequality", "tuple", "equation", "matrix", "ratio",
    "quantity", "number base",
}  # fmt: skip

Record = dict[str, Any]


@dataclass
class Agreement:
    """What a scorer makes of the pairs of one kind."""

    pairs: int = 0
    agreed: int = 0
    false_equal: list[Record] = field(default_factory=list[Record])
    missed: list[Record] = field(default_factory=list[Record])

    def add(self, record: Record, equal: bool) -> None:
        self.pairs += 1
        if equal == record["equal"]:
            self.agreed += 1
        elif equal:
            self.false_equal.append(record)
        else:
            self.missed.append(record)

    def figures(self) -> dict[str, object]:
        return {
            "pairs": self.pairs,
            "agreement, %": round(100 * self.agreed / max(1, self.pairs), 1),
            "false equals": len(self.false_equal),
            "missed": len(self.missed),
        }


def labelled_pairs() -> list[Record]:
    records: list[Record] = []
    for path in sorted(PAIRS.glob("*.json")):
        records.extend(json.loads(path.read_text(encoding="utf-8")))
    return records


def measured(
    records: list[Record], equal: Callable[[Record], bool]
) -> tuple[dict[str, Agreement], float]:
    """The agreement by kind, and the longest time of a pair in seconds."""
    kinds: dict[str, Agreement] = {}
    longest = 0.0
    for record in records:
        start = time.perf_counter()
        outcome = equal(record)
        longest = max(longest, time.perf_counter() - start)
        kinds.setdefault(record["kind"], Agreement()).add(record, outcome)
    return kinds, longest


def ours(record: Record) -> bool:
    cut = bool(record.get("cut"))
    scores = score(record["expected"], record["produced"], record.get("answer"), cut=cut)
    return scores["final_answer"] == 1


def math_verify_alone(record: Record) -> bool:
    """math-verify with its defaults; a bare answer is given to it as a formula, as it asks for."""
    from math_verify import parse, verify

    def as_formula(text: str) -> str:
        bare = "$" not in text and "\\boxed" not in text and len(text) < 80 and "\n" not in text
        return f"${text}$" if bare and ":" not in text.partition(" ")[0] else text

    expected = str(record.get("answer", record["expected"]))
    return bool(verify(parse(as_formula(expected)), parse(as_formula(record["produced"]))))


def joined(agreements: list[Agreement]) -> Agreement:
    total = Agreement()
    for each in agreements:
        total.pairs += each.pairs
        total.agreed += each.agreed
        total.false_equal += each.false_equal
        total.missed += each.missed
    return total


def long_answers(count: int, length: int, rng: random.Random) -> list[tuple[str, str]]:
    """(expected, produced): reasoning with numbers and formulas, and an answer at the end."""
    sentences = [
        "First we add {a} and {b}, which gives {c}. ", "Then $x = \\frac{{{a}}}{{{b}}}$ follows. ",
        "So the train needs {a} hours for {b} km. ", "因此一共有 {a} 个苹果和 {b} 个梨。",
        "We check: {a} * {b} = {c}, as claimed. ", "Let $f(x) = {a}x^2 + {b}$; then f(1) is {c}. ",
    ]  # fmt: skip
    pairs: list[tuple[str, str]] = []
    for _ in range(count):
        text = ""
        while len(text) < length - 40:
            a, b = rng.randint(1, 999), rng.randint(1, 999)
            text += rng.choice(sentences).format(a=a, b=b, c=a + b)
        answer, right = rng.randint(0, 9999), rng.random() < 0.5
        shown = f"{answer:,}" if right else str(answer + 1)
        ending = rng.choice(["Answer: {}", "\\boxed{{{}}}", "#### {}", "答案是 {}。", "It is {}."])
        pairs.append((str(answer), f"{text}\n{ending.format(shown)}"))
    return pairs


def hostile_answers() -> list[str]:
    texts = [
        "9**9**9**9", "10^(10^10)", "9" * 100_000, "(" * 10_000 + ")" * 10_000, "factorial(10^9)",
        "(10^9)!", "2^" * 900 + "2", "sin " * 400 + "x", "\\frac{" * 400 + "}" * 400, "1," * 50_000,
        "x>1 or " * 280 + "x<2", "{" + ",".join(f"2^{{9999}}/{n}" for n in range(3, 63)) + "}",
        "一" * 50_000, "\\sum_{k=1}^{200}" * 20 + "k", "\\int_0^1 9^{9^{9^{9}}} dx",
        "e^(e^(e^(e^e)))",
        "\\boxed{" * 5000 + "}" * 5000, "the answer is " * 5000, "5元5角" * 400, "$" * 20_000,
    ]  # fmt: skip
    return texts + [f"Answer: {text}" for text in texts]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000, help="long answers to score")
    parser.add_argument("--seed", type=int, default=18)
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # math-verify logs each text that it cannot read
    warm_up()
    records = labelled_pairs()
    kinds, longest = measured(records, ours)
    others, _ = measured(records, math_verify_alone)
    ours_in_all, theirs_in_all = joined(list(kinds.values())), joined(list(others.values()))
    mathematics = [
        joined([agreement for kind, agreement in each.items() if kind in MATHEMATICS])
        for each in (kinds, others)
    ]
    pairs = long_answers(options.answers, 2000, random.Random(options.seed))
    start, cpu = time.perf_counter(), time.process_time()
    right = sum(score(expected, produced)["final_answer"] for expected, produced in pairs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    longest_cpu = 0.0
    for text in hostile_answers():
        for expected in ("5", "{1, 2}", text[:500], "x + 1"):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            score(expected, text)
            longest = max(longest, time.perf_counter() - begin)
            longest_cpu = max(longest_cpu, time.process_time() - begin_cpu)
    figures: dict[str, object] = {
        "all pairs": {"ours": ours_in_all.figures(), "math-verify alone": theirs_in_all.figures()},
        "mathematics": {
            "ours": mathematics[0].figures(),
            "math-verify alone": mathematics[1].figures(),
        },
        "by kind": {
            kind: {"ours": kinds[kind].figures(), "math-verify alone": others[kind].figures()}
            for kind in sorted(kinds)
        },
        "by language": {
            language: joined(
                list(measured([r for r in records if r["language"] == language], ours)[0].values())
            ).figures()
            for language in ("en", "zh")
        },
        "long answers": options.answers,
        "long answers scored as right": right,
        "CPU seconds for the long answers, one process": round(cpu, 1),
        "seconds for the long answers on this machine as it was": round(seconds, 1),
        "longest time of one answer, CPU seconds": round(longest_cpu, 2),
        "longest time of one answer on this machine as it was, seconds": round(longest, 2),
    }
    for name, figure in figures.items():
        print(f"{name}: {json.dumps(figure, ensure_ascii=False)}")
    for record in ours_in_all.false_equal + ours_in_all.missed:
        print("wrong:", json.dumps(record, ensure_ascii=False))
    command = f"python -m benchmarks.reliability.answers --answers {options.answers}"
    path = write_results("reliability_answers", command, figures, packages=("math-verify", "sympy"))
    print("written:", path)
    broken = (
        ours_in_all.false_equal
        or ours_in_all.agreed < LEAST_AGREEMENT * ours_in_all.pairs
        or longest_cpu + LONGEST_WAIT > LONGEST_ANSWER
        or cpu > LONGEST_CAMPAIGN * options.answers / 10_000
    )
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
