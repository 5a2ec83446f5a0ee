"""Write the sample set: distinct word problems with worked solutions, English and Chinese.

The same seed gives the same bytes. Pretraining leaves out every problem written here.
"""

import argparse
import random
from pathlib import Path

from wordproblems import Problem, draw_problem

from tinkersmith.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_SET = ROOT / "data" / "word_problems.json"
SAMPLES = 2000
SEED = 20261123
# A fifth of the stories is told in wordings that pretraining never uses.
HELD_OUT_WORDINGS = 0.2

INSTRUCTIONS = {
    "en": ("Solve the problem step by step.", "Solve this problem and show your work."),
    "zh": ("请一步一步解答这道题。", "解答这道题，写出步骤。"),
}
CHINESE_DIGITS = "一二三四五"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLE_SET, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    arguments = parser.parse_args()
    samples = make_samples(arguments.samples, arguments.seed)
    write_json(arguments.out, samples)
    print(f"{len(samples)} samples -> {arguments.out}")


def make_problems(count: int = SAMPLES, seed: int = SEED) -> list[Problem]:
    """`count` problems, no two with the same family and numbers."""
    rng = random.Random(seed)
    problems: dict[object, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(rng, held_out=HELD_OUT_WORDINGS)
        problems.setdefault(problem.key(), problem)
    return list(problems.values())


def make_samples(count: int = SAMPLES, seed: int = SEED) -> list[dict[str, str]]:
    """The problems as samples of instruction, input and output."""
    rng = random.Random(seed + 1)
    return [
        {
            "instruction": rng.choice(INSTRUCTIONS[problem.language]),
            "input": problem.story,
            "output": solution(problem),
            "answer": str(problem.answer),
            "family": problem.family,
            "language": problem.language,
        }
        for problem in make_problems(count, seed)
    ]


def solution(problem: Problem) -> str:
    """The one worked solution of a problem: a line a step, then the answer line."""
    if problem.language == "en":
        lines = [
            f"Step {number}: {step.equation()} {step.meaning['en']}"
            for number, step in enumerate(problem.steps, 1)
        ]
        return "\n".join([*lines, f"Answer: {problem.answer}"])
    lines = [
        f"第{CHINESE_DIGITS[index]}步：{step.meaning['zh']}{step.equation()}"
        for index, step in enumerate(problem.steps)
    ]
    return "\n".join([*lines, f"答案：{problem.answer}"])


if __name__ == "__main__":
    main()
