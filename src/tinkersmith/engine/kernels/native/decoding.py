"""A step of decoding in bf16 by the C++ functions (see dense_decoding.py).

Axes: B active rows, S positions of a slot, Q query heads, G key/value heads, R = Q / G, D head
size, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch

from tinkersmith.engine.kernels.native.kernels import NativeProducts, address, of_columns
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import DenseLayer, DenseModel, LayerUpdates, RotaryTables
from tinkersmith.engine.model.kernels import BLOCK, ExactLogits
from tinkersmith.engine.model.projection import Part, Projection, Update

_STEP = 64  # positions of a panel of keys


class NativeLayers:
    """A step of all layers is one call. Every slot has memory of its own for keys and values, and
    attention reads its own positions only."""

    def __init__(
        self,
        model: DenseModel,
        updates: Sequence[LayerUpdates],
        slots: int,
        products: NativeProducts,
    ) -> None:
        self.model, self.products, self.updates = model, products, updates
        self.table = torch.tensor(list(map(_addresses, model.layers, updates)))
        ranks = {part.b.shape[1] for part in _trained(updates)}
        self.rank = max(ranks, default=0)  # they have one
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

    def step(self, x: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
        model, (count, hidden) = self.model, x.shape
        for slot in range(count):
            if self.lengths[slot] + 1 > self.capacities[slot]:
                self._grow(slot)
        lengths, capacities = (
            torch.tensor(numbers[:count]) for numbers in (self.lengths, self.capacities)
        )
        keys, values = self.keys[:count], self.values[:count]
        # Of each slot: where its first layer begins, and how far the next one is.
        places = [torch.tensor([one.data_ptr() for one in store]) for store in (keys, values)]
        steps = [torch.tensor([one[0].numel() for one in store]) for store in (keys, values)]
        cosine, sine = rotary
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        x = x.contiguous()
        self.products.library.functions.tinkersmith_decode(
            *(count, hidden, model.key_heads, model.heads // model.key_heads, model.head_size),
            *(len(model.layers), address(self.table), self.rank, model.eps, model.scale),
            *(cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)),
            *(address(lengths), address(capacities)),
            *(address(places[0]), address(steps[0]), address(places[1]), address(steps[1])),
            address(x),
        )
        return x

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


def _addresses(layer: DenseLayer, updates: LayerUpdates) -> list[int]:
    """What decoding.cpp's Layer holds."""
    norms = layer.attention_norm, layer.query_norm, layer.key_norm, layer.mlp_norm
    found = [address(norm) or 0 for norm in norms]
    for projection, update in zip(layer.projections, updates.in_order, strict=True):
        parts = of_columns(projection, update)
        missing = [0] * (3 - len(projection.sizes))
        found += [address(projection.weight) or 0, address(projection.bias) or 0]
        found += [0 if update is None else address(update.a) or 0]
        found += [0 if part is None else address(part.b) or 0 for _, part in parts] + missing
        found += [*projection.sizes, *missing]
        found += [projection.weight.shape[1], 0 if update is None else len(update.a)]
    return found


def _trained(updates: Sequence[LayerUpdates]) -> Iterator[Part]:
    for one in updates:
        for update in one.in_order:
            yield from () if update is None else update.parts


def native_logits(
    hidden: torch.Tensor,  # (B, H)
    projection: Projection,
    update: Update | None,
    products: NativeProducts,
    *,
    written: bool = True,
) -> tuple[torch.Tensor | None, ExactLogits]:  # (B, V), if they are to be written
    count, vocabulary = len(hidden), len(projection.weight)
    low = part = None
    if update is not None:
        low, [part] = hidden.new_empty(count, len(update.a)), update.parts
        products.linear(hidden, update.a, low)
    logits = hidden.new_empty(count, vocabulary) if written else None
    blocks = -(-vocabulary // BLOCK)
    highest, sums = torch.empty(count, blocks), torch.empty(count, blocks)
    likeliest = torch.empty(count, blocks, dtype=torch.int32)
    products.library.functions.tinkersmith_logits(
        *(count, vocabulary, hidden.shape[1], address(hidden), address(projection.weight)),
        *(address(low), 0 if low is None else low.shape[1], address(part.b if part else None)),
        *(address(projection.bias), address(logits)),
        *(address(highest), address(likeliest), address(sums)),
    )

    def of(tokens: torch.Tensor) -> torch.Tensor:
        found = (hidden.float()[:, None] * projection.weight[tokens]).sum(-1)  # (B, K)
        if low is not None and part is not None:
            found += (low.float()[:, None] * part.b[tokens]).sum(-1)
        return found if projection.bias is None else found + projection.bias[tokens]

    return logits, ExactLogits(highest, likeliest, sums, of)
