"""Linear layers joined in one projection, and an adapter's matrices as the projection uses them.

Axes: N rows, I, O inputs and outputs of a projection, R rank of the adapter (made even), C trained
layers of a projection.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from tinkersmith.engine.model.lora import Adapter


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear layers with one input, their weights joined along the output."""

    weight: torch.Tensor  # (O, I), may be in a narrower dtype
    dtype: torch.dtype  # of inputs and outputs
    bias: torch.Tensor | None  # (O,)
    paths: tuple[str, ...]  # the layers' module paths, in the order of their outputs
    sizes: tuple[int, ...]  # the width of each one's output


@dataclass(frozen=True, slots=True)
class Part:
    """One trained layer of a projection."""

    path: str
    columns: slice  # of the projection's output
    ranks: slice  # of x A^T
    b: torch.Tensor  # (O, R), times the adapter's scaling


@dataclass(frozen=True, slots=True)
class Update:
    """An adapter's matrices in a projection, in the base model's dtype.

    Ranks are even: an odd one gets a row of zeros.
    """

    adapter: Adapter
    a: torch.Tensor  # (C R, I): the A matrices of its C trained layers
    parts: list[Part]

    def gradient(self, part: Part, side: str) -> torch.Tensor:
        """The gradient of A (rank, I) or B (O, rank) so far, in fp32, to be added to."""
        weight = self.adapter.weights[f"{part.path}.lora_{side}"]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad


@dataclass(slots=True)
class RowUpdates:
    """The updates of several adapters in one projection, each for some rows of its input.

    Rows of no adapter are in none of them.
    """

    groups: tuple[tuple[slice, Update], ...]
    prepared: object = None  # what a kernel has made of them, for the next time

    def of(self, block: slice) -> "RowUpdates":
        """The updates of a block of rows, whose numbers then begin at the block's first row."""
        cut = [
            (slice(max(rows.start, block.start), min(rows.stop, block.stop)), update)
            for rows, update in self.groups
        ]
        first = block.start
        return RowUpdates(
            tuple(
                (slice(rows.start - first, rows.stop - first), update)
                for rows, update in cut
                if rows.start < rows.stop
            )
        )


def of_block(update: Update | RowUpdates | None, block: slice) -> Update | RowUpdates | None:
    """What a block of a projection's rows needs of the updates of all."""
    return update.of(block) if isinstance(update, RowUpdates) else update


def update_of(projection: Projection, adapter: Adapter | None) -> Update | None:
    if adapter is None:
        return None
    a: list[torch.Tensor] = []
    parts: list[Part] = []
    start, odd = 0, adapter.config.rank % 2
    rank = adapter.config.rank + odd
    for path, width in zip(projection.paths, projection.sizes, strict=True):
        if f"{path}.lora_A" in adapter.weights:
            trained_a, b = (adapter.weights[f"{path}.lora_{side}"].detach() for side in "AB")
            trained_a, b = pad(trained_a, (0, 0, 0, odd)), pad(b, (0, odd))
            ranks = slice(len(parts) * rank, (len(parts) + 1) * rank)
            scaled = (b * adapter.scaling).to(projection.dtype)
            parts.append(Part(path, slice(start, start + width), ranks, scaled))
            a.append(trained_a)
        start += width
    return Update(adapter, torch.cat(a).to(projection.dtype), parts) if parts else None


def stored_by_rank(update: Update | None) -> Update | None:
    """An equal update whose matrices B lie in memory as (R, O): few rows are added faster so."""
    if update is None:
        return None
    parts = [replace(part, b=part.b.T.contiguous().T) for part in update.parts]
    return replace(update, parts=parts)


def outputs(
    rows: int, projection: Projection, update: Update | RowUpdates | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Buffers for the results of `Products.project`: (N, O) and (N, C R), of one adapter."""
    weight, dtype = projection.weight, projection.dtype
    widths = len(weight), len(update.a) if isinstance(update, Update) else 0
    output, low = (weight.new_empty(rows, width, dtype=dtype) for width in widths)
    return output, low
