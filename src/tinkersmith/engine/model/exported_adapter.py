"""A PEFT folder, of this export or of another program -> an adapter to sample from, or to train.

PEFT gives each layer its own rank and strength. An adapter of the engine has one rank: smaller
layers are padded, and B takes up what the strengths differ by. A folder has the matrices of experts
one by one, or stacked as PEFT stores LoRA on a parameter, or stacked as in Tinker's cloud; it names
layers as transformers does, or as the files of the base model do.

Axes: R rank, E experts, I and O input and output size.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import pad

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import NotFinite, load_finite, new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.experts import LoraExperts
from tinkersmith.engine.model.lora import Adapter, JoinedLoraLinear
from tinkersmith.errors import reason_of
from tinkersmith.files import read_json_object
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_WRAPPED = ".base_layer"  # PEFT's name for what is inside the LoRA on another parameter
# What precedes "layers.0." in files and modules of the families.
_PREFIX = re.compile(r"^(model\.language_model|language_model\.model|backbone|model)\.")
# Names in the files of a family, or in Tinker's cloud -> names of modules.
_OTHER_NAMES = {".attn.": ".self_attn.", ".block_sparse_moe.": ".mlp."}
_UNKNOWN = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layer_replication")


@dataclass(frozen=True, slots=True)
class _Layer:
    """The matrices of a layer, or of each expert of a layer, and the strength of their product."""

    a: torch.Tensor  # (R, I) or (E, R, I)
    b: torch.Tensor  # (O, R) or (E, O, R)
    strength: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


class _Layout:
    """The layers of a base model that can take the matrices of a folder, by module path."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.trained = {path for paths in base.parts.values() for path in paths}
        self.joined: dict[str, JoinedLoraLinear] = {}
        self.experts: dict[str, LoraExperts] = {}
        for module in base.model.modules():
            if isinstance(module, JoinedLoraLinear):
                self.joined[module.path] = module
            elif isinstance(module, LoraExperts):
                self.experts[module.path] = module

    def own_path(self, path: str) -> str:
        """What the engine calls the layer that a folder calls `path`; `path` if it is unknown."""
        if path.rpartition(".")[2] in ("lm_head", "unembed_tokens"):
            return self.base.parts["unembed"][0]
        names = [path, "model." + _PREFIX.sub("", path)]
        for theirs, ours in _OTHER_NAMES.items():
            names += [name.replace(theirs, ours) for name in names]
        return next((name for name in names if self._has(name)), path)

    def _has(self, path: str) -> bool:
        known = path in self.trained or path in self.joined or path in self.experts
        match = _EXPERT.fullmatch(path)
        return known or (match is not None and match[1] in self.experts)

    def refuse(self, path: str, folder: Path) -> Refused:
        """The reason why the weights for `path` cannot be used."""
        name = self.base.name
        if path in dict(self.base.model.named_modules()) or path in self.base.shapes:
            why_not = self.base.why_not.get("mlp", "") if path in self.base.shapes else ""
            return Refused(
                f"{folder} has weights for {path}, which no LoRA can change in {name} "
                f"here{why_not}."
            )
        return Refused(f"{folder} has weights for {path}, which {name} does not have here.")


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
    layers = _layers(_Layout(base), folder)
    rank = max(layer.rank for layer in layers.values())
    attention, mlp, unembed = (
        bool(layers.keys() & set(base.parts[part])) for part in ("attention", "mlp", "unembed")
    )
    own = LoraConfig(rank, 0, attention, mlp, unembed)
    if wanted is not None:
        _refuse_smaller(wanted, own, folder)
    adapter = new_adapter(base, wanted or own)
    with torch.no_grad():
        for path, layer in layers.items():
            missing = adapter.config.rank - layer.rank
            a = pad(layer.a, (0, 0, 0, missing))
            b = pad(layer.b * (layer.strength / adapter.scaling), (0, missing))
            if a.ndim == 2:
                _copy(adapter, path, a, b, folder)
            elif (shared := _with_shared_side(adapter, path, a, b)) is not None:
                _copy(adapter, path, *shared, folder)
            elif wanted is None:
                for side, tensor in (("A", a), ("B", b)):
                    weight = tensor.contiguous().to(base.device)
                    adapter.weights[f"{path}.lora_{side}"] = nn.Parameter(weight)
            else:
                raise Refused(
                    f"the experts of {path} in {folder} do not share a matrix, as those of this "
                    "engine do: the adapter can be sampled from, and not trained on. Merge it into "
                    "its base model, and train on that."
                )
    return adapter


