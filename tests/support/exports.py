"""A LoRA of peft, and an exported folder of it, without a server."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tinkersmith.export.adapter import read_layers
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.merge import write_merged
from tinkersmith.export.peft_files import write_peft_adapter


def export(adapter: Path, base: Path, out: Path, *, merged: bool, dtype: str = "auto") -> Path:
    source = read_base(base)
    layers = read_layers(adapter, source)
    out.mkdir()
    if merged:
        write_merged(layers, source, out, dtype)
    else:
        write_peft_adapter(layers, source, str(base), out)
    return out


def load_fp32(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_adapter(base: Path, folder: Path, targets: list[str], rank: int = 4, seed: int = 0) -> Any:
    """A random LoRA made and saved by peft; returns the model with it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_fp32(base), config)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return model.eval()
