"""The products of the dense path by torch, on every device.

Axes: N rows of a block, I and O input and output size of a linear layer, R rank of the adapter,
C layers joined in one projection that the adapter trains, F width of the MLP.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.model import dtype_cast
from tinkersmith.engine.model.kernels import Elementwise
from tinkersmith.engine.model.projection import Projection, RowUpdates, Update

# x (N, I), updates -> output (N, O), to which x A^T B^T of each group of rows is added
AddRowUpdates = Callable[[torch.Tensor, RowUpdates, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class TorchProducts:
    """`Products` by torch, on every device."""

    elementwise: Elementwise = TORCH_ELEMENTWISE
    product: dtype_cast.LinearProduct = dtype_cast.linear_product
    add_rows: AddRowUpdates | None = None  # None: by `product`

    def multiply(self, x: torch.Tensor, projection: Projection, output: torch.Tensor) -> None:
        """output = x W^T: (N, I) -> (N, O)."""
        self.product(x, projection.weight, output)

    def multiply_back(self, grad: torch.Tensor, projection: Projection) -> torch.Tensor:
        """grad W: (N, O) -> (N, I)."""
        return dtype_cast.input_gradient(grad, projection.weight)

    def project(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        output: torch.Tensor,  # (N, O)
        low: torch.Tensor,  # (N, C R)
        residual: torch.Tensor | None = None,  # (N, O)
    ) -> None:
        self.multiply(x, projection, output)
        if projection.bias is not None:
            output += projection.bias
        if isinstance(update, RowUpdates):
            if self.add_rows is None or not update.groups:
                add_row_updates(x, update, output, self.product)
            else:
                self.add_rows(x, update, output)
        elif update is not None:
            add_update(x, update, output, low, self.product)
        if residual is not None:
            output += residual

    def project_swiglu(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        gate_up: torch.Tensor,  # (N, 2 F)
        low: torch.Tensor,  # (N, C R)
    ) -> torch.Tensor:  # (N, F)
        self.project(x, projection, update, gate_up, low)
        activated = gate_up.new_empty(len(x), gate_up.shape[1] // 2)
        self.elementwise.swiglu(gate_up, activated)
        return activated

    def input_gradient(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # (N, I), (N, C R)
        grad_x = self.multiply_back(grad, projection)
        grad_low = self.low_gradient(grad, update)
        if update is not None and grad_low is not None:
            grad_x.addmm_(grad_low, update.a)
        return grad_x, grad_low

    def input_gradient_swiglu(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # (N, F), (N, 2 F), (N, C R)
        grad_activated, grad_low = self.input_gradient(grad, projection, update)
        activated, grad_gate_up = torch.empty_like(grad_activated), torch.empty_like(gate_up)
        self.elementwise.swiglu_backward(grad_activated, gate_up, activated, grad_gate_up)
        return activated, grad_gate_up, grad_low

    def low_gradient(
        self, grad: torch.Tensor, update: Update | None
    ) -> torch.Tensor | None:  # (N, O) -> (N, C R)
        if update is None:
            return None
        of_layers = [grad[:, trained.columns] @ trained.b for trained in update.parts]
        return of_layers[0] if len(of_layers) == 1 else torch.cat(of_layers, -1)

    def add_gradients(
        self,
        update: Update | None,
        grad: torch.Tensor,  # (N, O)
        x: torch.Tensor,  # (N, I)
        grad_low: torch.Tensor | None,  # (N, C R)
        low: torch.Tensor,  # (N, C R)
    ) -> None:
        if update is None or grad_low is None:
            return
        rank, scaling = update.adapter.config.rank, update.adapter.scaling
        grad_a = grad_low.T @ x  # (C R, I)
        for trained in update.parts:
            grad_b = grad[:, trained.columns].T @ low[:, trained.ranks]
            update.gradient(trained, "B").add_(grad_b[:, :rank], alpha=scaling)
            update.gradient(trained, "A").add_(grad_a[trained.ranks][:rank])


def add_update(
    x: torch.Tensor,  # (N, I)
    update: Update,
    output: torch.Tensor,  # (N, O)
    low: torch.Tensor,  # (N, C R)
    product: dtype_cast.LinearProduct,
) -> None:
    """output += x A^T B^T; `low` becomes x A^T."""
    product(x, update.a, low)
    for trained in update.parts:
        output[:, trained.columns].addmm_(low[:, trained.ranks], trained.b.T)


def add_row_updates(
    x: torch.Tensor,  # (N, I)
    updates: RowUpdates,
    output: torch.Tensor,  # (N, O)
    product: dtype_cast.LinearProduct,
) -> None:
    """`add_update` of each adapter, to its own rows."""
    for rows, update in updates.groups:
        low = x.new_empty(rows.stop - rows.start, len(update.a))
        add_update(x[rows], update, output[rows], low, product)
