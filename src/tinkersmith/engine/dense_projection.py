"""A joined projection of a Llama-shaped model with an adapter's updates: forward and backward.

Axes: N rows of a block, M rows in all, R rank of the adapter, n trained layers of a projection.
"""

from dataclasses import dataclass

import torch

from tinkersmith.engine import float8
from tinkersmith.engine.dense_layers import DenseLayer, Projection
from tinkersmith.engine.head import add_gradient
from tinkersmith.engine.lora import Adapter


@dataclass(frozen=True, slots=True)
class Update:
    """An adapter's part in a projection, in the base model's dtype."""

    adapter: Adapter
    a: torch.Tensor  # (n R, in): the A matrices of its n trained layers
    b: list[torch.Tensor]  # n of (out, R)
    columns: list[slice]  # where in the projection's output each of them adds
    paths: list[str]

    def ranks(self) -> list[slice]:
        rank = self.adapter.config.rank
        return [slice(i * rank, (i + 1) * rank) for i in range(len(self.b))]


@dataclass(frozen=True, slots=True)
class LayerUpdates:
    qkv: Update | None
    output: Update | None
    gate_up: Update | None
    down: Update | None


def layer_updates(layer: DenseLayer, adapter: Adapter | None) -> LayerUpdates:
    """The adapter's matrices as this layer's projections use them."""
    return LayerUpdates(
        qkv=update_of(layer.qkv, adapter),
        output=update_of(layer.output, adapter),
        gate_up=update_of(layer.gate_up, adapter),
        down=update_of(layer.down, adapter),
    )


def update_of(projection: Projection, adapter: Adapter | None) -> Update | None:
    if adapter is None:
        return None
    dtype = projection.dtype
    a, b, columns, paths = [], [], [], []
    start = 0
    for path, width in zip(projection.paths, projection.sizes, strict=True):
        if f"{path}.lora_A" in adapter.weights:
            a.append(adapter.weights[f"{path}.lora_A"].detach())
            b.append(adapter.weights[f"{path}.lora_B"].detach().to(dtype))
            columns.append(slice(start, start + width))
            paths.append(path)
        start += width
    return Update(adapter, torch.cat(a).to(dtype), b, columns, paths) if paths else None


def outputs(
    rows: int, projection: Projection, update: Update | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what `project` gives: (M, out) and (M, n R)."""
    weight, dtype = projection.weight, projection.dtype
    widths = len(weight), 0 if update is None else len(update.a)
    output, low = (weight.new_empty(rows, width, dtype=dtype) for width in widths)
    return output, low


def project(
    x: torch.Tensor,  # (N, in)
    projection: Projection,
    update: Update | None,
    output: torch.Tensor,  # (N, out)
    low: torch.Tensor,  # (N, n R)
) -> None:
    """Writes x W^T + b, the adapter's part added, to `output`, and x A^T to `low`."""
    if projection.scale is None:
        torch.mm(x, projection.weight.T, out=output)
    else:
        float8.product(x, projection.weight, projection.scale, output)
    if projection.bias is not None:
        output += projection.bias
    if update is None:
        return
    torch.mm(x, update.a.T, out=low)
    for rank, columns, b in zip(update.ranks(), update.columns, update.b, strict=True):
        output[:, columns].addmm_(low[:, rank], b.T, alpha=update.adapter.scaling)


def low_gradient(grad: torch.Tensor, update: Update | None) -> torch.Tensor | None:
    """(N, out) -> (N, n R), the gradient of x A^T."""
    if update is None:
        return None
    parts = [
        (grad[:, columns] @ b).mul_(update.adapter.scaling)
        for columns, b in zip(update.columns, update.b, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def input_gradient(
    grad: torch.Tensor, projection: Projection, update: Update | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N, out) -> the input's gradient (N, in), and that of x A^T (N, n R)."""
    if projection.scale is None:
        grad_x = grad @ projection.weight
    else:
        grad_x = float8.input_product(grad, projection.weight, projection.scale)
    grad_low = low_gradient(grad, update)
    if update is not None and grad_low is not None:
        grad_x.addmm_(grad_low, update.a)
    return grad_x, grad_low


def add_gradients(
    update: Update | None,
    grad: torch.Tensor,  # (N, out)
    x: torch.Tensor,  # (N, in), what went in
    grad_low: torch.Tensor | None,  # (N, n R)
    low: torch.Tensor,  # (N, n R)
) -> None:
    """Adds the LoRA gradients of a block of rows to the adapter's."""
    if update is None or grad_low is None:
        return
    adapter = update.adapter
    for rank, columns, path in zip(update.ranks(), update.columns, update.paths, strict=True):
        grad_b = (grad[:, columns].T @ low[:, rank]).float().mul_(adapter.scaling)
        add_gradient(adapter, f"{path}.lora_B", grad_b)
    grad_a = (grad_low.T @ x).float()  # (n R, in)
    for rank, path in zip(update.ranks(), update.paths, strict=True):
        add_gradient(adapter, f"{path}.lora_A", grad_a[rank])
