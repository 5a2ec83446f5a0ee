"""What several adapters add to rows of one projection, in float32, by the C++ function.

Axes: N rows, I and O input and output size of a projection, R rank of an adapter, C its trained
layers there.
"""

import ctypes
from functools import partial

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.operands import prepared_updates
from tinkersmith.engine.kernels.products import AddRowUpdates, add_row_updates
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model import dtype_cast
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.model.projection import Part, RowUpdates, Update

_MOST = 32  # rows of an adapter; beyond them torch's products are as fast


def native_row_updates(library: Library, product: dtype_cast.LinearProduct) -> AddRowUpdates:
    """`add_row_updates`, computed by `library` if it is right on this processor.

    A difference to torch is logged.
    """
    native = partial(_add, library=library, product=product)
    worst = _difference(native)
    if not worst < 1e-5:
        log.warning("native products of adapters are off by %.1e and are not used", worst)
        return partial(add_row_updates, product=product)
    return native


def _add(
    x: torch.Tensor,  # (N, I) in fp32
    updates: RowUpdates,
    output: torch.Tensor,  # (N, O)
    library: Library,
    product: dtype_cast.LinearProduct,
) -> None:
    prepared = prepared_updates(updates)
    if prepared.most > _MOST:
        add_row_updates(x, updates, output, product)
        return
    x, width = x.contiguous(), prepared.width
    low = x.new_empty(x.shape[0], width)
    library.functions.tinkersmith_add_row_updates(
        *(len(updates.groups), ctypes.addressof(prepared.groups), x.shape[1], x.data_ptr()),
        *(low.data_ptr(), width, output.data_ptr(), output.stride(0)),
    )


def _difference(native: AddRowUpdates) -> float:
    """The relative difference to torch, for sizes that are multiples of no vector length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 83, generator=generator)
    groups: list[tuple[slice, Update]] = []
    for rows, rank, widths in ((slice(0, 3), 6, (43, 150)), (slice(5, 9), 18, (300,))):
        a = torch.randn(len(widths) * rank, 83, generator=generator)
        parts, start = list[Part](), 7
        for number, width in enumerate(widths):
            b = torch.randn(rank, width, generator=generator).T
            ranks = slice(number * rank, (number + 1) * rank)
            parts.append(Part("", slice(start, start + width), ranks, b))
            start += width
        groups.append((rows, Update(Adapter(LoraConfig(rank), {}), a, parts)))
    output = torch.randn(9, 400, generator=generator)
    expected = output.clone()
    native(x, RowUpdates(tuple(groups)), output)
    add_row_updates(x, RowUpdates(tuple(groups)), expected, dtype_cast.linear_product)
    return float((output - expected).norm() / expected.norm())
