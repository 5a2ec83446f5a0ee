"""Frozen layers in 8 bits: their weights, and the inputs of their products, as float8_e4m3fn.

Every row of a weight and every token of an input has a scale of its own (Micikevicius et al. 2022,
FP8 Formats for Deep Learning), a power of two: scaling then rounds nothing, and what the 8 bits
hold is exact in bfloat16.

Experimental: on an H100 it was right, and as fast as bfloat16 (benchmarks/results/gpu.json).
`check_device` compares its products with plain ones before the engine serves. On a CPU torch 2.13
computes the same products, slowly; the tests run there.

Axes: N rows, I inputs and O outputs of a layer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.model.base_model import BaseModel, LinearStorage
from tinkersmith.engine.model.kernels import Elementwise, Products
from tinkersmith.engine.model.lora import LoraLinear
from tinkersmith.engine.model.projection import Projection

DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(DTYPE).max  # 448
_SMALLEST = 2.0**-100  # of a row's largest number: its scale, and 1 / scale, stay normal numbers
_MULTIPLE = 16  # of I and O, which the GPU's products want
_CAPABILITY = (8, 9)


def quantise(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, I) -> (N, I) in 8 bits, and the rows' scales (N, 1) in fp32.

    A row with a number that is not finite becomes NaN: torch's conversion alone would hide it.
    """
    largest = torch.linalg.vector_norm(matrix, torch.inf, -1, keepdim=True, dtype=torch.float32)
    ratio = largest.clamp(min=_SMALLEST) / _LARGEST
    scale = ratio / torch.frexp(ratio).mantissa  # the power of two above it
    return (matrix * scale.reciprocal().to(matrix.dtype)).to(DTYPE), scale


def dequantise(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, I), (N, 1) -> (N, I), without a further rounding."""
    return values.to(dtype) * scale.to(dtype)


def scaled_product(
    x: torch.Tensor,  # (N, I)
    weight: torch.Tensor,  # (O, I) in 8 bits
    scale: torch.Tensor,  # (O, 1)
    output: torch.Tensor,  # (N, O), contiguous
) -> None:
    """output = x W^T, x rounded to 8 bits as the weight is."""
    values, scales = quantise(x)
    # Without fast accumulation, which adds products with fewer digits than fp32 has.
    torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        values,
        weight.T,
        scales,
        scale.T,
        out_dtype=output.dtype,
        use_fast_accum=False,
        out=output,
    )


def scaled_input_gradient(
    grad: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """(N, O) -> grad W (N, I), in the gradient's dtype.

    The weight's 8 bits are cast into scratch memory: a product in 8 bits would want them
    transposed, with scales along the other axis, which is a second copy of all weights.
    """
    return (grad * scale.T.to(grad.dtype)) @ weight.to(grad.dtype)


class Float8Linear(nn.Linear):
    """A frozen linear layer in 8 bits. Called itself, it rounds its weight only, not its input."""

    scale: torch.Tensor  # (O, 1)

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        values, scale = quantise(layer.weight.detach().to(device))
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().to(device), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., I) -> (..., O)
        return linear(input, dequantise(self.weight, self.scale, input.dtype), self.bias)


@dataclass(frozen=True, slots=True)
class Float8Products(TorchProducts):
    """Torch's products, in 8 bits where a projection's weight is."""

    # (O, 1) of each projection in 8 bits, by the paths of its layers
    scales: Mapping[tuple[str, ...], torch.Tensor] = field(default_factory=dict)

    def multiply(self, x: torch.Tensor, projection: Projection, output: torch.Tensor) -> None:
        scale = self.scales.get(projection.paths)
        if scale is None:
            TorchProducts.multiply(self, x, projection, output)
        else:
            scaled_product(x, projection.weight, scale, output)

    def multiply_back(self, grad: torch.Tensor, projection: Projection) -> torch.Tensor:
        scale = self.scales.get(projection.paths)
        if scale is None:
            return TorchProducts.multiply_back(self, grad, projection)
        return scaled_input_gradient(grad, projection.weight, scale)


def float8_products(base: BaseModel) -> Callable[[Elementwise], Products]:
    """The products of a model whose layers were stored by `FLOAT8`."""
    assert base.dense is not None
    scales: dict[tuple[str, ...], torch.Tensor] = {}
    for layer in base.dense.layers:
        for projection in layer.projections:
            linears = [base.linears[path].base for path in projection.paths]
            stored = [linear for linear in linears if isinstance(linear, Float8Linear)]
            assert len(stored) == len(linears)
            scales[projection.paths] = torch.cat([linear.scale for linear in stored])
    return partial(Float8Products, scales=scales)


def quantise_layers(layers: Iterable[LoraLinear], device: torch.device) -> None:
    """Store layers in 8 bits on `device`, one after another, and free their wide weights.

    Raises:
        Refused: a layer's dimensions are not supported by the 8-bit products.
    """
    for layer in layers:
        size = layer.base.in_features, layer.base.out_features
        if any(width % _MULTIPLE for width in size):
            raise Refused(
                f"{layer.path} has {size[0]} inputs and {size[1]} outputs; --dtype float8 needs "
                f"multiples of {_MULTIPLE}. Use --dtype bfloat16."
            )
        layer.base = Float8Linear(layer.base, device)


FLOAT8 = LinearStorage("float8", DTYPE.itemsize, quantise_layers)


def check_device(device: torch.device) -> None:
    """Check that this GPU computes products in 8 bits, and computes them right.

    Raises:
        Refused: it does not.
    """
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        raise Refused(
            "--dtype float8 needs a GPU with products in 8 bits (compute capability 8.9 or more, "
            f"such as an H100); this one has {capability[0]}.{capability[1]}. Use --dtype bfloat16."
        )
    try:
        worst = worst_difference(device)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(
            f"--dtype float8 does not work with this GPU and torch: {reason[0]} "
            "Use --dtype bfloat16."
        ) from error
    if not worst < 0.02:
        raise Refused(
            f"--dtype float8 is wrong with this GPU and torch (products are off by {worst:.1e}). "
            "Use --dtype bfloat16."
        )


def worst_difference(device: torch.device) -> float:
    """The worst relative difference of random products to plain ones of the same rounded numbers.

    Inputs are in bf16, from one row to many.
    """
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantise(torch.randn(1280, 2048, generator=generator).to(device))
    differences = []
    for rows in (1, 7, 200, 1024):
        x = torch.randn(rows, 2048, generator=generator).to(device, torch.bfloat16)
        output = x.new_empty(rows, 1280)
        scaled_product(x, weight, scale, output)
        expected = (
            dequantise(*quantise(x), torch.float32) @ dequantise(weight, scale, torch.float32).T
        )
        differences.append(float((output.float() - expected).norm() / expected.norm()))
    return max(differences)
