"""A model folder and settings -> the memory that training here needs, before it loads.

The estimate is that of our own engine on a CPU, with the recipe beside it. How far it is off is
measured by benchmarks/reliability/memory.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from tinkersmith.fingerprint import safetensors_header, text_config
from tinkersmith.forecast.layers import (
    has_kernels,
    kept_by_kernels,
    kept_by_transformers,
    passing,
    probabilities,
)
from tinkersmith.machine.memory import (
    float32_is_affordable,
    free_system_memory,
    system_memory,
)
from tinkersmith.machine.processor import says_bf16
from tinkersmith.service.initial import trains_output_layer
from tinkersmith.settings.fields import Settings

_GIB = 2**30
_OPTIMIZER = 16  # bytes of an adapter's weight: itself, its gradient and two moments, in float32
_PROGRAMS = 0.5 * _GIB  # of the engine, the recipe and their libraries
_PACK = 2048  # tokens that the engine computes at a time; a longer sample stands alone
# Bytes of the engine for each byte that the layers of transformers keep, by measurement: they free
# tensors between those, and the engine gives no memory back to the system.
_SCATTERED = 1.7
_ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # latent attention
    *("in_proj", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"),  # layers with a state
)
_MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that training needs, and bytes that are free now; None where that is not known."""

    weights: int  # of the base model, as the engine keeps it
    adapter: int  # with gradients and the optimizer's state
    activations: int  # of the tokens that are computed at a time
    attention: int  # its probabilities; 0 where the engine computes them again
    free: int | None
    twice: bool = False  # some layers are computed twice, as memory lacks for all

    @property
    def together(self) -> int:
        return self.weights + self.adapter + self.activations + self.attention + int(_PROGRAMS)


def memory_need(
    folder: Path, settings: Settings, longest: int, step_tokens: int = 0
) -> MemoryNeed | None:
    """What training needs; None where the folder's files do not say.

    Args:
        longest: tokens of the longest sample.
        step_tokens: tokens of the largest step.
    """
    shapes = dict[str, tuple[int, ...]]()
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            header = safetensors_header(file)
        except (OSError, ValueError):
            return None  # whoever loads the model says what is wrong with it
        size += file.stat().st_size
        shapes |= {name: entry.shape for name, entry in header.items()}
    parameters = sum(prod(shape) for shape in shapes.values())
    if not parameters:
        return None
    memory = system_memory() or 4 * _GIB
    wide = float32_is_affordable(parameters, memory, multiplies_bf16=says_bf16())
    weights = 4 * parameters if wide else max(size, 2 * parameters)
    narrow = not wide and says_bf16()  # else bfloat16 weights are computed with in float32
    tokens = min(max(longest, min(step_tokens, _PACK)), settings.max_sequence_length)
    config = _config(folder)
    number = 2 if narrow else 4  # bytes
    adapter = _OPTIMIZER * settings.lora_rank * _adapter_width(folder, shapes, settings)
    free = free_system_memory()
    left = (4 * _GIB if free is None else free) - weights - adapter - _PROGRAMS
    by_kernels = has_kernels(config, longest)
    attention = 0
    if by_kernels:
        layers: Sequence[float] = kept_by_kernels(config, settings)
        share = left / 2
        attention = 0 if narrow else 4 * probabilities(config, tokens, min(longest, tokens))
    else:
        layers = [_SCATTERED * kept for kept in kept_by_transformers(config, settings)]
        share = _SCATTERED * left / 3
    wanted = int(tokens * number * sum(layers))
    # What does not fit into its share is computed twice, one layer at a time.
    kept = min(wanted, int(max(share, 0) + tokens * number * max(layers, default=0)))
    activations = kept + int(tokens * number * passing(config))
    if activations + attention > share:
        attention = 0
    return MemoryNeed(weights, adapter, activations, attention, free, twice=kept < wanted)


def _adapter_width(folder: Path, shapes: dict[str, tuple[int, ...]], settings: Settings) -> int:
    """The weights of an adapter of rank 1."""
    named = (_ATTENTION if settings.train_attn else ()) + (_MLP if settings.train_mlp else ())
    output_layer, _ = trains_output_layer(settings, str(folder))
    width = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in named and len(shape) >= 2:  # stacked experts have a matrix each
            width += (shape[-1] + shape[-2]) * prod(shape[:-2])
    if output_layer:
        tables = [shape for name, shape in shapes.items() if "lm_head" in name]
        tables += [shape for name, shape in shapes.items() if "embed_tokens" in name]
        width += sum(tables[0][:2]) if tables else 0
    return width


def memory_lines(need: MemoryNeed) -> list[str]:
    """What is said of the memory, with a warning where it is more than is free."""
    line = (
        f"Memory   about {_gib(need.together)}: {_gib(need.weights)} of weights, "
        f"{_gib(need.adapter)} for the adapter and its optimizer, {_gib(need.activations)} for the "
        f"tokens that are computed at a time, {_gib(_PROGRAMS)} for the programs"
    )
    if need.attention:
        line += f", {_gib(need.attention)} for attention, which is taken where it is free"
    if need.twice:
        line += "; layers that do not fit are computed twice, which takes longer"
    if need.free is None:
        return [line]
    lines = [f"{line}; {_gib(need.free)} are free"]
    if need.together > need.free:
        lines.append(
            "Warning: training may not fit into this machine's memory. A smaller model, "
            "LORA_RANK or MAX_SEQUENCE_LENGTH needs less."
        )
    return lines


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = cast("dict[str, Any]", json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError):
        return {}
    return text_config(config)


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= 0.05 * _GIB else f"{size / 2**20:,.0f} MiB"
