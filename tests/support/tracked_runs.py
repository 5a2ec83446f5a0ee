"""Run folders whose metrics.jsonl grows as that of a training run, for tests of trackers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.run_folders import run_of_settings
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.trackers.processes import end_trackers, start_trackers
from tinkersmith.trackers.protocol import State


def step_line(step: int, loss: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 1,
        "loss": loss,
        "learning_rate": 0.001,
        "samples": 8,
        "tokens": 100,
        "completion_tokens": 50,
        "tokens_per_second": 1000.5,
        "seconds": 0.1,
        "grad_norm": 0.5,
    }


def new_run(folder: Path) -> RunFolder:
    return run_of_settings(folder / "runs" / "my-model-20261127-020000", LORA_RANK=4)


def track(
    run: RunFolder,
    name: str,
    train: Callable[[], None],
    state: State = "finished",
    first_step: int = 0,
) -> list[str]:
    """Start one tracker, train, and end it; returns what was said."""
    said: list[str] = []
    progress = Progress(said.append)
    trackers = start_trackers(run, [name], first_step, progress)
    train()
    end_trackers(trackers, state, progress, patience=300)
    return said


def train_whole_run(run: RunFolder) -> None:
    """Three steps, a validation, an evaluation and an answer, as a finished run writes them."""
    run.append("metrics.jsonl", [step_line(step, 3.0 - step / 2) for step in (1, 2, 3)])
    run.append("metrics.jsonl", [{"step": 3, "epoch_loss": 2.0}])
    run.append("metrics.jsonl", [{"step": 3, "validation_loss": 1.25}])
    run.append("metrics.jsonl", [{"step": 3, "eval/n": 7, "eval/final_answer": 0.75}])
    sample = {"source": "a.json, record 1", "prompt": "1 + 1|", "expected": "2", "answers": ["2!"]}
    run.file("samples.json").write_text(json.dumps([sample]))
    run.file("report.html").write_text("<!doctype html>")
