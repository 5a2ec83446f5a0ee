"""A small finished run on a real engine, for tests of what comes after training."""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.tiny_models import make_tiny_model
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.train import train


@dataclass(frozen=True)
class SmallRun:
    folder: Path
    settings: Settings
    run: RunFolder
    sampler_path: str
    state_path: str
    test_file: Path


def records(first: int, count: int) -> list[dict[str, str]]:
    return [
        {"instruction": "Add.", "input": f"{n} + {n}", "output": f"Answer: {2 * n}"}
        for n in range(first, first + count)
    ]


@cache
def small_run() -> SmallRun:
    """A tied random model, trained for some steps; made once for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="small-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = make_tiny_model(folder / "base")
    (folder / "train.json").write_text(json.dumps(records(10, 16)))
    test_file = folder / "test.json"
    long = {"instruction": "Add. " * 200, "input": "", "output": "Answer: 0"}
    known = records(10, 1)
    test_file.write_text(json.dumps([*records(40, 9), long, *known]))
    settings = settings_from(
        {
            "DATA_FILES": [str(folder / "train.json")],
            "BASE_MODEL": str(base),
            "OUTPUT_DIR": str(folder / "runs"),
            "BACKEND": "local",
            "LEARNING_RATE": 2e-2,
            "NUM_EPOCHS": 4,
            "LORA_RANK": 4,
            "SAMPLING_MAX_TOKENS": 24,
            "EXPORT_AFTER_TRAINING": "no",
        }
    )
    with train(settings) as trained:
        return SmallRun(
            folder, settings, trained.run, trained.sampler_path, trained.state_path, test_file
        )
