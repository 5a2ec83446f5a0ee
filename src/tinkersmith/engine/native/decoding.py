"""A step of decoding in bf16 by the C++ functions (see dense_decoding.py).

Axes: B active rows, S positions of a slot, Q query heads, G key/value heads, R = Q / G, D head
size, V vocabulary.
"""

from collections.abc import Sequence

import torch

from tinkersmith.engine.attention import KeysAndValues
from tinkersmith.engine.dense_layers import DenseModel, Turn
from tinkersmith.engine.dense_projection import Projection, Update
from tinkersmith.engine.drawing import BLOCK, ExactLogits
from tinkersmith.engine.native.kernels import NativeProducts, address

_STEP = 64  # positions of a panel of keys


class NativeCache:
    """Every slot has memory of its own, and attention reads its own positions only."""

    def __init__(self, model: DenseModel, slots: int, products: NativeProducts) -> None:
        self.model, self.products = model, products
        self.lengths = [0] * slots
        # (layers, S G D) each, as panels (see decoding.cpp); what is not written yet is zero.
        self.keys = [model.final_norm.new_empty(0)] * slots
        self.values = [model.final_norm.new_empty(0)] * slots
        self.capacities = [0] * slots

    def put(self, slot: int, parts: Sequence[KeysAndValues]) -> None:
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        self.capacities[slot] = 0
        self._make_room(slot, self.lengths[slot] + 1)
        start = 0
        for part in parts:
            for layer, (key, value) in enumerate(part):
                self._remember(slot, layer, start, key, value)
            start += part[0][0].shape[1]

    def move(self, source: int, target: int) -> None:
        self.lengths[target] = self.lengths[source]
        self.keys[target], self.values[target] = self.keys[source], self.values[source]
        self.capacities[target], self.capacities[source] = self.capacities[source], 0

    def begin(self, turn: Turn) -> None:
        self.turn, self.active = turn, len(turn[0])
        for slot in range(self.active):
            if self.lengths[slot] + 1 > self.capacities[slot]:
                self._grow(slot)
        self.positions, self.rooms = (
            torch.tensor(numbers[: self.active]) for numbers in (self.lengths, self.capacities)
        )
        # Addresses of each slot's first layer, and the bytes from one layer to the next.
        stores = self.keys[: self.active], self.values[: self.active]
        self.firsts = torch.tensor([[one.data_ptr() for one in store] for store in stores])
        self.steps = torch.tensor([[one[0].nbytes for one in store] for store in stores])

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        model, dense = self.model, self.model.layers[layer]
        count, groups, size = len(qkv), model.key_heads, model.head_size
        query = qkv.new_empty(groups, count, model.heads // groups, size)
        key, value = (qkv.new_empty(groups, count, size) for _ in range(2))
        self.products.elementwise.split_heads(
            *(qkv, dense.query_norm, dense.key_norm, model.eps, *self.turn, model.scale),
            *(query, key, value),
        )
        places = self.firsts + layer * self.steps  # (2, B)
        output = qkv.new_empty(count, model.heads * size)
        self.products.library.functions.tinkersmith_attend_past(
            *(groups, model.heads // groups, size, count),
            *(address(self.positions), address(self.rooms), *map(address, places)),
            *(address(query), address(key), address(value), address(output)),
        )
        return output

    def _make_room(self, slot: int, positions: int) -> None:
        """Empty memory for so many, and some more."""
        model = self.model
        capacity = -(-max(positions * 5 // 4, 2 * _STEP) // _STEP) * _STEP
        width = -(-model.head_size // _STEP) * _STEP
        like, layers = model.final_norm, len(model.layers)
        self.keys[slot] = like.new_zeros(layers, model.key_heads, capacity * model.head_size)
        self.values[slot] = like.new_zeros(
            layers, model.key_heads, width // _STEP, capacity * _STEP
        )
        self.capacities[slot] = capacity

    def _grow(self, slot: int) -> None:
        keys, values = self.keys[slot], self.values[slot]
        self._make_room(slot, self.lengths[slot] + 1)
        # Whole panels: those of keys follow each other, those of values have become longer.
        self.keys[slot][..., : keys.shape[-1]] = keys
        self.values[slot][..., : values.shape[-1]] = values

    def _remember(
        self, slot: int, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        groups, count, size = key.shape
        assert key.stride() == value.stride() and key.stride()[1:] == (size, 1)
        self.products.library.functions.tinkersmith_remember(
            *(groups, size, self.capacities[slot], start, count),
            *(key.data_ptr(), value.data_ptr(), key.stride(0)),
            *(self.keys[slot][layer].data_ptr(), self.values[slot][layer].data_ptr()),
        )


def native_logits(
    hidden: torch.Tensor,  # (B, H)
    projection: Projection,
    update: Update | None,
    products: NativeProducts,
) -> tuple[torch.Tensor, ExactLogits]:  # (B, V)
    count, vocabulary = len(hidden), len(projection.weight)
    low = part = None
    if update is not None:
        low, [part] = hidden.new_empty(count, len(update.a)), update.parts
        products.linear(hidden, update.a, low)
    logits = hidden.new_empty(count, vocabulary)
    blocks = -(-vocabulary // BLOCK)
    highest, sums = torch.empty(count, blocks), torch.empty(count, blocks)
    products.library.functions.tinkersmith_logits(
        *(count, vocabulary, hidden.shape[1], address(hidden), address(projection.weight)),
        *(address(low), 0 if low is None else low.shape[1], address(part.b if part else None)),
        *(address(projection.bias), address(logits)),
        *(address(highest), address(sums)),
    )

    def of(tokens: torch.Tensor) -> torch.Tensor:
        found = (hidden.float()[:, None] * projection.weight[tokens]).sum(-1)  # (B, K)
        if low is not None and part is not None:
            found += (low.float()[:, None] * part.b[tokens]).sum(-1)
        return found if projection.bias is None else found + projection.bias[tokens]

    return logits, ExactLogits(highest, sums, of)
