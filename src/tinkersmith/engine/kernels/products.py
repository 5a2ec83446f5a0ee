"""The products of the dense path by torch, on every device."""

from dataclasses import dataclass

import torch

from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.model import dtype_cast
from tinkersmith.engine.model.kernels import Elementwise
from tinkersmith.engine.model.projection import Projection


@dataclass(frozen=True, slots=True)
class TorchProducts:
    """By torch, on every device."""

    elementwise: Elementwise = TORCH_ELEMENTWISE
    product: dtype_cast.LinearProduct = dtype_cast.linear_product

    def multiply(self, x: torch.Tensor, projection: Projection, output: torch.Tensor) -> None:
        """output = x W^T: (N, in) -> (N, out)."""
        self.product(x, projection.weight, output)

    def multiply_back(self, grad: torch.Tensor, projection: Projection) -> torch.Tensor:
        """grad W: (N, out) -> (N, in)."""
        return dtype_cast.input_gradient(grad, projection.weight)

    def project(self, x, projection, update, output, low, residual=None) -> None:
        self.multiply(x, projection, output)
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
        grad_x = self.multiply_back(grad, projection)
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
