"""Small data files of random sums and labels, for tests that train on them."""

import json
import random
from pathlib import Path
from typing import Any


def records(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {
            "instruction": f"Add the numbers of {seed}.{number}.",
            "input": f"{rng.randrange(100)} + {rng.randrange(100)}" if number % 2 else "",
            "output": "so " * rng.randrange(1, 9) + f"Answer: {rng.randrange(200)}",
        }
        for number in range(count)
    ]


def yes_or_no(count: int, seed: int) -> list[dict[str, str]]:
    """Questions with random answers: a small model's score on them goes up and down."""
    rng = random.Random(seed)
    return [
        {"instruction": f"Is {rng.randrange(100)} even?", "output": rng.choice(["yes", "no"])}
        for _ in range(count)
    ]


def write(path: Path, content: list[Any]) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
