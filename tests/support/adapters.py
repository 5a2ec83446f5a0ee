"""Adapters that change something, saved as PEFT reads them, and their gradients."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import (
    adapter_state,
    new_adapter,
    peft_config,
)
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter


def filled_adapter(base: BaseModel, config: LoraConfig, seed: int = 0) -> Adapter:
    """An adapter with random B matrices, so that it changes something."""
    adapter = new_adapter(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.normal_(0, 0.05, generator=generator)
    return adapter


def save_as_peft(base: BaseModel, adapter: Adapter, folder: Path) -> Path:
    folder.mkdir()
    save_file(adapter_state(adapter), folder / "adapter_model.safetensors")
    config = peft_config(base, adapter, str(base.folder))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merge_with_cookbook(base: BaseModel, adapter: Adapter, folder: Path) -> Path:
    """Save an adapter in `folder`, and let tinker-cookbook merge it into its base: the result."""
    from tinker_cookbook import weights

    save_as_peft(base, adapter, folder / "adapter")
    weights.build_hf_model(
        base_model=str(base.folder),
        adapter_path=str(folder / "adapter"),
        output_path=str(folder / "merged"),
    )
    return folder / "merged"


def gradients(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in adapter.weights.items()}  # type: ignore[union-attr]
