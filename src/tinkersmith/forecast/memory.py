"""A model folder and settings -> the memory that training here needs, before it loads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.fingerprint import safetensors_header, text_config
from tinkersmith.settings.fields import Settings

_GIB = 2**30
_OPTIMIZER = 16  # bytes of an adapter's weight: itself, its gradient and two moments, in float32
_SAVED_LAYER = 6  # hidden states of a token that a layer keeps for the backward pass, in float32
_RESERVE = 1.5 * _GIB  # of the program and its libraries


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that training needs, and bytes that are free now; None where that is not known."""

    weights: int  # of the base model, as its files store it
    adapter: int  # with gradients and the optimizer's state
    activations: int  # of the longest sample
    free: int | None

    @property
    def together(self) -> int:
        return self.weights + self.adapter + self.activations + int(_RESERVE)


def memory_need(folder: Path, settings: Settings, longest: int) -> MemoryNeed | None:
    """What training needs; None where the folder's files do not say.

    Args:
        longest: tokens of the longest sample.
    """
    shapes, weights = dict[str, tuple[int, ...]](), 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            header = safetensors_header(file)
        except (OSError, ValueError):
            return None  # whoever loads the model says what is wrong with it
        weights += file.stat().st_size
        shapes |= {name: entry.shape for name, entry in header.items()}
    if not shapes:
        return None
    rank, adapter = settings.lora_rank, 0
    for name, shape in shapes.items():
        if len(shape) == 2 and ("proj" in name or name.startswith("lm_head")):
            adapter += rank * (shape[0] + shape[1])
    config = _config(folder)
    hidden, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    vocabulary = int(config.get("vocab_size", 0))
    tokens = min(longest, settings.max_sequence_length)
    # The output layer is computed in blocks, but its gradient needs some of it at a time.
    activations = 4 * tokens * (hidden * layers * _SAVED_LAYER + min(vocabulary, 16384))
    return MemoryNeed(weights, adapter * _OPTIMIZER, activations, memory_left())


def memory_lines(need: MemoryNeed) -> list[str]:
    """What is said of the memory, with a warning where it is more than is free."""
    line = (
        f"Memory   about {_gib(need.together)}: {_gib(need.weights)} of weights as stored, "
        f"{_gib(need.adapter)} for the adapter and its optimizer, {_gib(need.activations)} for the "
        "longest sample"
    )
    if need.free is None:
        return [line]
    lines = [f"{line}; {_gib(need.free)} are free"]
    if need.together > need.free:
        lines.append(
            "Warning: training may not fit into this machine's memory. A smaller model, "
            "LORA_RANK or MAX_SEQUENCE_LENGTH needs less."
        )
    return lines


def memory_left() -> int | None:
    """Bytes that programs can still get, the least of the machine and its control group."""
    sizes: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                sizes.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit.isdecimal():
            used = int((group / "memory.current").read_text(encoding="ascii"))
            sizes.append(max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass  # no control group limits this program
    return min(sizes) if sizes else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = cast("dict[str, Any]", json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError):
        return {}
    return text_config(config)


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= 0.05 * _GIB else f"{size / 2**20:,.0f} MiB"
