"""Records of an evaluation, made without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinkersmith.data.samples import Source
from tinkersmith.evaluation.results import SCHEMA_VERSION, Record
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


def write_results_file(path: Path, records: Sequence[Record], **changes: Any) -> Path:
    """A file of results with these answers of the trained model, as an evaluation writes it."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model_path": f"tinker://{path.stem}/sampler_weights/final",
        "run": path.stem,
        "base_model": "base",
        "test_file": "test.json",
        "created": "2026-11-26T10:00:00+00:00",
        "settings": {
            "SAMPLING_MAX_TOKENS": 256,
            "SAMPLING_TEMPERATURE": 0.0,
            "SAMPLING_NUM_SAMPLES": 1,
            "SEED": 0,
        },
        "limit": None,
        "prompt_template": "instruction",
        "samples": [record.to_json() for record in records],
        "base_samples": [],
        **changes,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