def _refuse_smaller(wanted: LoraConfig, own: LoraConfig, folder: Path) -> None:
    """Refuse a training client that cannot take all that the folder holds."""
    if wanted.rank < own.rank:
        raise Refused(
            f"the adapter in {folder} has rank {own.rank}, and this training client or upload has "
            f"{wanted.rank}; create it with rank={own.rank} or more."
        )
    for flag in ("train_attn", "train_mlp", "train_unembed"):
        if getattr(own, flag) and not getattr(wanted, flag):
            raise Refused(
                f"the adapter in {folder} has weights that this training client or upload does not "
                f"train; create it with {flag}=True."
            )


# ---- the two files


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
        if not _is_strength(config.get(name)):
            raise Refused(f"{file} has {name} = {config.get(name)!r}; it must be a number above 0.")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns: object = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_is_strength, patterns.values())):
            raise Refused(f"{file} has {name} = {patterns!r}; its values must be numbers above 0.")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise Refused(f"{file}: {name} has the pattern {pattern!r} ({error}).") from None
    return config


def _is_strength(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1e9


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each layer, by the name in the file; empty ones left out."""
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
        if match is None or tensor.ndim not in (2, 3) or not tensor.is_floating_point():
            raise Refused(f"{file} has the tensor {name[:200]!r}, which is no matrix of a LoRA.")
        sides.setdefault(match[1], {})[match[2]] = tensor.float()
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, matrices in sides.items():
        if len(matrices) != 2 or matrices["A"].ndim != matrices["B"].ndim:
            raise Refused(f"{file}: the matrices A and B of {path} do not fit together.")
        if any(matrix.numel() for matrix in matrices.values()):
            pairs[path] = matrices["A"], matrices["B"]
    if not pairs:
        raise Refused(f"{file} holds no weights.")
    return pairs


# ---- from the file's layers to the engine's


def _layers(layout: _Layout, folder: Path) -> dict[str, _Layer]:
    """All matrices of the folder, as layers that the engine trains."""
    config, pairs = _read_config(folder), _pairs(folder)
    layers: dict[str, _Layer] = {}
    singles: dict[str, dict[int, _Layer]] = {}
    for path, (a, b) in pairs.items():
        own = layout.own_path(path)
        expert = _EXPERT.fullmatch(own)
        outer = layout.own_path(path.removesuffix(_WRAPPED))
        if outer in layout.experts:
            parts = _stacked_parts(layout.experts[outer], path, a, b, config, folder)
        elif expert is not None and expert[1] in layout.experts:
            experts = layout.experts[expert[1]]
            part = _part_of_expert(experts, expert[3])
            layer = _matrices(a, b, path, folder, _strength_of_expert(config, path, own, a, folder))
            by_number = singles.setdefault(f"{experts.path}.{part}", {})
            if int(expert[2]) in by_number:
                raise Refused(f"{folder} has two sets of weights for expert {path}.")
            by_number[int(expert[2])] = layer
            continue
        else:
            layer = _matrices(a, b, path, folder, _strength(config, (path, own), a, folder))
            joined = layout.joined.get(own)
            parts = {own: layer} if joined is None else _joined_parts(joined, layer, layout, folder)
        _add(layers, parts, layout, folder)
    for part, by_number in singles.items():
        _add(layers, {part: _stack(part, by_number, layout, folder)}, layout, folder)
    return layers


def _add(
    layers: dict[str, _Layer], parts: dict[str, _Layer], layout: _Layout, folder: Path
) -> None:
    for part, layer in parts.items():
        if part not in layout.trained:
            raise layout.refuse(part, folder)
        if part in layers:
            raise Refused(f"{folder} has two sets of weights for {part}.")
        shape = layout.base.shapes[part]
        sizes = layer.a.shape[-1], layer.b.shape[-2]
        if layer.a.ndim != 2 + len(shape.a_lead) or sizes != (shape.in_size, shape.out_size):
            raise Refused(
                f"{part} in {folder} has lora_A {list(layer.a.shape)} and lora_B "
                f"{list(layer.b.shape)}; this base model needs {shape.in_size} inputs and "
                f"{shape.out_size} outputs."
            )
        layers[part] = layer


def _matrices(a: torch.Tensor, b: torch.Tensor, path: str, folder: Path, strength: float) -> _Layer:
    """A pair of a linear layer, or of experts stacked as in Tinker's cloud."""
    counts = {a.shape[0], b.shape[0]} if a.ndim == 3 else {1}
    if a.shape[-2] != b.shape[-1] or len(counts - {1}) > 1:
        file = folder / ADAPTER_WEIGHTS
        raise Refused(f"{file}: the matrices A and B of {path} do not fit together.")
    if a.ndim == 3:
        a, b = a.expand(max(counts), -1, -1), b.expand(max(counts), -1, -1)
    return _Layer(a, b, strength)


def _strength(config: dict[str, Any], names: Sequence[str], a: torch.Tensor, folder: Path) -> float:
    """What the product of a layer's matrices is multiplied by."""
    rank = a.shape[-2]
    names = [*names, *(f"{name}.weight" for name in names)]  # a parameter may be the target
    if rank != _of_pattern(config.get("rank_pattern"), names, config["r"]):
        raise Refused(f"{folder / ADAPTER_CONFIG} says another rank than {rank} for {names[0]}.")
    alpha = _of_pattern(config.get("alpha_pattern"), names, config["lora_alpha"])
    return _scaling(config, alpha, rank)


def _strength_of_expert(
    config: dict[str, Any], path: str, own: str, a: torch.Tensor, folder: Path
) -> float:
    """The strength of one expert's matrices.

    The configuration may speak of the parameter that transformers joins the experts in, whose rank
    is the sum of those of gate and up.
    """
    layer, matrix = (own.rsplit(".", 2)[0], own.rpartition(".")[2])
    joined = ("down_proj",) if matrix in ("down_proj", "w2") else ("gate_up_proj", "up_proj")
    names = [f"{layer}.{name}" for name in joined]
    rank = _of_pattern(config.get("rank_pattern"), names, 0)
    if rank in (a.shape[-2], 2 * a.shape[-2]):
        alpha = _of_pattern(config.get("alpha_pattern"), names, config["lora_alpha"])
        return _scaling(config, alpha, int(rank))
    return _strength(config, (path, own), a, folder)


def _scaling(config: dict[str, Any], alpha: float, rank: int) -> float:
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of_pattern(patterns: object, names: Sequence[str], default: float) -> float:
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
            return value
    return default


# ---- joined projections


def _joined_parts(
    joined: JoinedLoraLinear, layer: _Layer, layout: _Layout, folder: Path
) -> dict[str, _Layer]:
    """A joined projection, divided into the parts that the engine trains."""
    b = layer.b
    if b.shape[0] != joined.base.out_features or b[len(b) - joined.left_over :].any():
        raise Refused(
            f"the adapter in {folder} has weights for rows of {joined.path} that no LoRA can train "
            f"in {layout.base.name} here."
        )
    sizes = [rows for _, rows in joined.parts]
    parts = b[: sum(sizes)].split(sizes)
    return dict(zip((path for path, _ in joined.parts), _divided(layer, parts), strict=True))


def _divided(layer: _Layer, parts: Sequence[torch.Tensor]) -> list[_Layer]:
    """A layer for each group of rows of B (..., O, R), with the ranks that it uses.

    Exported parts have ranks of their own, as many each, one after the other.
    """
    count = len(parts)
    blocks = torch.arange(layer.rank) * count // layer.rank  # the part that a rank belongs to
    used = [part.flatten(0, -2).any(0) for part in parts]  # (R,) each
    own = [blocks == number for number in range(count)]
    if layer.rank % count or any(
        (some & ~block).any() for some, block in zip(used, own, strict=True)
    ):
        own = used
        for ranks in own:
            ranks[0] = True  # a part of which nothing is used
    return [
        replace(layer, a=layer.a[..., ranks, :], b=part[..., ranks])
        for ranks, part in zip(own, parts, strict=True)
    ]


# ---- experts


def _part_of_expert(experts: LoraExperts, matrix: str) -> str:
    """The engine's name for an expert's matrix; w1 is the projection up where there is no gate."""
    part = _PARTS.get(matrix, matrix)
    return "w1" if matrix == "up_proj" and not experts.has_gate else part


def _stack(part: str, by_number: dict[int, _Layer], layout: _Layout, folder: Path) -> _Layer:
    count = len(layout.experts[part.rpartition(".")[0]].weight("down_proj"))
    if sorted(by_number) != list(range(count)):
        raise Refused(f"{folder} has weights for {len(by_number)} of {count} experts of {part}.")
    layers = [by_number[number] for number in range(count)]
    rank, strength = max(layer.rank for layer in layers), layers[0].strength
    a = [pad(layer.a, (0, 0, 0, rank - layer.rank)) for layer in layers]
    b = [pad(layer.b * (layer.strength / strength), (0, rank - layer.rank)) for layer in layers]
    for matrices, side in ((a, "A"), (b, "B")):
        shapes = {matrix.shape for matrix in matrices}
        if len(shapes) > 1:
            raise Refused(f"{folder}: the experts of {part} have lora_{side} of several sizes.")
    return _Layer(torch.stack(a), torch.stack(b), strength)


def _stacked_parts(
    experts: LoraExperts,
    path: str,
    a: torch.Tensor,  # (E R, I)
    b: torch.Tensor,  # (O, R E), with all experts of a rank together
    config: dict[str, Any],
    folder: Path,
) -> dict[str, _Layer]:
    """The parts of a parameter that holds all experts of a layer."""
    file, count = folder / ADAPTER_WEIGHTS, len(experts.weight("down_proj"))
    name = _parameter(experts, path, config, folder)
    outputs, inputs = experts.weight(name).shape[1:]
    ranks = a.shape[0] // count
    if a.shape != (count * ranks, inputs) or b.shape != (outputs, ranks * count) or not ranks:
        raise Refused(
            f"{file}: the matrices of {path} are {list(a.shape)} and {list(b.shape)}; {name} of "
            f"this base model needs {count} experts of [rank, {inputs}] and [{outputs}, rank]."
        )
    a = a.unflatten(0, (count, ranks))
    b = b.unflatten(1, (ranks, count)).movedim(2, 0)  # (E, O, R)
    names = [f"{experts.path}.{name}", f"{path.removesuffix(_WRAPPED)}.{name}"]
    layer = _Layer(a, b, _strength(config, names, a, folder))
    if name == "down_proj":
        return {f"{experts.path}.w2": layer}
    if not experts.has_gate:
        return {f"{experts.path}.w1": layer}
    halves = [b[:, ::2], b[:, 1::2]] if experts.alternates else list(b.chunk(2, 1))
    gate, up = _divided(layer, halves)
    return {f"{experts.path}.w1": gate, f"{experts.path}.w3": up}


def _parameter(experts: LoraExperts, path: str, config: dict[str, Any], folder: Path) -> str:
    """The parameter that a pair of matrices belongs to.

    PEFT wraps a module once for each of its parameters, the first one innermost.
    """
    targets = config.get("target_parameters")
    names = [
        name
        for name, _ in experts.base.named_parameters(recurse=False)
        if any(
            f".{experts.path}.{name}".endswith(f".{target}")
            or f".{path.removesuffix(_WRAPPED)}.{name}".endswith(f".{target}")
            for target in (targets if isinstance(targets, list) else ())
        )
    ]
    depth = 1 if path.endswith(_WRAPPED) else 0
    if len(names) > depth and len(names) <= 2 and set(names) <= {experts.inward, "down_proj"}:
        return names[len(names) - 1 - depth]
    raise Refused(
        f"{folder / ADAPTER_CONFIG} has target_parameters = {targets!r}, which do not say what "
        f"{path} belongs to: {experts.path}.{experts.inward} or down_proj."
    )


def _with_shared_side(
    adapter: Adapter, path: str, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Experts' matrices with the one that all share: A (1, R, I), or B (1, O, R).

    Returns:
        None if the experts do not share it.
    """
    matters = a.flatten(1).any(1) & b.flatten(1).any(1)  # (E,) whose product is not zero
    first = int(matters.int().argmax())
    shares_a = adapter.weights[f"{path}.lora_A"].shape[0] == 1
    shared, single = (a, b) if shares_a else (b, a)
    if not torch.equal(shared[matters], shared[first].expand_as(shared[matters])):
        return None
    if matters.any():
        single = single * matters[:, None, None]
    return (shared[first][None], single) if shares_a else (single, shared[first][None])


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
