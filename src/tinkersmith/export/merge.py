"""Layers of a LoRA + the base model's folder -> the files of a merged model.

Works on the safetensors files one at a time and builds no model. Every tensor of the LoRA ends up
in the output, or the export is refused.
Axes: R rank, I and O input and output size of a layer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.adapter import LoraLayer, write_tensors
from tinkersmith.export.base_folder import BaseFolder, copy_all_but_weights
from tinkersmith.files import write_json
from tinkersmith.fingerprint import WEIGHTS_INDEX

if TYPE_CHECKING:
    from torch import Tensor

_MERGEABLE = ("F64", "F32", "F16", "BF16")


def write_merged(
    layers: Iterable[LoraLayer], base: BaseFolder, out: Path, dtype: str = "auto"
) -> None:
    """Write the base model's files with the LoRA added in fp32, in the base's precision or `dtype`.

    A LoRA on a tied output layer unties it, because the shared matrix also embeds the inputs.

    Raises:
        UserError: the base model's weights are not there, or are quantised.
        OSError: a file cannot be written.
    """
    import torch

    if not base.shapes:
        missing = f" (there is no {one_line(base.missing[0])})" if base.missing else ""
        raise UserError(
            f"The weights of the base model are not in {base.folder}{missing}. Copy the model "
            "again, or name another folder with --base-folder."
        )
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
        for key, weight in _tensors_of(base.folder / name):
            is_cast = cast is not None and weight.is_floating_point()
            target = cast if is_cast else weight.dtype
            if untied is not None and key == base.embedding():
                tensors[f"{untied.path}.weight"] = _added(weight, untied).to(target)
            if untied is not None and key == f"{untied.path}.weight":
                continue  # a stored copy of the embedding, which nothing uses
            layer = pending.pop(key, None)
            tensors[key] = (weight if layer is None else _added(weight, layer)).to(target)
        write_tensors(out / name, tensors)
        written |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if pending:
        raise UserError(f"{base.folder} has no tensor {next(iter(pending))}; nothing was merged.")
    if (base.folder / WEIGHTS_INDEX).is_file():
        write_json(out / WEIGHTS_INDEX, {"metadata": {"total_size": size}, "weight_map": written})
    copy_all_but_weights(base.folder, out)
    config = _with_changes(base.config, untie=untied is not None, dtype=dtype)
    write_json(out / "config.json", config)


def _tensors_of(file: Path) -> "Iterator[tuple[str, Tensor]]":
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(file, framework="pt")
        with opened as weights:
            for key in weights.keys():  # noqa: SIM118 (no mapping)
                yield key, weights.get_tensor(key)
    except SafetensorError as error:  # changed since its header was read
        raise UserError(f"{file} is damaged: {error}. Copy the model again.") from None


def _added(weight: "Tensor", layer: LoraLayer) -> "Tensor":
    """W + scaling * b @ a, in fp32 at least."""
    import torch

    product = layer.b.float() @ layer.a.float()  # (O, I)
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + layer.scaling * product


def _check_mergeable(base: BaseFolder) -> None:
    if base.config.get("quantization_config"):
        raise UserError(
            f"The base model in {base.folder} is quantised, so a LoRA cannot be merged into it "
            "without loss. Export the adapter, or name the folder of the unquantised model."
        )
    odd = next((name for name, kind in base.dtypes.items() if kind not in _MERGEABLE), None)
    if odd is not None and odd.endswith(".weight"):
        raise UserError(
            f"{odd} in {base.folder} has the type {base.dtypes[odd]}. A LoRA can be merged only "
            "into floating-point weights of 16, 32 or 64 bits. Export the adapter instead."
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
