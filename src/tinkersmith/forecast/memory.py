"""A model folder and settings -> the memory that training here needs, before it loads.

The estimate is that of our own engine on a CPU, with the recipe beside it. How far it is off is
measured by benchmarks/reliability/memory.py.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from tinkersmith.fingerprint import safetensors_header, text_config
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
_TILE = 128  # tokens whose attention is one product
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "in_proj", "out_proj")
_KERNELS = ("llama", "mistral", "qwen2", "qwen3")  # families that have kernels
_MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that training needs, and bytes that are free now; None where that is not known."""

    weights: int  # of the base model, as the engine keeps it
    adapter: int  # with gradients and the optimizer's state
    activations: int  # of the tokens that are computed at a time
    attention: int  # its probabilities; 0 where the engine computes them again
    free: int | None

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
    by_kernels = _has_kernels(config, longest)
    kept: float = _kept(config, settings)
    if not by_kernels:
        kept = _SCATTERED * _kept_by_own_layers(config, settings)
    activations = int(tokens * (kept + _passing(config)) * (2 if narrow else 4))
    adapter = _OPTIMIZER * settings.lora_rank * _adapter_width(folder, shapes, settings)
    free = free_system_memory()
    attention = 0
    if by_kernels and not narrow:
        attention = 4 * _probabilities(config, tokens, min(longest, tokens))
    # The engine keeps them where all that it keeps fits into half of what is free then.
    left = (4 * _GIB if free is None else free) - weights - adapter - _PROGRAMS
    if activations + attention > left / 2:
        attention = 0
    return MemoryNeed(weights, adapter, activations, attention, free)


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


def _has_kernels(config: dict[str, Any], longest: int) -> bool:
    """Whether the engine computes the layers by its own kernels, up to a sample of `longest`.

    Else they are those of transformers, whose attention keeps no probabilities.
    """
    return config.get("model_type") in _KERNELS and longest <= (_window(config) or longest)


def _window(config: dict[str, Any]) -> int:
    """Tokens that a token sees in the layers with a sliding window; 0 if no layer has one."""
    size = _number(config, "sliding_window")
    kinds: object = config.get("layer_types")
    if isinstance(kinds, list):
        return size if "sliding_attention" in kinds else 0
    if config.get("model_type") == "mistral":
        return size
    first = _number(config, "max_window_layers")  # Qwen: the layers from this one on
    return (
        size
        if config.get("use_sliding_window") and first < _number(config, "num_hidden_layers")
        else 0
    )


def _kept_by_own_layers(config: dict[str, Any], settings: Settings) -> int:
    """Numbers that a token leaves in all layers, where these are those of transformers."""
    hidden, heads, key_heads, head, inner = _sizes(config)
    experts = _number(config, "num_experts_per_tok")
    attention = 4 * hidden + (3 * heads + 2 * key_heads) * head  # two norms and their inputs
    others = 2 * hidden  # two more norms, of many families
    products = (7 if config.get("model_type") == "gpt_oss" else 4) * inner
    # Each expert has its input and its output.
    mlp = products + 2 * experts * hidden
    return _number(config, "num_hidden_layers") * (
        attention + others + mlp + 7 * settings.lora_rank
    )


def _kept(config: dict[str, Any], settings: Settings) -> int:
    """Numbers that a token leaves in all layers for the backward pass of the engine's kernels."""
    hidden, heads, key_heads, head, inner = _sizes(config)
    projected = 2 * (heads + 2 * key_heads) * head + heads * head  # before and after the rotation
    layer = projected + 2 * hidden + 2 * inner + 4 * settings.lora_rank
    return _number(config, "num_hidden_layers") * layer


def _passing(config: dict[str, Any]) -> int:
    """Numbers of a token that one layer's pass needs beside what is kept."""
    hidden, heads, key_heads, head, inner = _sizes(config)
    return 4 * hidden + 3 * inner + 2 * (heads + 2 * key_heads) * head


def _probabilities(config: dict[str, Any], tokens: int, longest: int) -> int:
    """The attention probabilities of all layers, where tokens see those before them in a sample."""
    _, heads, *_ = _sizes(config)
    return _number(config, "num_hidden_layers") * heads * tokens * (longest + 3 * _TILE) // 2


def _sizes(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """Width of the hidden states, heads, KV heads, head size, and width of a token's MLP."""
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    key_heads = _number(config, "num_key_value_heads") or heads
    head = _number(config, "head_dim") or hidden // max(heads, 1)
    inner = _number(config, "moe_intermediate_size") or _number(config, "intermediate_size")
    return hidden, heads, key_heads, head, inner * max(_number(config, "num_experts_per_tok"), 1)


def _number(config: dict[str, Any], name: str) -> int:
    value: object = config.get(name)
    return value if isinstance(value, int) else 0


def memory_lines(need: MemoryNeed) -> list[str]:
    """What is said of the memory, with a warning where it is more than is free."""
    line = (
        f"Memory   about {_gib(need.together)}: {_gib(need.weights)} of weights, "
        f"{_gib(need.adapter)} for the adapter and its optimizer, {_gib(need.activations)} for the "
        f"tokens that are computed at a time, {_gib(_PROGRAMS)} for the programs"
    )
    if need.attention:
        line += f", {_gib(need.attention)} for attention, which is taken where it is free"
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
