"""A model's gradients with faster kernels against those with plain ones, before they are used."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.step import forward_backward

_LENGTHS = (40, 1, 25)  # of the documents that are compared


def gradient_difference(
    base: BaseModel, faster: Callable[[BaseModel], BaseModel], passes: int = 1
) -> float:
    """Relative difference of LoRA gradients on a small batch: first layer and output layer only.

    `base` has plain kernels, and `faster` gives it others. With several passes the last one's
    gradients are compared.
    """
    assert base.dense is not None
    rng = np.random.default_rng(0)
    datums = []
    for length in _LENGTHS:
        tokens = rng.integers(0, base.vocab_size, length + 1)
        weights = (np.arange(length) % 3 > 0).astype(np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    shallow = replace(base, dense=replace(base.dense, layers=base.dense.layers[:1], longest=None))
    gradients = []
    for model in (shallow, faster(shallow)):
        adapter = _filled_adapter(base)
        for _ in range(passes):
            adapter.clear_gradients()
            forward_backward(model, adapter, datums, "cross_entropy", {})
        grads = [weight.grad for weight in adapter.weights.values() if weight.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in grads]))
    theirs, ours = gradients
    return float((ours - theirs).norm() / theirs.norm())


def _filled_adapter(base: BaseModel) -> Adapter:
    """One that changes something: its B matrices are not zero."""
    adapter = new_adapter(base, LoraConfig(4, 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapter
