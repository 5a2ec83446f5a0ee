"""A step of decoding in bf16 by the C++ functions.

Axes: B sequences that decode together, S positions in the KV cache of a slot, T tokens of a part of
a prompt, G key/value heads, D head size, H hidden size, V vocabulary, Y blocks of it, K tokens per
sequence, C layers joined in one projection that the adapter trains, R rank of the adapter.
"""

import ctypes
from collections.abc import Iterator, Sequence

import torch

from tinkersmith.engine.kernels.native.interface import INTERFACE, InterfaceError
from tinkersmith.engine.kernels.native.kernels import NativeProducts, address, joined_layers
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import (
    DenseLayer,
    DenseModel,
    LayerRowUpdates,
    LayerUpdates,
    RotaryTables,
)
from tinkersmith.engine.model.kernels import BLOCK, ExactLogits
from tinkersmith.engine.model.projection import Part, Projection, Update

_PANEL = INTERFACE.constants["PANEL"]  # positions of a panel of keys
_JOINED = INTERFACE.constants["JOINED_LAYERS"]
if INTERFACE.constants["VOCABULARY_BLOCK"] != BLOCK:
    raise InterfaceError("VOCABULARY_BLOCK of interface.h is not BLOCK of model/kernels.py")


class NativeLayers:
    """`DecodingLayers` in bf16: one step through all layers is one call, of rows of one adapter.

    Every slot has a KV cache of its own, so attention reads the positions of one sequence only.
    """

    def __init__(
        self,
        model: DenseModel,
        slots: int,
        products: NativeProducts,
    ) -> None:
        self.model, self.products = model, products
        # Those that `layers` and `rank` are made of.
        self.updates: Sequence[LayerUpdates] | Sequence[LayerRowUpdates] = []
        self.lengths: list[int] = []
        # The cache of each slot, for all layers, in the panels of interface.h. Positions that are
        # not written yet are 0.
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.capacities: list[int] = []
        self.resize(slots)

    def put(self, slot: int, parts: Sequence[KeysAndValues]) -> None:
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        self.capacities[slot] = 0
        self._reserve(slot, self.lengths[slot] + 1)
        start = 0
        for part in parts:
            for layer, (key, value) in enumerate(part):
                self._fill(slot, layer, start, key, value)
            start += part[0][0].shape[1]

    def move(self, source: int, target: int) -> None:
        self.lengths[target] = self.lengths[source]
        self.keys[target], self.values[target] = self.keys[source], self.values[source]
        self.capacities[target] = self.capacities[source]
        self._empty(source)

    def resize(self, slots: int) -> None:
        for numbers in (self.lengths, self.capacities):
            numbers += [0] * (slots - len(numbers))
            del numbers[slots:]
        for caches in (self.keys, self.values):
            caches += [self.model.final_norm.new_empty(0)] * (slots - len(caches))
            del caches[slots:]

    def held(self) -> int:
        return sum(cache.nbytes for caches in (self.keys, self.values) for cache in caches)

    def step(
        self,
        x: torch.Tensor,
        slots: Sequence[int],
        rotary: RotaryTables,
        updates: Sequence[LayerUpdates] | Sequence[LayerRowUpdates],
    ) -> torch.Tensor:
        assert list(slots) == list(range(len(x)))  # as always with one adapter
        self._adopt(updates)
        model, (count, hidden) = self.model, x.shape
        for slot in range(count):
            if self.lengths[slot] + 1 > self.capacities[slot]:
                self._grow(slot)
        lengths, capacities = (
            torch.tensor(numbers[:count]) for numbers in (self.lengths, self.capacities)
        )
        keys, values = self.keys[:count], self.values[:count]
        # For each slot: where its first layer begins, and how far away the next layer is.
        key_places, value_places = (
            torch.tensor([cache.data_ptr() for cache in caches]) for caches in (keys, values)
        )
        key_steps, value_steps = (
            torch.tensor([cache[0].numel() for cache in caches]) for caches in (keys, values)
        )
        cosine, sine = rotary
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        x = x.contiguous()
        self.products.library.functions.tinkersmith_decode(
            *(count, hidden, model.key_heads, model.heads // model.key_heads, model.head_size),
            *(len(model.layers), ctypes.addressof(self.layers)),
            *(self.rank, model.eps, model.scale),
            *(cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)),
            *(address(lengths), address(capacities)),
            *(address(key_places), address(key_steps)),
            *(address(value_places), address(value_steps)),
            address(x),
        )
        return x

    def _adopt(self, updates: Sequence[LayerUpdates] | Sequence[LayerRowUpdates]) -> None:
        """Let the steps from now on add these updates."""
        if updates is self.updates:
            return
        own = [one for one in updates if isinstance(one, LayerUpdates)]
        assert len(own) == len(updates)  # see Decoding.groups_adapters
        self.updates = updates
        layers = list(map(_layer, self.model.layers, own))
        self.layers = (INTERFACE.structures["Layer"] * len(layers))(*layers)
        # All trained layers have the same rank.
        self.rank = max((part.b.shape[1] for part in _trained(own)), default=0)

    def _empty(self, slot: int) -> None:
        self.keys[slot] = self.values[slot] = self.model.final_norm.new_empty(0)
        self.capacities[slot] = 0

    def _reserve(self, slot: int, positions: int) -> None:
        """Allocates an empty cache for so many positions, and a quarter more."""
        model, layers = self.model, len(self.model.layers)
        capacity = -(-max(positions * 5 // 4, 2 * _PANEL) // _PANEL) * _PANEL  # S
        panels = -(-model.head_size // _PANEL)  # of values
        empty = model.final_norm.new_zeros
        self.keys[slot] = empty(layers, model.key_heads, capacity * model.head_size)
        self.values[slot] = empty(layers, model.key_heads, panels, capacity * _PANEL)
        self.capacities[slot] = capacity

    def _grow(self, slot: int) -> None:
        keys, values = self.keys[slot], self.values[slot]
        self._reserve(slot, self.lengths[slot] + 1)
        # More positions are more panels of keys, at the end, and longer panels of values.
        self.keys[slot][..., : keys.shape[-1]] = keys
        self.values[slot][..., : values.shape[-1]] = values

    def _fill(
        self,
        slot: int,
        layer: int,
        start: int,  # the first position
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
    ) -> None:
        groups, count, size = key.shape
        assert key.stride() == value.stride() and key.stride()[1:] == (size, 1)
        self.products.library.functions.tinkersmith_fill_cache(
            *(groups, size, self.capacities[slot], start, count),
            *(key.data_ptr(), value.data_ptr(), key.stride(0)),
            *(self.keys[slot][layer].data_ptr(), self.values[slot][layer].data_ptr()),
        )


def _layer(layer: DenseLayer, updates: LayerUpdates) -> ctypes.Structure:
    return INTERFACE.fill(
        "Layer",
        attention_norm=address(layer.attention_norm),
        query_norm=address(layer.query_norm),
        key_norm=address(layer.key_norm),
        mlp_norm=address(layer.mlp_norm),
        qkv=_linear(layer.qkv, updates.qkv),
        output=_linear(layer.output, updates.output),
        gate_up=_linear(layer.gate_up, updates.gate_up),
        down=_linear(layer.down, updates.down),
    )


def _linear(projection: Projection, update: Update | None) -> ctypes.Structure:
    missing = _JOINED - len(projection.sizes)
    joined = [trained for _, trained in joined_layers(projection, update)]
    b = [None if trained is None else address(trained.b) for trained in joined]
    return INTERFACE.fill(
        "Linear",
        weight=address(projection.weight),
        bias=address(projection.bias),
        a=None if update is None else address(update.a),
        b=(*b, *[None] * missing),
        outputs=(*projection.sizes, *[0] * missing),
        inputs=projection.weight.shape[1],
        ranks=0 if update is None else len(update.a),
    )


def _trained(updates: Sequence[LayerUpdates]) -> Iterator[Part]:
    for layer in updates:
        for update in layer.in_order:
            yield from () if update is None else update.parts


def native_logits(
    hidden: torch.Tensor,  # (B, H)
    projection: Projection,
    update: Update | None,
    products: NativeProducts,
    *,
    written: bool = True,
) -> tuple[torch.Tensor | None, ExactLogits]:  # (B, V) if `written`
    """The output layer's logits in bf16, and what is known of them before they are rounded."""
    count, vocabulary = len(hidden), len(projection.weight)
    low = b = None
    if update is not None:
        low, [trained] = hidden.new_empty(count, len(update.a)), update.parts  # (B, R)
        b = trained.b
        products.linear(hidden, update.a, low)
    logits = hidden.new_empty(count, vocabulary) if written else None
    blocks = -(-vocabulary // BLOCK)  # Y
    highest, sums = torch.empty(count, blocks), torch.empty(count, blocks)
    most_likely = torch.empty(count, blocks, dtype=torch.int32)
    products.library.functions.tinkersmith_logits(
        *(count, vocabulary, hidden.shape[1], address(hidden), address(projection.weight)),
        *(address(low), 0 if low is None else low.shape[1], address(b)),
        *(address(projection.bias), address(logits)),
        *(address(highest), address(most_likely), address(sums)),
    )

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:  # (B, K) -> (B, K) in fp32
        exact = (hidden.float()[:, None] * projection.weight[tokens]).sum(-1)
        if low is not None and b is not None:
            exact += (low.float()[:, None] * b[tokens]).sum(-1)
        return exact if projection.bias is None else exact + projection.bias[tokens]

    return logits, ExactLogits(highest, most_likely, sums, logits_of)
