"""A downloaded LoRA -> layers of the base model -> a PEFT folder."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import BaseFolder, _read_json
from tinkersmith.files import write_json
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX

if TYPE_CHECKING:
    from torch import Tensor


_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# How Tinker's cloud names the parts of an expert; the matrices of all experts are one tensor there.
_EXPERT_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The layer's weight becomes W + scaling * b @ a."""

    path: str  # of the layer in the base model, such as model.layers.0.self_attn.q_proj
    a: "Tensor"  # (R, in)
    b: "Tensor"  # (out, R)
    scaling: float


def read_layers(folder: Path, base: BaseFolder) -> list[LoraLayer]:
    """The downloaded LoRA in `folder` as layers of `base`, with Tinker's names translated.

    Raises:
        UserError: a tensor has no place in the base model, or the LoRA is of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_json(folder / ADAPTER_CONFIG)
    _check_kind(config)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"The downloaded {ADAPTER_WEIGHTS} is damaged ({error}). Run the export again."
        ) from None
    layers: dict[str, LoraLayer] = {}
    for path, a, b in _expanded(_pairs(tensors)):
        place = _place(path, base)
        layer = LoraLayer(place, a, b, _scaling(config, place, a.shape[0]))
        _check_shape(layer, base)
        if place in layers:
            raise UserError(f"The LoRA has two sets of weights for {place}; it cannot be exported.")
        layers[place] = layer
    if not layers:
        raise UserError("The downloaded LoRA has no weights at all; there is nothing to export.")
    return list(layers.values())


def write_adapter(
    layers: Iterable[LoraLayer], base: BaseFolder, base_name_or_path: str, out: Path
) -> None:
    """adapter_model.safetensors and a complete adapter_config.json, as plain PEFT wants them."""
    layers = list(layers)
    tensors = {}
    for layer in layers:  # copies, as those of several experts may share memory
        tensors[f"{PEFT_PREFIX}{layer.path}.lora_A.weight"] = layer.a.clone()
        tensors[f"{PEFT_PREFIX}{layer.path}.lora_B.weight"] = layer.b.clone()
    write_tensors(out / ADAPTER_WEIGHTS, tensors)
    ranks = {layer.path: int(layer.a.shape[0]) for layer in layers}
    alphas = {layer.path: layer.scaling * layer.a.shape[0] for layer in layers}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name_or_path,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: _whole(value) for path, value in alphas.items() if value != alpha},
        "target_modules": _target_modules([layer.path for layer in layers], base),
        "modules_to_save": None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(out / ADAPTER_CONFIG, config)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Raises: OSError: the disk is full, or the folder cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # the user's; the library makes its files private
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # it wraps the system's errors
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    path.chmod(mode)


def _check_kind(config: dict[str, Any]) -> None:
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f"The downloaded {ADAPTER_CONFIG} has {name} = {value!r}, so the LoRA's strength "
                "is unknown; it cannot be exported."
            )
    for name in ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication"):
        if config.get(name):
            raise UserError(
                f"The downloaded LoRA has {name} = {config[name]!r}, which cannot be exported here."
            )


def _pairs(tensors: "Mapping[str, Tensor]") -> "dict[str, tuple[Tensor, Tensor]]":
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"The downloaded LoRA has a tensor {name!r}, which is no lora_A or lora_B matrix; "
                "it cannot be exported without losing that."
            )
        sides.setdefault(match[1], {})[match[2]] = tensor
    for path, found in sides.items():
        if len(found) != 2:
            raise UserError(f"The downloaded LoRA has only lora_{''.join(found)} for {path}.")
    return {path: (found["A"], found["B"]) for path, found in sides.items()}


def _expanded(pairs: "dict[str, tuple[Tensor, Tensor]]") -> "Iterable[tuple[str, Tensor, Tensor]]":
    """Matrices of all experts in one tensor, (E or 1, R, in) and (E or 1, out, R), one by one."""
    for path, (a, b) in pairs.items():
        if a.numel() == 0 and b.numel() == 0:
            continue  # a part that this kind of expert does not have
        parent, _, part = path.rpartition(".")
        if a.ndim == 2 and b.ndim == 2:
            yield path, a, b
            continue
        if a.ndim != 3 or b.ndim != 3 or not parent.endswith(".experts"):
            raise UserError(
                f"The LoRA's weights for {path} have the shapes {list(a.shape)} and "
                f"{list(b.shape)}, which this export does not know."
            )
        count = max(a.shape[0], b.shape[0])
        if {a.shape[0], b.shape[0]} - {1, count}:
            raise UserError(
                f"The LoRA's weights for {path} are for {a.shape[0]} and {b.shape[0]} experts; "
                "these numbers do not fit together."
            )
        a, b = a.expand(count, -1, -1), b.expand(count, -1, -1)
        for expert in range(count):
            yield f"{parent}.{expert}.{_EXPERT_PARTS.get(part, part)}", a[expert], b[expert]


def _place(path: str, base: BaseFolder) -> str:
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
            f"The LoRA's weights for {layer.path} do not fit each other: {list(layer.a.shape)} and "
            f"{list(layer.b.shape)}."
        )
    if not base.shapes:
        return
    expected, found = base.shapes[base.weight_of(layer.path)], (layer.b.shape[0], layer.a.shape[1])
    if expected != found:
        raise UserError(
            f"The LoRA's weights for {layer.path} are for a matrix of {list(found)}, but that of "
            f"{base.folder} is {list(expected)}. Check that this is the model it was trained on."
        )


def _scaling(config: dict[str, Any], path: str, rank: int) -> float:
    """alpha / R, with PEFT's exceptions for single layers."""
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


def _target_modules(paths: list[str], base: BaseFolder) -> list[str]:
    """Last names such as "q_proj" where they fit the trained layers only, else full paths."""
    layers = [name.removesuffix(".weight") for name in base.files if name.endswith(".weight")]
    layers += [base.output_layer] if base.output_layer not in layers else []
    short = {path.rpartition(".")[2] for path in paths}
    matched = {layer for layer in layers if layer.rpartition(".")[2] in short}
    return sorted(short if matched == set(paths) else paths)


def _commonest(values: Iterable[Any]) -> Any:
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
