"""A downloaded LoRA + the base model's folder -> the files of a PEFT adapter, or of a merged model.

Works on the safetensors files alone, one at a time; no model is built. Every tensor of the LoRA
ends up in the output, or the export is refused with a sentence.
Axes: R rank, E experts.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"
_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# How Tinker's cloud names the parts of an expert; the matrices of all experts are one tensor there.
_EXPERT_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MERGEABLE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The layer's weight becomes W + scaling * b @ a."""

    path: str  # of the layer in the base model, such as model.layers.0.self_attn.q_proj
    a: "Tensor"  # (R, in)
    b: "Tensor"  # (out, R)
    scaling: float


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """What the headers of a model folder's safetensors files say."""

    folder: Path
    files: dict[str, str]  # tensor -> file name
    shapes: dict[str, tuple[int, ...]]  # empty where only the index is at hand, not the weights
    dtypes: dict[str, str]  # as safetensors names them: "F32", "BF16", ...
    config: dict[str, Any]
    tied: bool  # the output layer is the input embedding

    @property
    def output_layer(self) -> str:
        """The path of the output layer; a tied one has no tensor of its own."""
        found = [name for name in self.files if re.fullmatch(r"(.+\.)?lm_head\.weight", name)]
        return found[0].removesuffix(".weight") if found else "lm_head"

    def has_layer(self, path: str) -> bool:
        return f"{path}.weight" in self.files or (self.tied and path == self.output_layer)

    def weight_of(self, path: str) -> str:
        """The tensor that the layer at `path` multiplies by."""
        own = f"{path}.weight"
        return self.embedding() if self.tied and path == self.output_layer else own

    def embedding(self) -> str:
        found = [name for name in self.files if re.search(r"(embed_tokens|wte)\.weight$", name)]
        if len(found) != 1:
            raise UserError(
                f"The input embedding of the model in {self.folder} cannot be told (found "
                f"{found or 'none'}), so its tied output layer cannot be exported."
            )
        return found[0]


def read_base(folder: Path) -> BaseFolder:
    """Read headers only.

    Raises:
        UserError: the folder holds no safetensors model.
    """
    from safetensors import SafetensorError, safe_open

    config = _read_json(folder / "config.json")
    files: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    index = folder / _INDEX
    if index.is_file():
        files = dict(_read_json(index)["weight_map"])
    elif (folder / "model.safetensors").is_file():
        files = {"": "model.safetensors"}
    else:
        raise UserError(
            f"{folder} holds no model in safetensors format (no model.safetensors, no {_INDEX}). "
            "Name the folder of the base model."
        )
    names = sorted(set(files.values()))
    present = [name for name in names if (folder / name).is_file()]
    if len(present) == len(names):
        files = {}
        for name in names:
            try:
                with safe_open(folder / name, framework="pt") as weights:
                    for tensor in weights.keys():  # noqa: SIM118 (no mapping)
                        piece = weights.get_slice(tensor)
                        files[tensor] = name
                        shapes[tensor] = tuple(piece.get_shape())
                        dtypes[tensor] = piece.get_dtype()
            except SafetensorError as error:
                raise UserError(
                    f"{folder / name} is damaged ({error}). Copy the model again."
                ) from None
    return BaseFolder(folder, files, shapes, dtypes, config, _is_tied(config, files))


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


def write_merged(
    layers: Iterable[LoraLayer], base: BaseFolder, out: Path, dtype: str = "auto"
) -> None:
    """The base model's files with the LoRA added in fp32, in the base's precision or `dtype`.

    A LoRA on a tied output layer unties it: added to the shared matrix it would change the inputs.
    """
    import torch
    from safetensors import safe_open

    if not base.shapes:
        raise UserError(f"The weights of the base model are not in {base.folder}.")
    _check_mergeable(base)
    cast = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    layers = list(layers)
    untied = next(
        (layer for layer in layers if base.tied and layer.path == base.output_layer), None
    )
    pending = {base.weight_of(layer.path): layer for layer in layers if layer is not untied}
    written: dict[str, str] = {}
    size = 0
    for name in sorted(set(base.files.values())):
        tensors: dict[str, Tensor] = {}
        with safe_open(base.folder / name, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (no mapping)
                weight = weights.get_tensor(key)
                kept = cast if cast is not None and weight.is_floating_point() else weight.dtype
                if untied is not None and key == base.embedding():
                    tensors[f"{untied.path}.weight"] = _added(weight, untied).to(kept)
                if untied is not None and key == f"{untied.path}.weight":
                    continue  # an unused copy of the embedding
                layer = pending.pop(key, None)
                tensors[key] = (weight if layer is None else _added(weight, layer)).to(kept)
        write_tensors(out / name, tensors)
        written |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if pending:
        raise UserError(f"{next(iter(pending))} was not found in {base.folder}; nothing is merged.")
    if (base.folder / _INDEX).is_file():
        write_json(out / _INDEX, {"metadata": {"total_size": size}, "weight_map": written})
    _copy_other_files(base.folder, out)
    config = _with_changes(base.config, untie=untied is not None, dtype=dtype)
    write_json(out / "config.json", config)


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


def copy_tokenizer(folder: Path, out: Path) -> None:
    """The tokenizer's files of a model folder."""
    for pattern in (
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
        *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    ):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


# ---- reading the LoRA


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


# ---- writing


def _added(weight: "Tensor", layer: LoraLayer) -> "Tensor":
    """W + scaling * b @ a, in fp32 at least."""
    import torch

    product = layer.b.float() @ layer.a.float()  # (out, in)
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + layer.scaling * product


def _check_mergeable(base: BaseFolder) -> None:
    if base.config.get("quantization_config"):
        raise UserError(
            f"The base model in {base.folder} is quantised; a LoRA cannot be merged into it "
            "without loss. Export the adapter, or name the unquantised model's folder."
        )
    odd = next((name for name, kind in base.dtypes.items() if kind not in _MERGEABLE), None)
    if odd is not None and odd.endswith(".weight"):
        raise UserError(
            f"{odd} in {base.folder} has the type {base.dtypes[odd]}; a LoRA can be merged only "
            "into 16-, 32- and 64-bit floating point weights. Export the adapter."
        )


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


def _copy_other_files(folder: Path, out: Path) -> None:
    """What a model needs besides weights; not the base model's own card."""
    copy_tokenizer(folder, out)
    for pattern in (
        "generation_config.json",
        "*processor_config.json",
        "*.py",
        "LICENSE*",
        "NOTICE*",
    ):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _with_changes(config: dict[str, Any], *, untie: bool, dtype: str) -> dict[str, Any]:
    config = dict(config)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = _with_changes(config["text_config"], untie=untie, dtype=dtype)
    if untie:
        config["tie_word_embeddings"] = False
    if dtype != "auto":
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    return config


def _is_tied(config: dict[str, Any], files: dict[str, str]) -> bool:
    if not any(re.fullmatch(r"(.+\.)?lm_head\.weight", name) for name in files):
        return True
    inner = config.get("text_config")
    said = config.get(
        "tie_word_embeddings", inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
    )
    return bool(said)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
