"""Small-batch products in float32 by the C++ function, on every processor (see small_batch.cpp).

Axes: N rows, I and O input and output size of a linear layer.
"""

from functools import partial

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.operands import address
from tinkersmith.engine.log import log
from tinkersmith.engine.model import dtype_cast

_MOST = 128  # rows; beyond them torch's products are as fast


def small_batch_product(library: Library) -> dtype_cast.LinearProduct:
    """`linear_product`, computed by `library` for small batches if it is right on this processor.

    A difference to torch is logged.
    """
    native = partial(_product, library=library)
    worst = max(_difference(native, dtype) for dtype in (torch.float32, torch.bfloat16))
    if not worst < 1e-5:
        log.warning("native small-batch products are off by %.1e and are not used", worst)
        return dtype_cast.linear_product
    return native


def _product(
    x: torch.Tensor,  # (N, I) in fp32
    weight: torch.Tensor,  # (O, I) in fp32 or bf16
    output: torch.Tensor,  # (N, O) in fp32, may be columns of a matrix
    library: Library,
) -> None:
    """output = x weight^T"""
    if len(x) > _MOST:
        dtype_cast.linear_product(x, weight, output)
        return
    assert x.dtype == output.dtype == torch.float32 and output.stride(1) == 1
    dtype, x = str(weight.dtype).removeprefix("torch."), x.contiguous()
    getattr(library.functions, f"tinkersmith_small_batch_product_{dtype}")(
        *(len(x), *weight.shape, address(x), address(weight)),
        *(output.data_ptr(), output.stride(0)),
    )


def _difference(product: dtype_cast.LinearProduct, dtype: torch.dtype) -> float:
    """The relative difference to torch, for sizes that are multiples of no vector length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 83, generator=generator)
    weight = torch.randn(43, 83, generator=generator).to(dtype)
    output, expected = torch.empty(7, 43), x @ weight.float().T
    product(x, weight, output)
    return float((output - expected).norm() / expected.norm())
