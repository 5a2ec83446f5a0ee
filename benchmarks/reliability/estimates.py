"""Runs on this machine -> how far the forecast of --dry-run was off, in tokens and in time.

    python -m benchmarks.reliability.estimates --size 400

The promises: the tokens are exact, and the time is within 25 %. A hub that accepts connections and
never answers is part of it: each command that needs one answers within 15 s.
"""

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from tinkersmith.cli.init import init_command
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.dry_run import dry_run
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.train import train

FARTHEST = 0.25  # of the measured time
LONGEST_ANSWER = 15.0  # seconds
CASES: dict[str, dict[str, Any]] = {
    "batches of 8": {"BATCH_SIZE": 8},
    "batches of 32, rank 64": {"BATCH_SIZE": 32, "LORA_RANK": 64},
    "with validation": {"BATCH_SIZE": 8, "VALIDATION_RATIO": 0.2, "NUM_EPOCHS": 3},
}
COMMANDS = {
    "preview": ["preview", "few.json", "--base-model", "some-org/some-model"],
    "train": ["train", "--set", "BASE_MODEL=some-org/some-model"],
    "stats": ["stats", "few.json", "--base-model", "some-org/some-model"],
    "check": ["check", "hf:some-org/some-data"],
    "convert": ["convert", "hf:some-org/some-data", "hf:some-org/more", "--out", "all.jsonl"],
}


def measured(size: int, folder: Path, names: dict[str, Any]) -> dict[str, object]:
    """The forecast of one run and what became of it."""
    records = json.loads((folder / "data" / "word_problems.json").read_text())[:size]
    (folder / "few.json").write_text(json.dumps(records))
    settings = settings_from(
        {
            "DATA_FILES": ["few.json"],
            "NUM_EPOCHS": 2,
            "EXPORT_AFTER_TRAINING": "no",
            "BACKEND": "local",
            **names,
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        forecast = dry_run(settings, Interruption())
        begun = time.monotonic()
        with train(settings) as trained:
            metrics = [line for line in trained.run.metrics() if "tokens" in line]
        whole = time.monotonic() - begun
    assert forecast.pace is not None
    tokens = sum(line["tokens"] for line in metrics)
    seconds = tokens / metrics[-1]["tokens_per_second"]
    predicted = forecast.pace.of(forecast.work, forecast.steps) or 0.0
    return {
        "tokens, predicted": forecast.work.trained_tokens(forecast.steps),
        "tokens, counted": tokens,
        "training, predicted, s": round(predicted, 1),
        "training, measured, s": round(seconds, 1),
        "whole command, s": round(whole, 1),
        "off, %": round(100 * (predicted - seconds) / seconds, 1),
    }


def answered(folder: Path) -> dict[str, float]:
    """Seconds until each command ends beside a hub that never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        hub = f"http://127.0.0.1:{listening.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub")}
        seconds: dict[str, float] = {}
        for name, command in COMMANDS.items():
            begun = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "tinkersmith", *command],
                cwd=folder,
                env=environment,
                capture_output=True,
                check=False,
            )
            seconds[name] = round(time.monotonic() - begun, 1)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=400, help="samples of each run")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name) / "project"
        with contextlib.redirect_stdout(io.StringIO()):
            init_command([str(folder)], prog="init")
        os.chdir(folder)
        source = folder / "data" / "word_problems.json"
        (folder / "data" / "train_set.json").write_bytes(source.read_bytes())
        runs = {case: measured(size, folder, names) for case, names in CASES.items()}
        hub = answered(folder)
        os.chdir("/")
    for case, figures in runs.items():
        print(case, figures)
    print("with a silent hub, s:", hub)
    command = f"python -m benchmarks.reliability.estimates --size {size}"
    write_results("reliability_estimates", command, {"runs": runs, "silent hub, s": hub})
    kept = all(
        run["tokens, predicted"] == run["tokens, counted"]
        and abs(float(str(run["off, %"]))) <= 100 * FARTHEST
        for run in runs.values()
    )
    return 0 if kept and max(hub.values()) <= LONGEST_ANSWER else 1


if __name__ == "__main__":
    sys.exit(main())
