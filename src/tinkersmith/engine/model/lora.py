"""LoRA adapters on a shared, frozen base, switched without copying, or several at a time.

An adapter is a set of fp32 matrices A (R, in) and B (out, R); a layer's output becomes
x W^T + (alpha / R) (x A^T) B^T (Hu et al. 2021, LoRA, eq. 3). alpha is 32, as in Tinker's cloud.
Layers of experts have several of each: see experts.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import linear, pad

from tinkersmith.engine.messages import LoraConfig

ALPHA = 32


@dataclass(slots=True, eq=False)
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
class AdapterRows:
    """The rows of every layer's input to which an adapter is applied, where others have others."""

    adapter: Adapter
    rows: torch.Tensor  # (N,), their numbers


def adapter_runs(adapters: Sequence[Adapter | None]) -> list[tuple[Adapter | None, slice]]:
    """Neighbouring rows of one adapter, from the adapter of each row."""
    runs: list[tuple[Adapter | None, slice]] = []
    start = 0
    for adapter, rows in groupby(adapters):
        end = start + len(list(rows))
        runs.append((adapter, slice(start, end)))
        start = end
    return runs


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
        return _with_updates(self.base(x), x, self._update)

    def _update(self, x: torch.Tensor, adapter: Adapter) -> torch.Tensor | None:
        if (a := adapter.weights.get(f"{self.path}.lora_A")) is None:
            return None
        b = adapter.weights[f"{self.path}.lora_B"]
        # fp32 also on a bf16 base: the update is small, and its gradient must not be rounded away.
        return linear(linear(x.float(), a), b) * adapter.scaling


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
        return _with_updates(self.base(x), x, self._update)

    def _update(self, x: torch.Tensor, adapter: Adapter) -> torch.Tensor | None:
        if f"{self.parts[0][0]}.lora_A" not in adapter.weights:
            return None
        updates: list[torch.Tensor] = []
        for path, _ in self.parts:  # in fp32, as in LoraLinear
            a, b = (adapter.weights[f"{path}.lora_{side}"] for side in "AB")
            updates.append(linear(linear(x.float(), a), b))
        return pad(torch.cat(updates, -1), (0, self.left_over)) * adapter.scaling


Active = Adapter | Sequence[AdapterRows] | None
_active: Active = None


@contextmanager
def using(active_adapters: Active) -> Iterator[None]:
    """Let every layer add an adapter inside the block, or several, each to its own rows.

    Only the engine thread calls this.
    """
    global _active
    before, _active = _active, active_adapters
    try:
        yield
    finally:
        _active = before


def active() -> Active:
    return _active


def _with_updates(
    output: torch.Tensor,  # (..., O), may be written to where several adapters are active
    x: torch.Tensor,  # (..., I)
    update_of: Callable[[torch.Tensor, Adapter], torch.Tensor | None],
) -> torch.Tensor:
    if _active is None:
        return output
    if isinstance(_active, Adapter):
        update = update_of(x, _active)
        return output if update is None else output + update.to(output.dtype)
    flat, inputs = output.flatten(0, -2), x.flatten(0, -2)
    for group in _active:
        update = update_of(inputs[group.rows], group.adapter)
        if update is not None:
            flat.index_add_(0, group.rows, update.to(flat.dtype))
    return flat.view_as(output)
