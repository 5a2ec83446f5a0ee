"""Runs on this machine -> how far the forecast of memory was off from what both processes took.

    python -m benchmarks.reliability.memory
    python -m benchmarks.reliability.memory --model FOLDER

The promise: the forecast is between 0.8 and 1.5 of the highest memory that the recipe and its
engine held at the same time. Memory of files that the system can drop at any time is not counted.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.files import write_json
from tinkersmith.forecast.memory import MemoryNeed
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.dry_run import dry_run
from tinkersmith.training.interruption import Interruption

ROOT = Path(__file__).resolve().parents[2]
LEAST, MOST = 0.8, 1.5  # of what was measured
EVERY = 0.05  # seconds between two looks
MIB = 2**20
SIZES: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", default=[], help="another model's folder")
    wanted = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        write_samples()
        qwen3, mistral = make_qwen3(Path("qwen3-512")), make_mistral(Path("mistral-512"))
        qwen35 = make_qwen35(Path("qwen35-512"))
        for title, settings in cases(qwen3, mistral, qwen35, wanted.model).items():
            runs[title] = one_run(settings)
            print(title, runs[title], flush=True)
    command = "python -m benchmarks.reliability.memory"
    write_results("reliability_memory", command, {"runs": runs})
    return 0 if all(LEAST <= run["forecast / measured"] <= MOST for run in runs.values()) else 1


def cases(qwen3: Path, mistral: Path, qwen35: Path, others: list[str]) -> dict[str, dict[str, Any]]:
    """The settings of each run, beside those that all have."""
    short: dict[str, Any] = {"DATA_FILES": ["short.json"]}
    long: dict[str, Any] = {"DATA_FILES": ["long.json"], "BATCH_SIZE": 1}
    longest: dict[str, Any] = {"DATA_FILES": ["longest.json"], "BATCH_SIZE": 1}
    of_qwen3 = {"BASE_MODEL": str(qwen3)}
    output_layer = {"LORA_RANK": 128, "TRAIN_UNEMBED": "yes"}
    return {
        "bundled model": short,
        "bundled model, long samples": long,
        "Qwen3, hidden size 512": {**short, **of_qwen3},
        "Qwen3, hidden size 512, long samples": {**longest, **of_qwen3},
        "Qwen3, hidden size 512, rank 128 with the output layer": {
            **short,
            **of_qwen3,
            **output_layer,
        },
        "Mistral, hidden size 512, a window of 512, samples of about 4,900 tokens": {
            **longest,
            "BASE_MODEL": str(mistral),
        },
        "Qwen3.5, hidden size 512, samples of about 700 tokens": {
            **long,
            "BASE_MODEL": str(qwen35),
        },
        **{Path(other).name: {**short, "BASE_MODEL": str(Path(other))} for other in others},
    }


def write_samples() -> None:
    """Samples of the bundled data, and long ones that each join 8 or 60 of them."""
    records = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    write_json(Path("short.json"), records[:24])
    for name, size in (("long.json", 8), ("longest.json", 60)):
        groups = [records[start : start + size] for start in (0, size)]
        joined = [
            {
                "instruction": " ".join(
                    sample["instruction"] + sample["input"] for sample in group
                ),
                "output": " ".join(sample["output"] for sample in group),
            }
            for group in groups
        ]
        write_json(Path(name), joined)


def make_qwen3(folder: Path) -> Path:
    """A random Qwen3 of 52 million parameters with the bundled model's tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _saved(folder, Qwen3ForCausalLM(Qwen3Config(**SIZES)))


def make_mistral(folder: Path) -> Path:
    """A random Mistral of these sizes, whose layers all have a window."""
    from transformers import MistralConfig, MistralForCausalLM

    return _saved(folder, MistralForCausalLM(MistralConfig(**SIZES, sliding_window=512)))


def make_qwen35(folder: Path) -> Path:
    """A random Qwen3.5 of these sizes: three of four layers carry a state."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    state: dict[str, Any] = {
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    }
    return _saved(folder, Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES, **state)))


def _saved(folder: Path, model: Any) -> Path:
    import torch

    folder.mkdir()
    for file in next(iter(BUNDLED_MODELS.values())).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder / file.name)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder.resolve()


def one_run(names: dict[str, Any]) -> dict[str, Any]:
    """The forecast of a run, and the most that its processes held at the same time."""
    settings = {
        "NUM_EPOCHS": 1,
        "MAX_SEQUENCE_LENGTH": 8192,
        "PROMPT_TEMPLATE": "instruction",
        "EXPORT_AFTER_TRAINING": "no",
        "SAMPLING_MAX_TOKENS": 16,
        "BACKEND": "local",
        **names,
    }
    need = forecast(settings)
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    Path("config.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured, parts = peak_of([sys.executable, "-m", "tinkersmith", "train"])
    return {
        "forecast, MiB": round(need.together / MIB),
        "measured, MiB": round(measured / MIB),
        "forecast / measured": round(need.together / measured, 2),
        "of the engine, MiB": round(parts["engine"] / MIB),
        "of the recipe, MiB": round(parts["recipe"] / MIB),
    }


def forecast(names: dict[str, Any]) -> MemoryNeed:
    """What --dry-run says, as numbers."""
    settings = settings_from(names)
    with contextlib.redirect_stdout(io.StringIO()):
        planned = dry_run(settings, Interruption())
    assert planned.memory is not None
    return planned.memory


def peak_of(command: list[str]) -> tuple[int, dict[str, int]]:
    """The most bytes that a command and its children held together, and each kind of process."""
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    most, parts = 0, {"engine": 0, "recipe": 0}
    while program.poll() is None:
        together = 0
        for pid in _tree(program.pid):
            size, line = _held(pid)
            together += size
            kind = "engine" if "tinkersmith.engine" in line else "recipe"
            parts[kind] = max(parts[kind], size)
        most = max(most, together)
        time.sleep(EVERY)
    if program.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {program.returncode}.")
    return most, parts


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    found, left = list[int](), [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def _held(pid: int) -> tuple[int, str]:
    """The bytes of a process that are not those of files, and its command line."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        values = {name: value for name, _, value in (line.partition(":") for line in lines)}
        size = sum(int(values[name].split()[0]) for name in ("RssAnon", "RssShmem"))
        return size * 1024, Path(f"/proc/{pid}/cmdline").read_text()
    return 0, ""


if __name__ == "__main__":
    sys.exit(main())
