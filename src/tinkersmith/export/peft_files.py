"""Layers of a LoRA -> PEFT's two files, so that peft and vLLM load every trained number.

The names of tensors are those of the base model's files: vLLM wants them, and peft translates them
with the rules that transformers has for the base model. Where peft does not, there are two
adapters: one for peft, and a folder `vllm` in it. Three things are not one pair of matrices
for one linear layer:

- Several trained matrices that lie in one weight (queries, keys and values of a gated delta net)
  become one pair: the ranks add up, and B has a block for each.
- Experts that are stored one by one (Qwen3-MoE, DeepSeek, Kimi) are written one by one. peft joins
  them when it loads, for which the configuration must name the joined parameters.
- Experts that are stored as a stack (gpt-oss, Qwen3.5-MoE), and those without a gate (Nemotron),
  are written as peft stores LoRA on a parameter.

Axes: R rank, E experts, I and O input and output size of a layer.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tinkersmith.errors import UserError
from tinkersmith.export.adapter import LoraLayer
from tinkersmith.export.base_folder import BaseFolder
from tinkersmith.export.placement import DOWN, GATE, UP, text_path
from tinkersmith.files import write_json
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
VLLM_FOLDER = "vllm"  # in an exported adapter, where vLLM wants other names than peft
# How transformers calls the language model of a family, by the prefix in the files.
_MODULE_PREFIXES = {"language_model.model.": "model.language_model.", "backbone.": "model."}
_MAMBA_OUTPUT = "mixer.out_proj"


@dataclass(slots=True)
class _Files:
    """What the two files will say, for peft or for vLLM."""

    base: BaseFolder
    for_vllm: bool
    tensors: "dict[str, Tensor]" = field(default_factory=dict[str, "Tensor"])
    # Paths -> rank and scaling.
    modules: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    parameters: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])

    def add(self, path: str, a: "Tensor", b: "Tensor") -> None:
        if not self.for_vllm and _renamed_for_peft(self.base):
            path = _module(path, self.base)
        # cloned, because the tensors of several experts may share memory
        self.tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = a.clone().contiguous()
        self.tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = b.clone().contiguous()


def write_peft_adapter(
    layers: Iterable[LoraLayer], base: BaseFolder, base_name_or_path: str, out: Path
) -> None:
    """Write adapter_model.safetensors and a complete adapter_config.json, for plain PEFT.

    Raises:
        UserError: the matrices of a layer have different strengths, which one pair cannot have.
        OSError: a file cannot be written.
    """
    layers = list(layers)
    only_vllm = bool(refused_by_peft(layers, base))
    _write_files(_Files(base, for_vllm=only_vllm), layers, base_name_or_path, out)
    if not only_vllm and _renamed_for_peft(base):
        (out / VLLM_FOLDER).mkdir()
        _write_files(_Files(base, for_vllm=True), layers, base_name_or_path, out / VLLM_FOLDER)


def refused_by_peft(layers: Iterable[LoraLayer], base: BaseFolder) -> str:
    """Why peft loads no adapter with these layers; "" if it does."""
    if base.text_config.get("model_type") == "nemotron_h" and any(
        layer.place.module.endswith(_MAMBA_OUTPUT) for layer in layers
    ):
        return "peft loads no LoRA on out_proj of a Mamba layer"
    return ""


def _write_files(
    files: _Files, layers: Iterable[LoraLayer], base_name_or_path: str, out: Path
) -> None:
    base = files.base
    by_weight: dict[str, list[LoraLayer]] = {}
    by_experts: dict[str, list[LoraLayer]] = {}
    for layer in layers:
        expert = layer.place.expert
        if expert is None:
            by_weight.setdefault(layer.place.weight, []).append(layer)
        else:
            by_experts.setdefault(expert.layer, []).append(layer)
    shared = {GATE, UP, DOWN} if by_experts else set[str]()
    for group in by_weight.values():
        _add_linear(files, group, base, shared)
    for path, group in by_experts.items():
        if _written_one_by_one(path, base, for_vllm=files.for_vllm):
            _add_single_experts(files, path, group, base)
        else:
            _add_stacked_experts(files, path, group, base)
    write_tensors(out / ADAPTER_WEIGHTS, files.tensors)
    write_json(out / ADAPTER_CONFIG, _config(files, base, base_name_or_path))


def _renamed_for_peft(base: BaseFolder) -> bool:
    """Whether peft does not translate the names in the files of this family."""
    model_type = str(base.text_config.get("model_type"))
    images = model_type.startswith("qwen3_5") and base.text_prefix == "model.language_model."
    return images or model_type == "nemotron_h"


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


def _config(files: _Files, base: BaseFolder, base_name_or_path: str) -> dict[str, object]:
    all_targets = {**files.modules, **files.parameters}
    ranks = {path: rank for path, (rank, _) in all_targets.items()}
    alphas = {path: rank * scaling for path, (rank, scaling) in all_targets.items()}
    rank = _most_common(ranks.values())
    scaling = _most_common(scaling for _, scaling in all_targets.values())
    alpha = scaling * rank
    modules = {_module(path, base): path for path in base.layers()}
    config = adapter_config(
        base_name_or_path,
        rank,
        alpha,
        _shortened(target_modules(files.modules, modules), base),
        rank_pattern={path: value for path, value in ranks.items() if value != rank},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    )
    if files.parameters:
        config["target_parameters"] = sorted(_shortened(files.parameters, base))
    for name in ("rank_pattern", "alpha_pattern"):
        config[name] = dict(zip(_shortened(config[name], base), config[name].values(), strict=True))
    return config


def _shortened(paths: Iterable[str], base: BaseFolder) -> list[str]:
    """The paths from "layers." on, which is right whichever class loads the model.

    A path stays whole where the part that reads images has layers of such a name, too.
    """
    others = {
        name[name.index("layers.") :].removesuffix(".weight")
        for name in base.weights
        if "layers." in name and not name.startswith(f"{base.text_prefix}layers.")
    }
    if base.text_prefix == "model.":  # nothing but a language model
        return list(paths)
    return [
        text if (text := text_path(path)) != path and text not in others else path for path in paths
    ]


def _module(path: str, base: BaseFolder) -> str:
    """How transformers calls the module at `path` of the files."""
    if path == base.output_layer:
        return "lm_head"
    if base.text_prefix and path.startswith(base.text_prefix):
        prefix = _MODULE_PREFIXES.get(base.text_prefix, base.text_prefix)
        if str(base.text_config.get("model_type")).startswith("qwen3_5"):
            prefix = "model."  # AutoModelForCausalLM loads the language model alone
        path = prefix + path.removeprefix(base.text_prefix)
    return path.replace(".block_sparse_moe.", ".mlp.") if base.mixtral_names else path


def _strength(group: list[LoraLayer], path: str) -> float:
    strengths = {layer.scaling for layer in group}
    if len(strengths) > 1:
        raise UserError(
            f"The LoRA's matrices in {path} have different strengths ({sorted(strengths)}), which "
            "an adapter file cannot say. Export a merged model with --merged."
        )
    return strengths.pop()


def _add_linear(files: _Files, group: list[LoraLayer], base: BaseFolder, shared: set[str]) -> None:
    path = base.output_layer if _is_output(group[0], base) else group[0].place.module
    a, b = _joined(group)
    size = int(a.shape[0]), _strength(group, path)
    files.add("lm_head" if path == base.output_layer else path, a, b)
    module = _module(path, base)
    if path.rpartition(".")[2] in shared:
        # peft takes a module of this name for one of the experts; a parameter it leaves alone.
        files.parameters[f"{module}.weight"] = size
    else:
        files.modules[module] = size


def _is_output(layer: LoraLayer, base: BaseFolder) -> bool:
    return layer.path.rpartition(".")[2] in ("unembed_tokens", "lm_head")


def _joined(group: list[LoraLayer]) -> "tuple[Tensor, Tensor]":
    """One pair for all matrices that lie in one weight, those of the whole weight included."""
    import torch

    if len(group) == 1 and not group[0].place.index:
        return group[0].a, group[0].b
    group = sorted(group, key=lambda layer: layer.place.first_row)
    rank = sum(layer.a.shape[0] for layer in group)
    rows = max(layer.place.rows or int(layer.b.shape[0]) for layer in group)
    b = torch.zeros(rows, rank, dtype=group[0].b.dtype)
    start = 0
    for layer in group:
        end = start + layer.a.shape[0]
        first = layer.place.first_row
        b[first : first + layer.b.shape[0], start:end] = layer.b
        start = end
    return torch.cat([layer.a for layer in group]), b


# ---- experts


def _written_one_by_one(path: str, base: BaseFolder, *, for_vllm: bool) -> bool:
    """Whether peft, or vLLM, takes the experts at `path` one by one."""
    model_type = str(base.text_config.get("model_type"))
    if model_type.startswith("qwen3_5_moe"):  # vLLM wants a stack, whatever the files have
        return False
    first = (GATE, "w1", UP) if for_vllm else (GATE, "w1")
    return any(f"{path}.0.{name}.weight" in base.weights for name in first)


def _matrices(group: list[LoraLayer]) -> "dict[tuple[int, str], LoraLayer]":
    matrices: dict[tuple[int, str], LoraLayer] = {}
    for layer in group:
        expert = layer.place.expert
        if expert is not None:
            matrices[expert.number, expert.matrix] = layer
    return matrices


def _pair(
    matrices: "Mapping[tuple[int, str], LoraLayer]",
    number: int,
    matrix: str,
    sizes: Mapping[str, tuple[int, int]],
    rank: int,
) -> "tuple[Tensor, Tensor]":
    """The two matrices of an expert; zeros if they were not trained."""
    import torch

    layer = matrices.get((number, matrix))
    if layer is not None:
        return layer.a, layer.b
    outputs, inputs = sizes[matrix]
    dtype = next(iter(matrices.values())).a.dtype
    return torch.zeros(rank, inputs, dtype=dtype), torch.zeros(outputs, rank, dtype=dtype)


def _expert_sizes(
    path: str, matrices: "Mapping[tuple[int, str], LoraLayer]", names: Iterable[str]
) -> "tuple[int, int, dict[str, tuple[int, int]]]":
    """Number of experts, their rank, and (O, I) of each matrix.

    Raises:
        UserError: the ranks differ, so that the experts cannot be stacked.
    """
    ranks = {int(layer.a.shape[0]) for layer in matrices.values()}
    if len(ranks) > 1:
        raise UserError(
            f"The LoRA's matrices in {path} have different ranks ({sorted(ranks)}), which an "
            "adapter file cannot say. Export a merged model with --merged."
        )
    sizes = {
        matrix: (int(layer.b.shape[0]), int(layer.a.shape[1]))
        for (_, matrix), layer in matrices.items()
    }
    # Gate and up read what down writes, and the other way round.
    for name in names:
        for other in (GATE, UP, DOWN):
            if name not in sizes and other in sizes:
                swapped = (name == DOWN) != (other == DOWN)
                outputs, inputs = sizes[other]
                sizes[name] = (inputs, outputs) if swapped else (outputs, inputs)
    return max(number for number, _ in matrices) + 1, ranks.pop(), sizes


def _add_single_experts(files: _Files, path: str, group: list[LoraLayer], base: BaseFolder) -> None:
    matrices = _matrices(group)
    names = {GATE: GATE, UP: UP, DOWN: DOWN}
    if f"{path}.0.{UP}.weight" in base.weights and f"{path}.0.{GATE}.weight" not in base.weights:
        names = {UP: UP, DOWN: DOWN}
    if f"{path}.0.w1.weight" in base.weights:  # Mixtral
        names = {GATE: "w1", UP: "w3", DOWN: "w2"}
    count, rank, sizes = _expert_sizes(path, matrices, names)
    for number in range(count):
        for matrix, name in names.items():
            files.add(f"{path}.{number}.{name}", *_pair(matrices, number, matrix, sizes, rank))
    scaling, module = _strength(group, path), _module(path, base)
    files.parameters[f"{module}.gate_up_proj"] = 2 * rank, scaling
    files.parameters[f"{module}.down_proj"] = rank, scaling


def _add_stacked_experts(
    files: _Files, path: str, group: list[LoraLayer], base: BaseFolder
) -> None:
    import torch

    matrices = _matrices(group)
    gated = any(
        name in base.weights for name in (f"{path}.gate_up_proj", f"{path}.0.{GATE}.weight")
    )
    first = (GATE, UP) if gated else (UP,)
    count, rank, sizes = _expert_sizes(path, matrices, (*first, DOWN))
    inputs: list[tuple[Tensor, Tensor]] = []
    outputs: list[tuple[Tensor, Tensor]] = []
    for number in range(count):
        pairs = [_pair(matrices, number, matrix, sizes, rank) for matrix in first]
        a = torch.cat([pair[0] for pair in pairs])
        b = cast("Tensor", cast(Any, torch).block_diag(*(pair[1] for pair in pairs)))
        if gated and base.transposed_experts:  # gpt-oss: gate and up take turns
            in_turn: Any = cast(Any, b).unflatten(0, (2, -1))
            b = cast("Tensor", in_turn.transpose(0, 1).flatten(0, 1))
        inputs.append((a, b))
        outputs.append(_pair(matrices, number, DOWN, sizes, rank))
    # peft wraps the parameters of a module one in another: the first one is called base_layer.
    files.add(f"{path}.base_layer", *_stack(inputs))
    files.add(path, *_stack(outputs))
    scaling, module = _strength(group, path), _module(path, base)
    name = "gate_up_proj" if gated else "up_proj"
    files.parameters[f"{module}.{name}"] = len(first) * rank, scaling
    files.parameters[f"{module}.down_proj"] = rank, scaling


def _stack(pairs: "list[tuple[Tensor, Tensor]]") -> "tuple[Tensor, Tensor]":
    """(E R, I) and (O, R E), as peft stores LoRA on a stack of weights."""
    import torch

    a = torch.cat([a for a, _ in pairs])
    b = torch.stack([b for _, b in pairs], dim=-1)  # (O, R, E)
    return a, b.flatten(1)


def _most_common(values: Iterable[_Number]) -> _Number:
    values = list(values)
    return max(sorted(set(values)), key=values.count)
