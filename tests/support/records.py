"""Records of an evaluation, made without a model."""

from typing import Any

from tinkersmith.data.samples import Source
from tinkersmith.evaluation.results import Record
from tinkersmith.grading.scoring import METRICS


def answer_record(number: int, right: float = 1.0, **changes: Any) -> Record:
    """The answer to sample `number` of test.json, with the same score by every metric."""
    values: dict[str, Any] = {
        "source": Source("test.json", number),
        "prompt": f"Question {number}?",
        "expected": f"Answer: {number}",
        "expected_answer": str(number),
        "produced": f"Answer: {number if right else -1}",
        "scores": dict.fromkeys(METRICS, float(right)),
        "stop_reason": "stop",
        "tokens": 5,
        "draw": 1,
        "question": f"q{number}",
        "final_answer": str(number if right else -1),
        "kind": "number",
        "prompt_tokens": 10 + number,
    }
    return Record(**{**values, **changes})


def unfinished_record(number: int, **changes: Any) -> Record:
    """An answer that ends within its thought."""
    values: dict[str, Any] = {
        "produced": "",
        "final_answer": None,
        "stop_reason": "length",
        "thought_finished": False,
    }
    return answer_record(number, 0.0, **{**values, **changes})


def answer_records(pattern: str) -> list[Record]:
    """One record per sign: "+" is right, "-" is wrong, "?" is a thought that never ended."""
    return [
        unfinished_record(number) if sign == "?" else answer_record(number, float(sign == "+"))
        for number, sign in enumerate(pattern, start=1)
    ]
