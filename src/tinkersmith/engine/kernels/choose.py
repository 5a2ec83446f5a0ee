"""Device, precision and processor -> the kernels that compute a model's dense path.

This is the one place of choice; docs/explanation/implementations.md gives the reasons. What is at
hand on this machine comes in as `Means`. runtime/fast_code.py compiles it, and checks what is
chosen here against plain torch before the model is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch

from tinkersmith.engine.kernels import varlen_attention
from tinkersmith.engine.kernels.decoding import torch_decoding
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.head import TorchHead
from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.decoding import (
    NativeLayers,
    native_float32_logits,
    native_logits,
)
from tinkersmith.engine.kernels.native.head import NativeHead
from tinkersmith.engine.kernels.native.kernels import (
    NativeAttention,
    NativeProducts,
    native_elementwise,
)
from tinkersmith.engine.kernels.native.reading import NativeReading
from tinkersmith.engine.kernels.native.row_updates import native_row_updates
from tinkersmith.engine.kernels.native.small_batch import small_batch_product
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import Decoding, Elementwise, Kernels, Products


@dataclass(frozen=True, slots=True)
class Means:
    """Code for one model that this machine has, besides plain torch."""

    library: Library | None = None  # the C++ functions, for a model on a CPU
    compiled: Elementwise | None = None  # torch's element-wise functions, compiled
    varlen: bool = False  # torch's variable-length FlashAttention works here
    products: Callable[[Elementwise], Products] = TorchProducts  # where torch computes them


class Way(Enum):
    """A column of the tables in docs/explanation/implementations.md."""

    TORCH = "torch, on every device"
    NATIVE_FLOAT32 = "C++ element-wise work and decoding, torch for the rest"
    NATIVE_ELEMENTWISE = "C++ element-wise work, torch for the rest"
    NATIVE = "C++ for all parts"


def choose_way(base: BaseModel, library: Library | None) -> Way:
    """The column of those tables that a model belongs to: the first rule that holds."""
    if library is None or base.device.type != "cpu":
        return Way.TORCH
    if base.dtype == torch.float32:
        return Way.NATIVE_FLOAT32
    if library.products and has_even_sizes(base):
        return Way.NATIVE
    return Way.NATIVE_ELEMENTWISE


def choose_kernels(base: BaseModel, means: Means) -> Kernels:
    """The kernels of a model that has a dense path.

    | Way                | attention     | element-wise    | products, output | decoding        |
    | ------------------ | ------------- | --------------- | ---------------- | --------------- |
    | TORCH              | tiles, varlen | torch, compiled | torch            | torch           |
    | NATIVE_FLOAT32     | tiles         | C++             | torch            | C++             |
    | NATIVE_ELEMENTWISE | tiles         | C++             | torch            | torch           |
    | NATIVE             | C++           | C++             | C++              | C++             |

    Where a cell names two, the second is used if `means` has it.
    """
    way, library = choose_way(base, means.library), means.library
    if library is None or way is Way.TORCH:
        return _torch_kernels(base, means, means.compiled or TORCH_ELEMENTWISE)
    if way is Way.NATIVE:
        return _native_kernels(base, library)
    elementwise = native_elementwise(library, base.dtype)
    kernels = _torch_kernels(base, means, elementwise)
    if way is Way.NATIVE_ELEMENTWISE:
        return kernels
    product = small_batch_product(library)
    small_batch = TorchProducts(elementwise, product, native_row_updates(library, product))
    layers = partial(NativeLayers, library=library)
    decoding = Decoding(
        layers,
        elementwise,
        small_batch,
        logits=partial(native_float32_logits, products=small_batch, library=library),
        reading=partial(NativeReading, library=library),
    )
    return replace(kernels, decoding=decoding)


def with_torch_kernels(base: BaseModel) -> BaseModel:
    """Plain torch for all parts: the reference of every check. Other families stay as they are."""
    if base.dense is None:
        return base
    return replace(base, kernels=choose_kernels(base, Means()))


def has_even_sizes(base: BaseModel) -> bool:
    """Whether the C++ products can have this model's sizes: they take numbers in pairs."""
    assert base.dense is not None
    sizes = [base.vocab_size, base.dense.head_size]
    for layer in base.dense.layers:
        for projection in layer.projections:
            sizes += [projection.weight.shape[1], *projection.sizes]
    return not any(size % 2 for size in sizes)


def _torch_kernels(base: BaseModel, means: Means, elementwise: Elementwise) -> Kernels:
    tiles = partial(
        TileAttention,
        queries_per_key=_queries_per_key(base),
        dtype=base.dtype,
        device=base.device,
    )
    varlen = partial(varlen_attention.of_documents, device=base.device)
    return Kernels(
        attention=varlen if means.varlen else tiles,
        elementwise=elementwise,
        products=means.products(elementwise),
        head=partial(TorchHead, dtype=base.dtype, device=base.device, elementwise=elementwise),
        # What is compiled for training's blocks of rows does not suit a few rows.
        decoding=torch_decoding(TORCH_ELEMENTWISE, means.products(TORCH_ELEMENTWISE)),
    )


def _native_kernels(base: BaseModel, library: Library) -> Kernels:
    elementwise = native_elementwise(library, base.dtype)
    products = NativeProducts(library, elementwise)
    return Kernels(
        attention=partial(NativeAttention, library=library, queries_per_key=_queries_per_key(base)),
        elementwise=elementwise,
        products=products,
        head=partial(NativeHead, products=products),
        decoding=Decoding(
            layers=partial(NativeLayers, library=library),
            elementwise=elementwise,
            products=products,
            logits=partial(native_logits, products=products),
            by_rank=False,
        ),
    )


def _queries_per_key(base: BaseModel) -> int:
    assert base.dense is not None
    return base.dense.heads // base.dense.key_heads
