"""A model on a CPU -> the same with the C++ functions, where they are right."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.dense_layers import Decoding, DenseModel
from tinkersmith.engine.dense_projection import TorchProducts
from tinkersmith.engine.lora import Adapter, new_adapter
from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.native.build import Library
from tinkersmith.engine.native.decoding import NativeCache, native_logits
from tinkersmith.engine.native.head import NativeHead
from tinkersmith.engine.native.kernels import NativeAttention, NativeProducts, native_elementwise
from tinkersmith.engine.training_step import forward_backward

log = logging.getLogger("tinkersmith.engine")

# How far LoRA gradients may be from torch's, relative to their norm: both are rounded.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_LENGTHS = (40, 1, 25)  # of the documents that are compared


def with_native_code(base: BaseModel, library: Library) -> BaseModel:
    """Its element-wise work by `library`; in bf16 its products, attention and output layer, too."""
    dense = base.dense
    if dense is None or base.device.type != "cpu" or base.dtype not in _TOLERANCE:
        return base
    elementwise = native_elementwise(library, base.dtype)
    faster = replace(dense, elementwise=elementwise, products=TorchProducts(elementwise))
    if base.dtype == torch.bfloat16 and library.products and _even(base, dense):
        share, products = dense.heads // dense.key_heads, NativeProducts(library, elementwise)
        faster = replace(
            faster,
            products=products,
            attention=partial(NativeAttention, library=library, queries_per_key=share),
            head=partial(NativeHead, products=products),
            decoding=Decoding(
                partial(NativeCache, products=products),
                *(elementwise, products),
                partial(native_logits, products=products),
            ),
        )
    worst = _difference(base, replace(base, dense=faster))
    if not worst < _TOLERANCE[base.dtype]:
        log.warning("native code is off by %.1e and is not used", worst)
        return base
    return replace(base, dense=faster)


def _even(base: BaseModel, dense: DenseModel) -> bool:
    """The products take numbers in pairs."""
    sizes = [base.vocab_size, dense.head_size]
    for layer in dense.layers:
        for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
            sizes += [projection.weight.shape[1], *projection.sizes]
    return not any(size % 2 for size in sizes)


def _difference(base: BaseModel, faster: BaseModel) -> float:
    """Of the LoRA gradients of a small batch, relative to their norm; one layer and the head."""
    assert base.dense is not None and faster.dense is not None
    rng = np.random.default_rng(0)
    datums = []
    for length in _LENGTHS:
        tokens = rng.integers(0, base.vocab_size, length + 1)
        weights = (np.arange(length) % 3 > 0).astype(np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    gradients = []
    for model in (base, faster):
        assert model.dense is not None
        shallow = replace(model, dense=replace(model.dense, layers=model.dense.layers[:1]))
        adapter = _filled_adapter(base)
        forward_backward(shallow, adapter, datums, "cross_entropy", {})
        found = [weight.grad for weight in adapter.weights.values() if weight.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    theirs, ours = gradients
    return float((ours - theirs).norm() / theirs.norm())


def _filled_adapter(base: BaseModel) -> Adapter:
    """One that changes something: its B matrices are not zero."""
    adapter = new_adapter(base, LoraConfig(4, 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.normal_(0, 0.05, generator=generator)
    return adapter
