"""A PEFT folder, of this export or of another program -> an adapter to sample from, or to train.

PEFT gives each layer its own rank and strength, and each expert its own matrices. An adapter of the
engine has one rank: smaller layers are padded, and B takes up what the strengths differ by.
Axes: R rank, I and O input and output size.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import pad

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import NotFinite, load_finite, new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter, JoinedLoraLinear
from tinkersmith.errors import reason_of
from tinkersmith.files import read_json_object
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_TEXT_PART = re.compile(r"^model\.language_model\.")  # in a model that sees images, too
_UNKNOWN = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication")


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of a layer, whose product is multiplied by `strength`."""

    a: torch.Tensor  # (R, I)
    b: torch.Tensor  # (O, R)
    strength: float


def read_exported_adapter(
    base: BaseModel, folder: Path, wanted: LoraConfig | None = None
) -> Adapter:
    """The adapter in a PEFT folder.

    Args:
        wanted: what the adapter must be for its training to go on. It may have a higher rank and
            more layers than the folder: those begin as in a new adapter, without any effect.

    Raises:
        Refused: the folder is damaged, does not fit the base model, or is not in `wanted`.
    """
    config = _read_config(folder)
    layers = _in_parts(
        base,
        {
            _TEXT_PART.sub("model.", path): _Layer(
                a, b, _strength(config, path, a.shape[0], folder)
            )
            for path, (a, b) in _pairs(folder).items()
        },
    )
    rank = max(layer.a.shape[0] for layer in layers.values())
    paths = {_engine_path(base, path) for path in layers}
    for path in sorted(paths - base.shapes.keys()):
        raise Refused(f"{folder} has weights for {path}, which {base.name} does not have here.")
    attention, mlp, unembed = (
        bool(paths & set(base.parts[part])) for part in ("attention", "mlp", "unembed")
    )
    own = LoraConfig(rank, 0, attention, mlp, unembed)
    if wanted is not None:
        _refuse_smaller(wanted, own, folder)
    adapter = new_adapter(base, wanted or own)
    with torch.no_grad():
        experts: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
        for path, layer in layers.items():
            missing = adapter.config.rank - layer.a.shape[0]
            a = pad(layer.a, (0, 0, 0, missing))
            b = pad(layer.b * (layer.strength / adapter.scaling), (0, missing))
            match = _EXPERT.fullmatch(path)
            if match is not None:
                experts.setdefault(_engine_path(base, path), {})[int(match[2])] = (a, b)
            else:
                _copy(adapter, path, a, b, folder)
        for path, by_number in experts.items():
            _copy(adapter, path, *_stacked(adapter, path, by_number, folder), folder)
    return adapter


def _refuse_smaller(wanted: LoraConfig, own: LoraConfig, folder: Path) -> None:
    """Refuse a training client that cannot take all that the folder holds."""
    if wanted.rank < own.rank:
        raise Refused(
            f"the adapter in {folder} has rank {own.rank}, and this training client has "
            f"{wanted.rank}; create it with rank={own.rank} or more."
        )
    for flag in ("train_attn", "train_mlp", "train_unembed"):
        if getattr(own, flag) and not getattr(wanted, flag):
            raise Refused(
                f"the adapter in {folder} has weights that this training client does not train; "
                f"create it with {flag}=True."
            )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    try:
        config = read_json_object(file)
    except OSError as error:
        raise Refused(f"{file} cannot be read: {reason_of(error)}.") from None
    except ValueError as error:
        raise Refused(f"{file} is damaged: {error}. Export the adapter again.") from None
    for name in _UNKNOWN:
        if config.get(name):
            raise Refused(f"{file} has {name} = {config[name]!r}, which this engine cannot apply.")
    for name in ("r", "lora_alpha"):
        value: object = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise Refused(f"{file} has {name} = {value!r}; it must be a number above 0.")
    return config


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each layer, by PEFT's path."""
    file = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_finite(file)
    except OSError as error:
        raise Refused(f"{file} cannot be read: {reason_of(error)}.") from None
    except (NotFinite, SafetensorError, ValueError, RuntimeError) as error:
        raise Refused(f"{file} is damaged: {error}. Export the adapter again.") from None
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise Refused(f"{file} has the tensor {name[:200]!r}, which is no matrix of a LoRA.")
        sides.setdefault(match[1], {})[match[2]] = tensor.float()
    for path, matrices in sides.items():
        if len(matrices) != 2 or matrices["A"].shape[0] != matrices["B"].shape[1]:
            raise Refused(f"{file}: the matrices A and B of {path} do not fit together.")
    if not sides:
        raise Refused(f"{file} holds no weights.")
    return {path: (matrices["A"], matrices["B"]) for path, matrices in sides.items()}


def _engine_path(base: BaseModel, path: str) -> str:
    match = _EXPERT.fullmatch(path)
    if match is None:
        return path
    part = f"{match[1]}.{_PARTS.get(match[3], match[3])}"
    without_gate = match[3] == "up_proj" and part not in base.shapes
    return f"{match[1]}.w1" if without_gate else part


def _strength(config: dict[str, Any], path: str, rank: int, folder: Path) -> float:
    """What the product of a layer's matrices is multiplied by."""
    if rank != _of_pattern(config.get("rank_pattern"), path, config["r"]):
        raise Refused(f"{folder / ADAPTER_CONFIG} says another rank than {rank} for {path}.")
    alpha = _of_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _in_parts(base: BaseModel, layers: dict[str, _Layer]) -> dict[str, _Layer]:
    """The layers, with each joined projection divided into its parts."""
    divided = dict(layers)
    for layer in base.model.modules():
        if not isinstance(layer, JoinedLoraLinear) or layer.path not in divided:
            continue
        joined = divided.pop(layer.path)
        b = joined.b
        if b.shape[0] != layer.base.out_features or b[len(b) - layer.left_over :].any():
            raise Refused(
                f"the adapter has weights for rows of {layer.path} that no LoRA can train in "
                f"{base.name} here."
            )
        sizes = [rows for _, rows in layer.parts]
        for (part, _), rows in zip(layer.parts, b[: sum(sizes)].split(sizes), strict=True):
            used = rows.any(0)  # an exported one has ranks of its own for each part
            used[0] = True
            divided[part] = _Layer(joined.a[used], rows[:, used], joined.strength)
    return divided


def _of_pattern(patterns: object, path: str, default: float) -> float:
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def _stacked(
    adapter: Adapter,
    path: str,
    by_number: dict[int, tuple[torch.Tensor, torch.Tensor]],
    folder: Path,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of all experts in one tensor; one that they share must be equal in all."""
    stacks: list[torch.Tensor] = []
    count = max(adapter.weights[f"{path}.lora_{side}"].shape[0] for side in "AB")
    if sorted(by_number) != list(range(count)):
        raise Refused(f"{folder} has weights for {len(by_number)} of {count} experts of {path}.")
    for index, side in enumerate("AB"):
        tensors = [by_number[number][index] for number in range(count)]
        if adapter.weights[f"{path}.lora_{side}"].shape[0] == 1:
            if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
                raise Refused(
                    f"the experts of {path} in {folder} do not share lora_{side}, as those of this "
                    "engine do."
                )
            tensors = tensors[:1]
        stacks.append(torch.stack(tensors))
    return stacks[0], stacks[1]


def _copy(adapter: Adapter, path: str, a: torch.Tensor, b: torch.Tensor, folder: Path) -> None:
    """Write the matrices into the adapter.

    A rank of which A and B are both zero keeps its A from the new adapter: from two zeros, training
    would never come away.
    """
    weights = {side: adapter.weights[f"{path}.lora_{side}"] for side in "AB"}
    for side, tensor in (("A", a), ("B", b)):
        if weights[side].shape != tensor.shape:
            raise Refused(
                f"lora_{side} of {path} in {folder} is {list(tensor.shape)}; this base model needs "
                f"{list(weights[side].shape)}."
            )
    used = (a.any(-1) | b.any(-2)).reshape(-1, a.shape[-2]).any(0)  # (R,)
    used = used.to(weights["A"].device)
    weights["A"].copy_(torch.where(used[:, None], a.to(weights["A"]), weights["A"]))
    weights["B"].copy_(b)
