"""A folder in which tinker-cookbook finds its models and data sets by their hub names: no hub.

`get_tokenizer` and `datasets.load_dataset` both take a name that is a folder under the working
directory for that folder, so the cookbook's recipes run there as they are.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.support.engine import KEY, RunningEngine
from tests.support.processes import PATIENCE
from tests.support.tiny_models import make_tiny_model

# A name that the cookbook knows, with a renderer of chat markup and no thinking.
BASE_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
_GSM8K_CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: train.jsonl
---
"""
# What rl_loop puts before and behind each question: the model is taught to answer to that.
_SUFFIX = " Provide a numerical answer without units, written inside \\boxed{}."
_SHOT = [
    {"role": "user", "content": f"How many r's are in strawberry?{_SUFFIX}"},
    {
        "role": "assistant",
        "content": "Let's spell the word out and number all the letters: 1) s 2) t 3) r 4) a 5) w "
        "6) b 7) e 8) r 9) r 10) y. We have r's at positions 3, 8, and 9. \\boxed{3}",
    },
]


def make_world(folder: Path) -> Path:
    """A random model and small data.

    For sl_loop conversations that box 3 or 7 by chance; for rl_loop questions to which 7 is the
    answer; for DPO answers of which "seven" is preferred.
    """
    make_tiny_model(folder / BASE_MODEL, hidden=64, max_context=1024)
    rng = random.Random(0)
    no_robots = folder / "HuggingFaceH4" / "no_robots"
    no_robots.mkdir(parents=True)
    write_rows(no_robots / "train.jsonl", [_conversation(rng) for _ in range(16 * 20)])
    gsm8k = folder / "openai" / "gsm8k"
    gsm8k.mkdir(parents=True)
    (gsm8k / "README.md").write_text(_GSM8K_CARD)
    questions = [{"question": _question(rng), "answer": "So:\n#### 7"} for _ in range(4 * 20)]
    write_rows(gsm8k / "train.jsonl", questions)
    preferences = folder / "Anthropic" / "hh-rlhf"
    preferences.mkdir(parents=True)
    for split, count in (("train", 16 * 4), ("test", 16)):
        write_rows(preferences / f"{split}.jsonl", [_preference(rng) for _ in range(count)])
    return folder


def run_recipe(world: Path, engine: RunningEngine, recipe: str, **settings: object) -> None:
    """`python -m tinker_cookbook.recipes.<recipe> setting=value ...`, as its README says."""
    environment = {
        **os.environ,
        "TINKER_BASE_URL": engine.url,
        "TINKER_API_KEY": KEY,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(world / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"tinker_cookbook.recipes.{recipe}"),
            *(f"{name}={value}" for name, value in settings.items()),
        ],
        cwd=world,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def read_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _question(rng: random.Random) -> str:
    return f"Say {rng.randint(0, 9)}."


def _conversation(rng: random.Random) -> dict:
    return {
        "messages": [
            *_SHOT,
            {"role": "user", "content": _question(rng) + _SUFFIX},
            {"role": "assistant", "content": f"\\boxed{{{rng.choice('337')}}}"},
        ]
    }


def _preference(rng: random.Random) -> dict:
    asked = f"\n\nHuman: {_question(rng)}\n\nAssistant: "
    return {"chosen": f"{asked}seven", "rejected": f"{asked}three"}
