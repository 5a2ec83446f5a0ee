"""Run folders without a run, for tests of what is read from them."""

import json
from pathlib import Path

from tinkersmith.runs.folder import Checkpoint, RunFolder


def run_of_settings(path: Path, **settings: object) -> RunFolder:
    """A folder whose settings.json has these settings, and nothing else."""
    path.mkdir(parents=True)
    facts = {
        "settings": settings,
        "prompt_template": {},
        "total_steps": 100,
        "base_model": "tinkersmith/tiny-math",
        "backend": "embedded",
    }
    (path / "settings.json").write_text(json.dumps(facts))
    return RunFolder(path)


def checkpoint(step: int) -> Checkpoint:
    name = f"step-{step:06}"
    return Checkpoint(
        name=name,
        step=step,
        epoch=0,
        state_path=f"tinker://run/weights/{name}",
        sampler_path=f"tinker://run/sampler_weights/{name}",
    )
