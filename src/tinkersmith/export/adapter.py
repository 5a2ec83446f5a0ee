"""A downloaded LoRA -> layers of the base model -> PEFT's two files.

Axes: R rank, E experts, I and O input and output size of a layer.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.base_folder import BaseFolder, read_model_json
from tinkersmith.files import kind_of_json, write_json
from tinkersmith.fingerprint import DamagedWeights, safetensors_header
from tinkersmith.peft_format import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_PREFIX,
    adapter_config,
    target_modules,
)

if TYPE_CHECKING:
    from torch import Tensor

_Number = TypeVar("_Number", int, float)
_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Tinker's cloud names the matrices of an expert so, and stacks those of all experts in one tensor.
_EXPERT_MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """LoRA weights of one layer, whose weight W becomes W + scaling * b @ a."""

    path: str  # in the base model, such as model.layers.0.self_attn.q_proj
    a: "Tensor"  # (R, I)
    b: "Tensor"  # (O, R)
    scaling: float


def read_layers(folder: Path, base: BaseFolder) -> list[LoraLayer]:
    """Read the downloaded LoRA in `folder` as layers of `base`, with Tinker's names translated.

    Raises:
        UserError: a tensor has no layer in the base model, or the LoRA has features that PEFT files
            of this export do not have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    config = read_model_json(folder / ADAPTER_CONFIG)
    _check_kind(config)
    try:
        safetensors_header(folder / ADAPTER_WEIGHTS)  # never waits, and says more than the library
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, DamagedWeights) else str(error).rstrip(".")
        raise UserError(
            f"The downloaded {ADAPTER_WEIGHTS} is damaged ({reason}). Run the export again."
        ) from None
    layers: dict[str, LoraLayer] = {}
    for path, a, b in _single_experts(_pairs(tensors)):
        _check_numbers(path, a, b)
        name = _name_in_base(path, base)
        layer = LoraLayer(name, a, b, _scaling(config, name, a.shape[0]))
        _check_shape(layer, base)
        if name in layers:
            raise UserError(f"The LoRA has two sets of weights for {name}; it cannot be exported.")
        layers[name] = layer
    if not layers:
        raise UserError("The downloaded LoRA has no weights at all; there is nothing to export.")
    return list(layers.values())


def write_peft_adapter(
    layers: Iterable[LoraLayer], base: BaseFolder, base_name_or_path: str, out: Path
) -> None:
    """Write adapter_model.safetensors and a complete adapter_config.json, for plain PEFT."""
    layers = list(layers)
    tensors: dict[str, Tensor] = {}
    for layer in layers:  # cloned, because the tensors of several experts may share memory
        tensors[f"{PEFT_PREFIX}{layer.path}.lora_A.weight"] = layer.a.clone()
        tensors[f"{PEFT_PREFIX}{layer.path}.lora_B.weight"] = layer.b.clone()
    write_tensors(out / ADAPTER_WEIGHTS, tensors)
    ranks = {layer.path: int(layer.a.shape[0]) for layer in layers}
    alphas = {layer.path: layer.scaling * layer.a.shape[0] for layer in layers}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    config = adapter_config(
        base_name_or_path,
        rank,
        alpha,
        target_modules(ranks, base.layers()),
        rank_pattern={path: value for path, value in ranks.items() if value != rank},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    )
    write_json(out / ADAPTER_CONFIG, config)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file with the permissions that other new files of the user have.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    path.touch()
    mode = path.stat().st_mode  # safetensors makes its files private
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # may wrap an error of the operating system
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    path.chmod(mode)


def _check_kind(config: dict[str, Any]) -> None:
    for name in ("rank_pattern", "alpha_pattern"):
        _check_pattern(name, config.get(name) or {})
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if not _is_strength(value):
            raise UserError(
                f"The downloaded {ADAPTER_CONFIG} has {name} = {value!r}, so the LoRA's strength "
                "is unknown; it cannot be exported."
            )
    for name in ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication"):
        if config.get(name):
            raise UserError(
                f"The downloaded LoRA has {name} = {config[name]!r}, which cannot be exported here."
            )


def _is_strength(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value < 1e9  # NaN and infinity are not
    )


def _check_pattern(name: str, patterns: object) -> None:
    if isinstance(patterns, dict):
        wrong = ""
        for pattern, value in cast("dict[str, object]", patterns).items():
            try:
                re.compile(pattern)
            except re.error as error:
                wrong = f"the pattern {one_line(pattern)!r} ({error})"
            if not _is_strength(value):
                wrong = f"{kind_of_json(value)} for {one_line(pattern)!r}"
        if not wrong:
            return
    else:
        wrong = kind_of_json(patterns)
    raise UserError(
        f"The downloaded {ADAPTER_CONFIG} is damaged: its {name} holds {wrong}. Run the export "
        "again."
    )


