"""LoRA adapters on a shared, frozen base, switched without copying.

An adapter is a set of fp32 matrices A (R, in) and B (out, R); a layer's output becomes
x W^T + (alpha / R) (x A^T) B^T (Hu et al. 2021, LoRA, eq. 3). alpha is 32, as in Tinker's cloud.
Layers of experts have several of each: see experts.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear, pad

from tinkersmith.engine.messages import LoraConfig

ALPHA = 32


@dataclass(slots=True)
class Adapter:
    """An adapter: `weights` maps "<module path>.lora_A" / ".lora_B" to fp32 parameters."""

    config: LoraConfig
    weights: dict[str, nn.Parameter]

    @property
    def scaling(self) -> float:
        return ALPHA / self.config.rank

    @property
    def module_paths(self) -> list[str]:
        return [name.removesuffix(".lora_A") for name in self.weights if name.endswith(".lora_A")]

    def clear_gradients(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def clear(self) -> None:
        """Free the memory of all tensors; their names stay."""
        for weight in self.weights.values():
            weight.data = weight.data.new_empty(0)
            weight.grad = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The shape of a layer that a LoRA can train; a shared expert matrix has a leading (1,)."""

    in_size: int
    out_size: int
    a_lead: tuple[int, ...] = ()
    b_lead: tuple[int, ...] = ()


class LoraLinear(nn.Module):
    """A frozen linear layer that adds the active adapter's product, if that trains this layer."""

    def __init__(self, base: nn.Linear, path: str) -> None:
        super().__init__()
        self.base = base
        self.path = path

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        output = self.base(x)
        if _active is None or (a := _active.weights.get(f"{self.path}.lora_A")) is None:
            return output
        b = _active.weights[f"{self.path}.lora_B"]
        # fp32 also on a bf16 base: the update is small, and its gradient must not be rounded away.
        update = linear(linear(x.float(), a), b) * _active.scaling
        return output + update.to(output.dtype)


class JoinedLoraLinear(nn.Module):
    """A frozen linear layer whose first rows are several projections, each with a LoRA of its own.

    Rows that are left over stay as they are.
    """

    def __init__(self, base: nn.Linear, path: str, parts: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.parts = tuple(parts)  # path and rows of each projection
        self.left_over = base.out_features - sum(rows for _, rows in parts)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        output = self.base(x)
        if _active is None or f"{self.parts[0][0]}.lora_A" not in _active.weights:
            return output
        updates: list[torch.Tensor] = []
        for path, _ in self.parts:  # in fp32, as in LoraLinear
            a, b = (_active.weights[f"{path}.lora_{side}"] for side in "AB")
            updates.append(linear(linear(x.float(), a), b))
        update = pad(torch.cat(updates, -1), (0, self.left_over)) * _active.scaling
        return output + update.to(output.dtype)


_active: Adapter | None = None


@contextmanager
def using(adapter: Adapter | None) -> Iterator[None]:
    """Let every LoraLinear add `adapter` inside the block. Only the engine thread calls this."""
    global _active
    before, _active = _active, adapter
    try:
        yield
    finally:
        _active = before


def active() -> Adapter | None:
    return _active
