"""Plain transformers in float64, with every trained weight W replaced by W + scaling B A."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tinkersmith.engine.model.lora import Adapter

# The parts of a joined projection, in the order of its rows.
JOINED = {
    "in_proj_qkv": ("in_proj_q", "in_proj_k", "in_proj_v"),
    "in_proj": ("gate_proj", "x_proj"),
}


class _WithoutFloat32:
    """torch as a module of transformers sees it, where float32 means float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def all_in_float64(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's layers compute in float64 also where they ask for float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(sys.modules[type(model).__module__], "torch", _WithoutFloat32())
        yield


def logprobs_of_the_twin(
    model: PreTrainedModel, adapter: Adapter, tokens: np.ndarray, targets: np.ndarray
) -> torch.Tensor:  # (T,), which autograd differentiates down to A and B
    changed = {}
    for name, weight in model.named_parameters():
        change = _change(adapter, name.removesuffix(".weight"), weight)
        if change is not None:
            changed[name] = weight + change
    ids = {"input_ids": torch.from_numpy(tokens)[None]}
    with all_in_float64(model):
        logits = torch.func.functional_call(model, changed, (), ids).logits[0]
    assert logits.dtype == torch.float64
    return logits.log_softmax(-1).gather(-1, torch.from_numpy(targets)[:, None])[:, 0]


def _change(adapter: Adapter, path: str, weight: torch.Tensor) -> torch.Tensor | None:
    """What the adapter adds to the weight at `path`."""
    parent, _, name = path.rpartition(".")
    if name in JOINED and f"{parent}.{JOINED[name][0]}.lora_A" in adapter.weights:
        change = torch.cat([_product(adapter, f"{parent}.{part}") for part in JOINED[name]])
        return torch.nn.functional.pad(change, (0, 0, 0, len(weight) - len(change)))
    if name == "gate_up_proj" and f"{parent}.w1.lora_A" in adapter.weights:  # of experts
        return torch.cat([_product(adapter, f"{parent}.{part}") for part in ("w1", "w3")], 1)
    experts = {"up_proj": "w1", "down_proj": "w2"}
    if parent.endswith(".experts") and f"{parent}.{experts[name]}.lora_A" in adapter.weights:
        return _product(adapter, f"{parent}.{experts[name]}")
    if f"{path}.lora_A" in adapter.weights:
        return _product(adapter, path)
    return None


def _product(adapter: Adapter, path: str) -> torch.Tensor:  # ([E,] out, in)
    a, b = (adapter.weights[f"{path}.lora_{side}"].double() for side in "AB")
    return adapter.scaling * b @ a
