"""A downloaded LoRA + the base model's folder -> the files of a PEFT adapter, or of a merged model.

Works on the safetensors files alone, one at a time; no model is built. Every tensor of the LoRA
ends up in the output, or the export is refused with a sentence.
Axes: R rank, E experts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.errors import UserError
from tinkersmith.export.adapter import LoraLayer, write_tensors
from tinkersmith.export.base_folder import _INDEX, BaseFolder, _copy_other_files
from tinkersmith.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

_MERGEABLE = ("F64", "F32", "F16", "BF16")


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


# ---- reading the LoRA


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
