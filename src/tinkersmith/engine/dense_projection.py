"""A joined projection of a Llama-shaped model with an adapter's updates: forward and backward.

Axes: N rows of a block, M rows in all, R rank of the adapter (made even), n trained layers of a
projection, F width of the MLP.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.functional import pad

from tinkersmith.engine import float8, widening
from tinkersmith.engine.elementwise import Elementwise
from tinkersmith.engine.lora import Adapter


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear layers with one input, their weights joined along the output."""

    weight: torch.Tensor  # (out, in), may be in a narrower dtype
    dtype: torch.dtype  # of what goes in and what comes out
    bias: torch.Tensor | None  # (out,)
    paths: tuple[str, ...]  # the layers' module paths, in the order of their outputs
    sizes: tuple[int, ...]  # the width of each one's output
    scale: torch.Tensor | None = None  # (out, 1) in fp32, of a weight in 8 bits (see float8.py)


@dataclass(frozen=True, slots=True)
class Part:
    """One trained layer of a projection."""

    path: str
    columns: slice  # of the projection's output
    ranks: slice  # of x A^T
    b: torch.Tensor  # (out, R), times the adapter's scaling


@dataclass(frozen=True, slots=True)
class Update:
    """An adapter's part in a projection, in the base model's dtype.

    Ranks are even: an odd one gets a row of zeros.
    """

    adapter: Adapter
    a: torch.Tensor  # (n R, in): the A matrices of its n trained layers
    parts: list[Part]

    def gradient(self, part: Part, side: str) -> torch.Tensor:
        """What was added up so far for A (rank, in) or B (out, rank), in fp32, to be added to."""
        weight = self.adapter.weights[f"{part.path}.lora_{side}"]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad


def update_of(projection: Projection, adapter: Adapter | None) -> Update | None:
    if adapter is None:
        return None
    a: list[torch.Tensor] = []
    parts: list[Part] = []
    start, odd = 0, adapter.config.rank % 2
    rank = adapter.config.rank + odd
    for path, width in zip(projection.paths, projection.sizes, strict=True):
        if f"{path}.lora_A" in adapter.weights:
            of_a, b = (adapter.weights[f"{path}.lora_{side}"].detach() for side in "AB")
            of_a, b = pad(of_a, (0, 0, 0, odd)), pad(b, (0, odd))
            ranks = slice(len(parts) * rank, (len(parts) + 1) * rank)
            scaled = (b * adapter.scaling).to(projection.dtype)
            parts.append(Part(path, slice(start, start + width), ranks, scaled))
            a.append(of_a)
        start += width
    return Update(adapter, torch.cat(a).to(projection.dtype), parts) if parts else None


def outputs(
    rows: int, projection: Projection, update: Update | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what `project` gives: (M, out) and (M, n R)."""
    weight, dtype = projection.weight, projection.dtype
    widths = len(weight), 0 if update is None else len(update.a)
    output, low = (weight.new_empty(rows, width, dtype=dtype) for width in widths)
    return output, low


class Products(Protocol):
    """The products of a layer, each with what is done to its result at once."""

    def project(
        self,
        x: torch.Tensor,  # (N, in)
        projection: Projection,
        update: Update | None,
        output: torch.Tensor,  # (N, out)
        low: torch.Tensor,  # (N, n R)
        residual: torch.Tensor | None = None,  # (N, out)
    ) -> None:
        """Writes x W^T + b, the adapter's part and the residual added, to `output`, and x A^T to
        `low`."""
        ...

    def project_swiglu(
        self,
        x: torch.Tensor,  # (N, in)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
        low: torch.Tensor,  # (N, n R)
    ) -> torch.Tensor:  # (N, F)
        """`project` into `gate_up`, and silu(gate) up."""
        ...

    def input_gradient(
        self,
        grad: torch.Tensor,  # (N, out)
        projection: Projection,
        update: Update | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input's gradient (N, in), and that of x A^T (N, n R)."""
        ...

    def input_gradient_swiglu(
        self,
        grad: torch.Tensor,  # (N, out)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Of a projection whose input is silu(gate) up: this input again (N, F), the gradient of
        `gate_up`, and that of x A^T."""
        ...

    def low_gradient(
        self, grad: torch.Tensor, update: Update | None
    ) -> torch.Tensor | None:  # (N, out) -> (N, n R)
        """The gradient of x A^T."""
        ...

    def add_gradients(
        self,
        update: Update | None,
        grad: torch.Tensor,  # (N, out)
        x: torch.Tensor,  # (N, in), what went in
        grad_low: torch.Tensor | None,  # (N, n R)
        low: torch.Tensor,  # (N, n R)
    ) -> None:
        """Adds the LoRA gradients of a block of rows to the adapter's."""
        ...


@dataclass(frozen=True, slots=True)
class TorchProducts:
    """By torch, on every device."""

    elementwise: Elementwise = field(default_factory=Elementwise)
    product: widening.Product = widening.product

    def project(self, x, projection, update, output, low, residual=None) -> None:
        if projection.scale is None:
            self.product(x, projection.weight, output)
        else:
            float8.product(x, projection.weight, projection.scale, output)
        if projection.bias is not None:
            output += projection.bias
        if update is not None:
            self.product(x, update.a, low)
            for part in update.parts:
                output[:, part.columns].addmm_(low[:, part.ranks], part.b.T)
        if residual is not None:
            output += residual

    def project_swiglu(self, x, projection, update, gate_up, low) -> torch.Tensor:
        self.project(x, projection, update, gate_up, low)
        activated = gate_up.new_empty(len(x), gate_up.shape[1] // 2)
        self.elementwise.swiglu(gate_up, activated)
        return activated

    def input_gradient(self, grad, projection, update):
        if projection.scale is None:
            grad_x = widening.input_product(grad, projection.weight)
        else:
            grad_x = float8.input_product(grad, projection.weight, projection.scale)
        grad_low = self.low_gradient(grad, update)
        if update is not None and grad_low is not None:
            grad_x.addmm_(grad_low, update.a)
        return grad_x, grad_low

    def input_gradient_swiglu(self, grad, projection, update, gate_up):
        part, grad_low = self.input_gradient(grad, projection, update)
        activated, inner = torch.empty_like(part), torch.empty_like(gate_up)
        self.elementwise.swiglu_backward(part, gate_up, activated, inner)
        return activated, inner, grad_low

    def low_gradient(self, grad, update) -> torch.Tensor | None:
        if update is None:
            return None
        parts = [grad[:, part.columns] @ part.b for part in update.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def add_gradients(self, update, grad, x, grad_low, low) -> None:
        if update is None or grad_low is None:
            return
        rank, scaling = update.adapter.config.rank, update.adapter.scaling
        grad_a = grad_low.T @ x  # (n R, in)
        for part in update.parts:
            grad_b = grad[:, part.columns].T @ low[:, part.ranks]
            update.gradient(part, "B").add_(grad_b[:, :rank], alpha=scaling)
            update.gradient(part, "A").add_(grad_a[part.ranks][:rank])