def _check_numbers(path: str, *matrices: "Tensor") -> None:
    """Refuse NaN and infinity, which would make every answer of the export nonsense."""
    for matrix in matrices:
        if not matrix.is_floating_point():
            raise UserError(f"The LoRA's weights for {path} have the type {matrix.dtype}.")
        if not matrix.isfinite().all():
            raise UserError(
                f"The LoRA's weights for {path} hold NaN or infinity, so this checkpoint is "
                "damaged or its training diverged. Export an earlier one with --model-path."
            )


def _pairs(tensors: "Mapping[str, Tensor]") -> "dict[str, tuple[Tensor, Tensor]]":
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"The downloaded LoRA has a tensor {one_line(name)!r}, which is no lora_A or "
                "lora_B matrix; it cannot be exported without losing that."
            )
        sides.setdefault(match[1], {})[match[2]] = tensor
    for path, matrices in sides.items():
        if len(matrices) != 2:
            raise UserError(f"The downloaded LoRA has only lora_{''.join(matrices)} for {path}.")
    return {path: (matrices["A"], matrices["B"]) for path, matrices in sides.items()}


def _single_experts(
    pairs: "dict[str, tuple[Tensor, Tensor]]",
) -> "Iterable[tuple[str, Tensor, Tensor]]":
    """The pairs, with stacked experts, (E or 1, R, I) and (E or 1, O, R), as one pair for each."""
    for path, (a, b) in pairs.items():
        if a.numel() == 0 and b.numel() == 0:
            continue  # a matrix that this kind of expert does not have
        parent, _, matrix = path.rpartition(".")
        if a.ndim == 2 and b.ndim == 2:
            yield path, a, b
            continue
        if a.ndim != 3 or b.ndim != 3 or not parent.endswith(".experts"):
            raise UserError(
                f"The LoRA's weights for {path} have the shapes {list(a.shape)} and "
                f"{list(b.shape)}, which this export does not support."
            )
        count = max(a.shape[0], b.shape[0])
        if {a.shape[0], b.shape[0]} - {1, count}:
            raise UserError(
                f"The LoRA's weights for {path} are for {a.shape[0]} and {b.shape[0]} experts. "
                "Both numbers must be equal, or one of them 1."
            )
        a, b = a.expand(count, -1, -1), b.expand(count, -1, -1)
        for expert in range(count):
            yield f"{parent}.{expert}.{_EXPERT_MATRICES.get(matrix, matrix)}", a[expert], b[expert]


def _name_in_base(path: str, base: BaseFolder) -> str:
    """The base model's name for the layer that the LoRA calls `path`."""
    if path.rpartition(".")[2] in ("unembed_tokens", "lm_head"):
        names = [base.output_layer]
    else:
        names = [path, path.replace(".attn.", ".self_attn.")]
        names += [
            re.sub(r"^model\.(?!language_model\.)", "model.language_model.", n) for n in names
        ]
    for name in names:
        if base.has_layer(name):
            return name
    raise UserError(
        f"The LoRA trains {path}, which the base model in {base.folder} does not have; exporting "
        "the rest would lose it. Check that this is the model it was trained on."
    )


def _check_shape(layer: LoraLayer, base: BaseFolder) -> None:
    if layer.a.shape[0] != layer.b.shape[1]:
        raise UserError(
            f"The LoRA's weights for {layer.path} have different ranks: {list(layer.a.shape)} and "
            f"{list(layer.b.shape)}."
        )
    if not base.shapes:
        return
    expected = base.shapes[base.weight_of(layer.path)]
    shape = (layer.b.shape[0], layer.a.shape[1])
    if expected != shape:
        raise UserError(
            f"The LoRA's weights for {layer.path} are for a matrix of {list(shape)}, but that of "
            f"{base.folder} is {list(expected)}. Check that this is the model it was trained on."
        )


def _scaling(config: dict[str, Any], path: str, rank: int) -> float:
    """alpha / R, or alpha / sqrt(R) for rank-stabilised LoRA, with the exceptions of patterns."""
    alpha = _of_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    expected = _of_pattern(config.get("rank_pattern"), path, config["r"])
    if rank != expected:
        raise UserError(
            f"The LoRA's weights for {path} have rank {rank}, but its {ADAPTER_CONFIG} says "
            f"{expected}; its strength is unknown."
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of_pattern(patterns: dict[str, float] | None, path: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def _most_common(values: Iterable[_Number]) -> _Number:
    values = list(values)
    return max(sorted(set(values)), key=values.count)
