"""A model on a CPU -> the same with the C++ functions, where they are right."""

from dataclasses import replace
from functools import partial

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.decoding import NativeLayers, native_logits
from tinkersmith.engine.kernels.native.few_rows import few_rows_product
from tinkersmith.engine.kernels.native.head import NativeHead
from tinkersmith.engine.kernels.native.kernels import (
    NativeAttention,
    NativeProducts,
    native_elementwise,
)
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.log import log
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.dense import DenseModel
from tinkersmith.engine.model.kernels import Decoding
from tinkersmith.engine.sampling.dense_decoder import torch_decoding
from tinkersmith.engine.training.self_check import gradient_difference

# How far LoRA gradients may be from torch's, relative to their norm: both are rounded.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def with_native_code(base: BaseModel, library: Library) -> BaseModel:
    """Its element-wise work by `library`; in bf16 its products, attention and output layer, too,
    and in fp32 the products of a few rows."""
    if base.dense is None or base.device.type != "cpu" or base.dtype not in _TOLERANCE:
        return base
    faster = partial(_faster, library=library)
    worst = gradient_difference(base, faster)
    if not worst < _TOLERANCE[base.dtype]:
        log.warning("native code is off by %.1e and is not used", worst)
        return base
    return faster(base)


def _faster(base: BaseModel, library: Library) -> BaseModel:
    dense = base.dense
    assert dense is not None
    elementwise = native_elementwise(library, base.dtype)
    dense = replace(dense, elementwise=elementwise, products=TorchProducts(elementwise))
    if base.dtype == torch.float32:
        few = TorchProducts(elementwise, few_rows_product(library))
        dense = replace(dense, decoding=torch_decoding(elementwise, few))
    if base.dtype == torch.bfloat16 and library.products and _even(base, dense):
        share, products = dense.heads // dense.key_heads, NativeProducts(library, elementwise)
        dense = replace(
            dense,
            products=products,
            attention=partial(NativeAttention, library=library, queries_per_key=share),
            head=partial(NativeHead, products=products),
            decoding=Decoding(
                partial(NativeLayers, products=products),
                *(elementwise, products),
                partial(native_logits, products=products),
            ),
        )
    return replace(base, dense=dense)


def _even(base: BaseModel, dense: DenseModel) -> bool:
    """The products take numbers in pairs."""
    sizes = [base.vocab_size, dense.head_size]
    for layer in dense.layers:
        for projection in layer.projections:
            sizes += [projection.weight.shape[1], *projection.sizes]
    return not any(size % 2 for size in sizes)
