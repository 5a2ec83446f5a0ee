"""A joined projection of a Llama-shaped model with an adapter's updates: forward and backward.

Axes: N rows of a block, M rows in all, R rank of the adapter, n trained layers of a projection.
"""

from dataclasses import dataclass

import torch

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
        qkv=_update(layer.qkv, adapter),
        output=_update(layer.output, adapter),
        gate_up=_update(layer.gate_up, adapter),
        down=_update(layer.down, adapter),
    )


def _update(projection: Projection, adapter: Adapter | None) -> Update | None:
    if adapter is None:
        return None
    dtype = projection.weight.dtype
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
    weight = projection.weight
    width = 0 if update is None else len(update.a)
    return weight.new_empty(rows, len(weight)), weight.new_empty(rows, width)


def project(
    x: torch.Tensor,  # (N, in)
    projection: Projection,
    update: Update | None,
    output: torch.Tensor,  # (N, out)
    low: torch.Tensor,  # (N, n R)
) -> None:
    """Writes x W^T + b, the adapter's part added, to `output`, and x A^T to `low`."""
    torch.mm(x, projection.weight.T, out=output)
    if projection.bias is not None:
        output += projection.bias
    if update is None:
        return
    torch.mm(x, update.a.T, out=low)
    for rank, columns, b in zip(update.ranks(), update.columns, update.b, strict=True):
        output[:, columns].addmm_(low[:, rank], b.T, alpha=update.adapter.scaling)


def project_backward(
    grad: torch.Tensor,  # (N, out)
    x: torch.Tensor,  # (N, in), what went in
    projection: Projection,
    update: Update | None,
    low: torch.Tensor,  # (N, n R)
    *,
    input_wanted: bool = True,
) -> torch.Tensor:
    """Adds the LoRA gradients to the adapter's; returns that of the input, (N, in), if wanted."""
    grad_x = grad @ projection.weight if input_wanted else x.new_empty(0)
    if update is None:
        return grad_x
    adapter = update.adapter
    grad_low = torch.empty_like(low)
    for rank, columns, b, path in zip(
        update.ranks(), update.columns, update.b, update.paths, strict=True
    ):
        part = grad[:, columns]
        grad_low[:, rank] = (part @ b).mul_(adapter.scaling)
        grad_b = (part.T @ low[:, rank]).float().mul_(adapter.scaling)
        add_gradient(adapter, f"{path}.lora_B", grad_b)
    grad_a = (grad_low.T @ x).float()  # (n R, in)
    for rank, path in zip(update.ranks(), update.paths, strict=True):
        add_gradient(adapter, f"{path}.lora_A", grad_a[rank])
    return grad_x.addmm_(grad_low, update.a) if input_wanted else grad_x
