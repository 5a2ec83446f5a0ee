"""A downloaded LoRA -> layers of the base model, each with its place there. Writes nothing.

Axes: R rank, E experts, I and O input and output size of a layer.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.base_folder import BaseFolder, read_model_json
from tinkersmith.export.placement import WeightRegion, expert_count, find_place, region_shape
from tinkersmith.files import kind_of_json
from tinkersmith.fingerprint import DamagedWeights, safetensors_header
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """LoRA weights of one layer, whose weight W becomes W + scaling * b @ a."""

    path: str  # as the LoRA calls it, such as model.layers.0.self_attn.q_proj
    a: "Tensor"  # (R, I)
    b: "Tensor"  # (O, R)
    scaling: float
    place: WeightRegion  # in the base model's files


def read_layers(folder: Path, base: BaseFolder) -> list[LoraLayer]:
    """Read the downloaded LoRA in `folder` as layers of `base`, with Tinker's names translated.

    Raises:
        UserError: a tensor has no layer in the base model, or the LoRA has features that PEFT files
            of this export do not have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    config = read_model_json(folder / ADAPTER_CONFIG, "Run the export again.")
    _check_kind(config)
    try:
        safetensors_header(folder / ADAPTER_WEIGHTS)  # never waits, and says more than the library
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, DamagedWeights) else str(error).rstrip(".")
        raise UserError(
            f"The downloaded {ADAPTER_WEIGHTS} is damaged ({reason}). Run the export again."
        ) from None
    layers: dict[tuple[str, str], LoraLayer] = {}
    for path, a, b in _single_experts(_pairs(tensors), base):
        _check_numbers(path, a, b)
        place = find_place(path, base, b.shape[0])
        scaling = _scaling(config, (path, place.module), a.shape[0])
        layer = LoraLayer(path, a, b, scaling, place)
        _check_shape(layer, base)
        key = place.weight, str(place.index)
        if key in layers:
            raise UserError(
                f"The LoRA has two sets of weights for {place.module}; it cannot be exported."
            )
        layers[key] = layer
    if not layers:
        raise UserError("The downloaded LoRA has no weights at all; there is nothing to export.")
    return list(layers.values())


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
    pairs: "dict[str, tuple[Tensor, Tensor]]", base: BaseFolder
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
        experts = expert_count(parent, base)
        if experts and count != experts:
            raise UserError(
                f"The LoRA's weights for {path} are for {count} experts, and {base.folder} has "
                f"{experts}. Check that this is the model it was trained on."
            )
        a, b = a.expand(count, -1, -1), b.expand(count, -1, -1)
        for expert in range(count):
            yield f"{parent}.{expert}.{matrix}", a[expert], b[expert]


def _check_shape(layer: LoraLayer, base: BaseFolder) -> None:
    if layer.a.shape[0] != layer.b.shape[1]:
        raise UserError(
            f"The LoRA's weights for {layer.path} have different ranks: {list(layer.a.shape)} and "
            f"{list(layer.b.shape)}."
        )
    if not base.weights[layer.place.weight].shape:
        return
    expected = region_shape(layer.place, base)
    shape = (layer.b.shape[0], layer.a.shape[1])
    if expected != shape:
        raise UserError(
            f"The LoRA's weights for {layer.path} are for a matrix of {list(shape)}, but that of "
            f"{base.folder} is {list(expected)}. Check that this is the model it was trained on."
        )


def _scaling(config: dict[str, Any], paths: tuple[str, ...], rank: int) -> float:
    """alpha / R, or alpha / sqrt(R) for rank-stabilised LoRA, with the exceptions of patterns."""
    alpha = _of_pattern(config.get("alpha_pattern"), paths, config["lora_alpha"])
    expected = _of_pattern(config.get("rank_pattern"), paths, config["r"])
    if rank != expected:
        raise UserError(
            f"The LoRA's weights for {paths[0]} have rank {rank}, but its {ADAPTER_CONFIG} says "
            f"{expected}; its strength is unknown."
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of_pattern(patterns: dict[str, float] | None, paths: tuple[str, ...], default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", path) for path in paths):
            return value
    return default
