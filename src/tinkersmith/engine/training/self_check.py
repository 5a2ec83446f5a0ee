"""The gradients of faster kernels compared with the plain ones', before the kernels are used."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.step import forward_backward

_LENGTHS = (40, 1, 25)  # tokens of the documents that are compared


def gradient_difference(
    base: BaseModel, faster: Callable[[BaseModel], BaseModel], passes: int = 1
) -> float:
    """How far the LoRA gradients of a small batch are from `base`'s, relative to their norm.

    One layer and the output layer are compared, after the last of several passes.
    """
    assert base.dense is not None
    shallow = replace(base, dense=replace(base.dense, layers=base.dense.layers[:1]))
    datums = _random_batch(base.vocab_size)
    theirs, ours = (_gradients(model, datums, passes) for model in (shallow, faster(shallow)))
    return float((ours - theirs).norm() / theirs.norm())


def _random_batch(vocab_size: int) -> list[Datum]:
    rng = np.random.default_rng(0)
    datums: list[Datum] = []
    for length in _LENGTHS:
        tokens = rng.integers(0, vocab_size, length + 1)
        weights = (np.arange(length) % 3 > 0).astype(np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    return datums


def _gradients(model: BaseModel, datums: Sequence[Datum], passes: int) -> torch.Tensor:
    """All LoRA gradients of the batch after the last pass, in one row."""
    adapter = _filled_adapter(model)
    for _ in range(passes):
        adapter.clear_gradients()
        forward_backward(model, adapter, datums, "cross_entropy", {})
    gradients = [weight.grad for weight in adapter.weights.values() if weight.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _filled_adapter(base: BaseModel) -> Adapter:
    """An adapter that changes something: its B matrices are not zero."""
    adapter = new_adapter(base, LoraConfig(4, 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapter
