"""The product of a few rows in float32 by the C++ function, on every processor (see few_rows.cpp).

Axes: N rows, K inputs and M outputs of a layer.
"""

from functools import partial

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.kernels import address
from tinkersmith.engine.log import log
from tinkersmith.engine.model import dtype_cast

_MOST = 32  # rows; of more, torch's products are as fast


def few_rows_product(library: Library) -> dtype_cast.LinearProduct:
    """`linear_product`, of a few rows by `library`, if that is right on this processor."""
    fast = partial(_product, library=library)
    worst = max(_difference(fast, dtype) for dtype in (torch.float32, torch.bfloat16))
    if not worst < 1e-5:
        log.warning("native products of a few rows are off by %.1e and are not used", worst)
        return dtype_cast.linear_product
    return fast


def _product(
    x: torch.Tensor,  # (N, K) in fp32
    weight: torch.Tensor,  # (M, K) in fp32 or bf16
    output: torch.Tensor,  # (N, M) in fp32, may be columns of a matrix
    library: Library,
) -> None:
    """output = x W^T"""
    if len(x) > _MOST:
        dtype_cast.linear_product(x, weight, output)
        return
    assert x.dtype == output.dtype == torch.float32 and output.stride(1) == 1
    name, x = str(weight.dtype).removeprefix("torch."), x.contiguous()
    getattr(library.functions, f"tinkersmith_few_rows_{name}")(
        *(len(x), *weight.shape, address(x), address(weight)),
        *(output.data_ptr(), output.stride(0)),
    )


def _difference(product: dtype_cast.LinearProduct, dtype: torch.dtype) -> float:
    """From torch's, relative; for sizes that are no multiples of anything."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 83, generator=generator)
    weight = torch.randn(43, 83, generator=generator).to(dtype)
    output, expected = torch.empty(7, 43), x @ weight.float().T
    product(x, weight, output)
    return float((output - expected).norm() / expected.norm())
