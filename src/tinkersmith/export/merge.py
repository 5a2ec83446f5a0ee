"""Layers of a LoRA + the base model's folder -> the files of a merged model.

Works on the safetensors files one at a time and builds no model. Every tensor of the LoRA ends up
in the output, or the export is refused.
Axes: R rank, I and O input and output size of a layer.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.adapter import LoraLayer
from tinkersmith.export.base_folder import BaseFolder, copy_all_but_weights
from tinkersmith.export.peft_files import write_tensors
from tinkersmith.export.stored import check_readable, read_stored
from tinkersmith.files import write_json
from tinkersmith.fingerprint import WEIGHTS_INDEX

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Merged:
    """How the base model's weights were changed."""

    weights: int  # that the LoRA was added to
    dequantised: tuple[str, ...]  # those of them that were quantised, and are not any more
    still_quantised: int  # weights that stay as they were

    def __str__(self) -> str:
        if not self.dequantised:
            return f"added to {self.weights:,} weights"
        rest = f"; {self.still_quantised:,} stay quantised" if self.still_quantised else ""
        return (
            f"added to {self.weights:,} weights, of which {len(self.dequantised):,} were quantised "
            f"and are not any more{rest}"
        )


def write_merged(
    layers: Iterable[LoraLayer], base: BaseFolder, out: Path, dtype: str = "auto"
) -> Merged:
    """Write the base model's files with the LoRA added in fp32, in the base's precision or `dtype`.

    A LoRA on a tied output layer unties it, because the shared matrix also embeds the inputs. A
    quantised weight that the LoRA changes is written in bfloat16; others stay quantised.

    Raises:
        UserError: the base model's weights are not there, or are quantised in an unknown way.
        OSError: a file cannot be written.
    """
    import torch

    refuse_missing_weights(base)
    cast = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    layers = list(layers)
    untied = next(
        (layer for layer in layers if base.tied and layer.place.weight == base.embedding()), None
    )
    pending: dict[str, list[LoraLayer]] = {}
    for layer in layers:
        if layer is not untied:
            pending.setdefault(layer.place.weight, []).append(layer)
    for name in pending:
        check_readable(base.weights[name], base.folder, base.config)
    touched = {name: base.weights[name] for name in pending}
    replaced = {tensor: stored for stored in touched.values() for tensor in stored.tensors}
    plain = {
        tensor
        for stored in base.weights.values()
        for tensor in stored.tensors
        if not stored.quantised
    }
    written: dict[str, str] = {}
    size = 0
    with _Reader(base) as reader:
        for file in sorted(set(base.files.values())):
            tensors: dict[str, Tensor] = {}
            for key in [key for key, place in base.files.items() if place == file]:
                if untied is not None and key == f"{base.output_layer}.weight":
                    continue  # a stored copy of the embedding, which nothing uses
                stored = replaced.get(key)
                if stored is None:
                    weight = reader(key)
                    target = cast if cast and key in plain and weight.is_floating_point() else None
                    tensors[key] = weight.to(target or weight.dtype)
                    if untied is not None and key == base.embedding():
                        name = f"{base.output_layer}.weight"
                        tensors[name] = _added(weight, [untied], target or weight.dtype)
                elif key == stored.tensors[0]:
                    weight = read_stored(stored, reader, base.config)
                    kind = torch.bfloat16 if stored.quantised else weight.dtype
                    name = stored.name if stored.quantised else key
                    tensors[name] = _added(weight, pending.pop(stored.name), cast or kind)
            if tensors:
                write_tensors(out / file, tensors)
            written |= dict.fromkeys(tensors, file)
            size += sum(tensor.nbytes for tensor in tensors.values())
    if pending:
        raise UserError(f"{base.folder} has no tensor {next(iter(pending))}; nothing was merged.")
    if (base.folder / WEIGHTS_INDEX).is_file():
        write_json(out / WEIGHTS_INDEX, {"metadata": {"total_size": size}, "weight_map": written})
    copy_all_but_weights(base.folder, out)
    dequantised = tuple(name for name, stored in touched.items() if stored.quantised)
    still = [
        name for name, stored in base.weights.items() if stored.quantised and name not in touched
    ]
    config = _with_changes(base.config, untie=untied is not None, dtype=dtype)
    write_json(out / "config.json", _with_quantisation(config, dequantised, bool(still)))
    return Merged(len(touched) + (untied is not None), dequantised, len(still))


def refuse_missing_weights(base: BaseFolder) -> None:
    """Refuse a folder without the weights that a merge needs.

    Raises:
        UserError: they are not there.
    """
    if not base.shapes:
        missing = f" (there is no {one_line(base.missing[0])})" if base.missing else ""
        raise UserError(
            f"The weights of the base model are not in {base.folder}{missing}. Copy the model "
            "again, or name another folder with --base-folder."
        )


class _Reader:
    """Reads tensors of a model folder by name, and keeps the files open that it read from."""

    def __init__(self, base: BaseFolder) -> None:
        self._base = base
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, name: str) -> "Tensor":
        from safetensors import SafetensorError, safe_open

        file = self._base.files[name]
        try:
            if file not in self._files:
                opened: Any = safe_open(self._base.folder / file, framework="pt")
                self._files[file] = self._stack.enter_context(opened)
            return self._files[file].get_tensor(name)
        except SafetensorError as error:  # changed since its header was read
            raise UserError(
                f"{self._base.folder / file} is damaged: {error}. Copy the model again."
            ) from None


def _added(weight: "Tensor", layers: Iterable[LoraLayer], target: "torch.dtype") -> "Tensor":
    """W + scaling * b @ a in the region of each layer, in fp32 at least, as `target`."""
    import torch

    result = weight.to(target, copy=True)
    for layer in layers:
        product = layer.scaling * (layer.b.float() @ layer.a.float())  # (O, I)
        index = layer.place.index or (...,)
        before = weight[index]
        before = before.to(torch.promote_types(before.dtype, torch.float32))
        result[index] = (before + (product.T if layer.place.transposed else product)).to(target)
    return result


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


def _with_quantisation(
    config: dict[str, Any], dequantised: Sequence[str], still_quantised: bool
) -> dict[str, Any]:
    """The configuration without quantisation, or with exceptions for the weights that lost it."""
    if not dequantised:
        return config
    changed = dict(config)
    inner: object = changed.get("text_config")
    for place in (changed, cast("dict[str, Any]", inner if isinstance(inner, dict) else {})):
        if not place.get("quantization_config"):
            continue
        if not still_quantised:
            del place["quantization_config"]
            continue
        values: dict[str, Any] = dict(place["quantization_config"])
        name = "ignore" if "config_groups" in values else "modules_to_not_convert"
        modules = [weight.removesuffix(".weight") for weight in dequantised]
        values[name] = [*(values.get(name) or []), *modules]
        place["quantization_config"] = values
    return changed
