"""Tensors -> what C++ functions take: addresses, and the structures of interface.h.

Axes: I and O input and output size of a projection, R rank of an adapter, C its trained layers
there.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkersmith.engine.kernels.native.interface import INTERFACE
from tinkersmith.engine.model.projection import Projection, RowUpdates, Update

_JOINED = INTERFACE.constants["JOINED_LAYERS"]


def address(tensor: torch.Tensor | None) -> int | None:
    """The address of the first number. The tensor must be contiguous; None gives None."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def row_addresses(numbers: np.ndarray) -> Sequence[int]:
    """The address of the first number of each row of a contiguous array."""
    assert numbers.flags.c_contiguous
    first = numbers.ctypes.data
    return range(first, first + numbers.nbytes, numbers.strides[0])


@dataclass(frozen=True, slots=True)
class PreparedUpdates:
    """What C++ functions take of `RowUpdates`."""

    groups: ctypes.Array[ctypes.Structure]
    width: int  # the largest C R
    most: int  # rows of a group


def prepared_updates(updates: RowUpdates) -> PreparedUpdates:
    """What is made once of `updates`, and lives as long."""
    if updates.prepared is None:
        narrow = any(update.a.dtype == torch.bfloat16 for _, update in updates.groups)
        kind = "Bfloat16RowUpdate" if narrow else "RowUpdate"
        structures = [_row_update(kind, rows, update) for rows, update in updates.groups]
        updates.prepared = PreparedUpdates(
            (INTERFACE.structures[kind] * len(structures))(*structures),
            max((len(update.a) for _, update in updates.groups), default=0),
            max((rows.stop - rows.start for rows, _ in updates.groups), default=0),
        )
    assert isinstance(updates.prepared, PreparedUpdates)
    return updates.prepared


def _row_update(kind: str, rows: slice, update: Update) -> ctypes.Structure:
    parts, missing = update.parts, [0] * (_JOINED - len(update.parts))
    # Few rows in fp32 are added faster where B lies in memory as (R, O).
    b = [part.b.T if kind == "RowUpdate" else part.b for part in parts]
    return INTERFACE.fill(
        kind,
        first=rows.start,
        rows=rows.stop - rows.start,
        a=address(update.a),
        layers=len(parts),
        rank=parts[0].b.shape[1],
        b=(*map(address, b), *[None] * len(missing)),
        columns=(*(part.columns.start for part in parts), *missing),
        outputs=(*(len(part.b) for part in parts), *missing),
    )


def bfloat16_linear(projection: Projection, updates: RowUpdates) -> ctypes.Structure:
    """A projection in bf16, and what is added to it. `updates` must live as long."""
    return INTERFACE.fill(
        "Linear",
        weight=address(projection.weight),
        bias=address(projection.bias),
        outputs=(*projection.sizes, *[0] * (_JOINED - len(projection.sizes))),
        inputs=projection.weight.shape[1],
        groups=len(updates.groups),
        updates=ctypes.addressof(prepared_updates(updates).groups),
    )


def float32_linear(projection: Projection, updates: RowUpdates) -> ctypes.Structure:
    """Like `bfloat16_linear`, of a projection that is computed in fp32."""
    weight, is_narrow = projection.weight, projection.weight.dtype == torch.bfloat16
    return INTERFACE.fill(
        "Float32Linear",
        weight=None if is_narrow else address(weight),
        narrow_weight=address(weight) if is_narrow else None,
        bias=address(projection.bias),
        outputs=(*projection.sizes, *[0] * (_JOINED - len(projection.sizes))),
        inputs=weight.shape[1],
        groups=len(updates.groups),
        updates=ctypes.addressof(prepared_updates(updates).groups),
    )
