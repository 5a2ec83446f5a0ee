"""Adapters: made from a seed, copied, and written to and read from PEFT's files."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.lora import ALPHA, Adapter
from tinkersmith.files import write_json
from tinkersmith.manifest import HAS_MANIFEST
from tinkersmith.peft_format import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_PREFIX,
    adapter_config,
    target_modules,
)

if TYPE_CHECKING:
    from tinkersmith.engine.model.base_model import BaseModel


def new_adapter(base: "BaseModel", config: LoraConfig) -> Adapter:
    """An adapter that changes nothing yet: A uniform in ±1/sqrt(in), B zero.

    Raises:
        Refused: a wanted part cannot be trained in this model.
    """
    groups = [
        (config.train_attn, "attention", "train_attn"),
        (config.train_mlp, "mlp", "train_mlp"),
        (config.train_unembed, "unembed", "train_unembed"),
    ]
    paths: list[str] = []
    for wanted, part, flag in groups:
        if wanted and not base.parts[part]:
            raise Refused(
                f"{base.name} has no {part} layers that a LoRA can train here"
                f"{base.why_not.get(part, '')}; create the client with {flag}=False."
            )
        paths += base.parts[part] if wanted else []
    if not paths:
        raise Refused("train_attn, train_mlp and train_unembed are all False: nothing would train.")
    seed = config.seed if config.seed is not None else int(torch.randint(2**31, (1,)))
    weights = {}
    for path in paths:
        shape = base.shapes[path]
        a = torch.empty(*shape.a_lead, config.rank, shape.in_size)
        bound = 1 / math.sqrt(shape.in_size)
        a.uniform_(-bound, bound, generator=_generator(seed, path))
        b = torch.zeros(*shape.b_lead, shape.out_size, config.rank)
        weights[f"{path}.lora_A"] = nn.Parameter(a.to(base.device))
        weights[f"{path}.lora_B"] = nn.Parameter(b.to(base.device))
    return Adapter(config, weights)


def snapshot(adapter: Adapter) -> Adapter:
    """A copy of the adapter that later training does not change."""
    weights = {
        name: nn.Parameter(weight.detach().clone(), requires_grad=False)
        for name, weight in adapter.weights.items()
    }
    return Adapter(adapter.config, weights)


def adapter_state(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The tensors under PEFT's names; those of experts under the names of Tinker's cloud."""
    return {
        f"{PEFT_PREFIX}{name}.weight": weight.detach().cpu().contiguous()
        for name, weight in adapter.weights.items()
    }


def load_adapter_state(adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors` (see `adapter_state`) into `adapter`.

    Raises:
        Refused: names or shapes are not those of this adapter.
    """
    expected = {f"{PEFT_PREFIX}{name}.weight": weight for name, weight in adapter.weights.items()}
    if expected.keys() != tensors.keys():
        odd = sorted(expected.keys() ^ tensors.keys())[0]
        raise Refused(f"the checkpoint does not fit this adapter: {odd} is only on one side.")
    with torch.no_grad():
        for name, weight in expected.items():
            if weight.shape != tensors[name].shape:
                raise Refused(
                    f"the checkpoint does not fit this adapter: {name} is "
                    f"{list(tensors[name].shape)}, not {list(weight.shape)}."
                )
            weight.copy_(tensors[name])


def peft_config(base: "BaseModel", adapter: Adapter, base_name_or_path: str) -> dict[str, Any]:
    """The adapter's adapter_config.json."""
    # Linear layers that no LoRA can train here may share a last name with those that are trained.
    modules = {*base.shapes, *(path for path, _ in base.model.named_modules())}
    return adapter_config(
        base_name_or_path,
        adapter.config.rank,
        ALPHA,
        target_modules(adapter.module_paths, modules),
    )


def save_adapter(base: "BaseModel", adapter: Adapter, folder: Path) -> None:
    """Write the two files of an adapter in PEFT's format."""
    # The weights say that a manifest belongs to them: its loss is then told from an old version's.
    metadata = {"format": "pt", HAS_MANIFEST: "1"}
    save_file(adapter_state(adapter), folder / ADAPTER_WEIGHTS, metadata=metadata)
    _sort_metadata(folder / ADAPTER_WEIGHTS)
    write_json(folder / ADAPTER_CONFIG, peft_config(base, adapter, base.name))


def _sort_metadata(file: Path) -> None:
    """Give equal weights equal bytes: safetensors writes several notes in an order by chance."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        opened.seek(8)
        opened.write(text.ljust(length))


class NotFinite(Exception):
    """A tensor holds infinities or what is no number at all. The text names it."""


def load_finite(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        NotFinite: one of them holds a number that is not finite.
        SafetensorError: the file is damaged.
    """
    tensors = load_file(file)
    if (name := not_finite(tensors)) is not None:
        raise NotFinite(f"{name} holds numbers that are not finite")
    return tensors


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            return name
    return None


def _generator(seed: int, path: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
