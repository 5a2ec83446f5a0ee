"""A step of decoding by the C++ functions, in bf16 or fp32.

Axes: B sequences that decode together, S positions in the KV cache of a slot, T tokens of a part of
a prompt, G key/value heads, D head size, H hidden size, V vocabulary, Y blocks of it, K tokens per
sequence, N rows of an adapter, R its rank.
"""

import ctypes
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from tinkersmith.engine.kernels.decoding import project
from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.interface import INTERFACE, InterfaceError
from tinkersmith.engine.kernels.native.kernels import NativeProducts
from tinkersmith.engine.kernels.native.operands import (
    address,
    bfloat16_linear,
    float32_linear,
    row_addresses,
)
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import (
    DenseLayer,
    DenseModel,
    LayerRowUpdates,
    RotaryTables,
)
from tinkersmith.engine.model.kernels import BLOCK, ExactLogits, Products
from tinkersmith.engine.model.projection import Projection, RowUpdates

_LINEARS = "qkv", "output", "gate_up", "down"  # as `DenseLayer.projections`
if INTERFACE.constants["VOCABULARY_BLOCK"] != BLOCK:
    raise InterfaceError("VOCABULARY_BLOCK of interface.h is not BLOCK of model/kernels.py")


class NativeLayers:
    """`DecodingLayers`: one step through all layers is one call.

    Every slot has a KV cache of its own, so attention reads the positions of one sequence only.
    """

    def __init__(
        self,
        model: DenseModel,
        slots: int,
        library: Library,
    ) -> None:
        self.model = model
        self.in_fp32 = model.final_norm.dtype == torch.float32
        functions = library.functions
        # Positions of a panel of keys. Values have panels of as many numbers; in fp32 there is one,
        # as wide as a head.
        self.panel = INTERFACE.constants["FLOAT_PANEL" if self.in_fp32 else "PANEL"]
        width = -(-model.head_size // self.panel)
        if self.in_fp32:
            self.value_panels, self.value_width = 1, width * self.panel
            self.decode = functions.tinkersmith_decode_float32
            self.fill_cache = functions.tinkersmith_fill_cache_float32
        else:
            self.value_panels, self.value_width = width, self.panel
            self.decode, self.fill_cache = (
                functions.tinkersmith_decode,
                functions.tinkersmith_fill_cache,
            )
        # Those that `layers` are made of.
        self.updates: Sequence[LayerRowUpdates] = []
        self.lengths: list[int] = []
        # The cache of each slot, for all layers, in the panels of interface.h. Positions that are
        # not written yet are 0.
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.capacities: list[int] = []
        # Of each slot's keys, then values: the address of the first layer, and how many numbers
        # away the next one is.
        self.places = np.zeros((4, 0), np.int64)
        self.resize(slots)

    def put(self, slot: int, parts: Sequence[KeysAndValues], *, more: int = 1) -> None:
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        self.capacities[slot] = 0
        self._reserve(slot, self.lengths[slot] + more)
        start = 0
        for part in parts:
            self._fill(slot, start, part)
            start += part[0][0].shape[1]

    def move(self, source: int, target: int) -> None:
        self.lengths[target] = self.lengths[source]
        self.keys[target], self.values[target] = self.keys[source], self.values[source]
        self.capacities[target] = self.capacities[source]
        self.places[:, target] = self.places[:, source]
        self._empty(source)

    def resize(self, slots: int) -> None:
        for numbers in (self.lengths, self.capacities):
            numbers += [0] * (slots - len(numbers))
            del numbers[slots:]
        for caches in (self.keys, self.values):
            caches += [self.model.final_norm.new_empty(0)] * (slots - len(caches))
            del caches[slots:]
        places, self.places = self.places, np.zeros((4, slots), np.int64)
        kept = min(slots, places.shape[1])
        self.places[:, :kept] = places[:, :kept]

    def held(self) -> int:
        return sum(cache.nbytes for caches in (self.keys, self.values) for cache in caches)

    def step(
        self,
        x: torch.Tensor,
        slots: Sequence[int],
        rotary: RotaryTables,
        updates: Sequence[LayerRowUpdates],
    ) -> torch.Tensor:
        self._adopt(updates)
        model, (count, hidden) = self.model, x.shape
        for slot in slots:
            if self.lengths[slot] + 1 > self.capacities[slot]:
                self._grow(slot)
        rows = np.empty((6, count), np.int64)
        rows[0] = [self.lengths[slot] for slot in slots]
        rows[1] = [self.capacities[slot] for slot in slots]
        rows[2:] = self.places[:, slots]
        cosine, sine = rotary
        if any(slot != row for row, slot in enumerate(slots)):  # the tables are in slots' order
            order = torch.tensor(slots)
            cosine, sine = cosine[order], sine[order]
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        x = x.contiguous()
        self.decode(
            *(count, hidden, model.key_heads, model.heads // model.key_heads, model.head_size),
            *(len(model.layers), ctypes.addressof(self.layers)),
            *(model.eps, model.scale),
            *(cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)),
            *(*row_addresses(rows), address(x)),
        )
        return x

    def _adopt(self, updates: Sequence[LayerRowUpdates]) -> None:
        """Let the steps from now on add these updates."""
        if updates is self.updates:
            return
        self.updates = updates
        layers = list(map(self._layer, self.model.layers, updates))
        self.layers = (type(layers[0]) * len(layers))(*layers)

    def _layer(self, layer: DenseLayer, updates: LayerRowUpdates) -> ctypes.Structure:
        in_order = (updates.qkv, updates.output, updates.gate_up, updates.down)
        linear = float32_linear if self.in_fp32 else bfloat16_linear
        linears = map(linear, layer.projections, in_order)
        return INTERFACE.fill(
            "Float32Layer" if self.in_fp32 else "Layer",
            **_norms(layer),
            **dict(zip(_LINEARS, linears, strict=True)),
        )

    def _empty(self, slot: int) -> None:
        self.keys[slot] = self.values[slot] = self.model.final_norm.new_empty(0)
        self.capacities[slot] = 0

    def _reserve(self, slot: int, positions: int) -> None:
        """Allocates an empty cache for so many positions, and a quarter more."""
        model, layers = self.model, len(self.model.layers)
        panel, width = self.panel, self.value_width
        capacity = -(-max(positions * 5 // 4, 2 * panel) // panel) * panel  # S
        empty = model.final_norm.new_zeros
        self.keys[slot] = empty(layers, model.key_heads, capacity * model.head_size)
        self.values[slot] = empty(layers, model.key_heads, self.value_panels, capacity * width)
        self.capacities[slot] = capacity
        caches = self.keys[slot], self.values[slot]
        self.places[:, slot] = [
            number for cache in caches for number in (cache.data_ptr(), cache.stride(0))
        ]

    def _grow(self, slot: int) -> None:
        keys, values = self.keys[slot], self.values[slot]
        self._reserve(slot, self.lengths[slot] + 1)
        # More positions are more panels of keys, at the end, and longer panels of values.
        self.keys[slot][..., : keys.shape[-1]] = keys
        self.values[slot][..., : values.shape[-1]] = values

    def _fill(self, slot: int, start: int, part: KeysAndValues) -> None:
        """Write a part of a past, whose layers are alike, from position `start` on."""
        groups, count, size = part[0][0].shape
        steps = part[0][0].stride()
        assert steps[1:] == (size, 1)
        sizes = groups, size, self.capacities[slot], start, count
        caches = self.keys[slot], self.values[slot]
        keys, values = (cache.data_ptr() for cache in caches)
        key_step, value_step = (cache.stride(0) * cache.itemsize for cache in caches)
        for key, value in part:
            assert key.stride() == value.stride() == steps
            self.fill_cache(*sizes, key.data_ptr(), value.data_ptr(), steps[0], keys, values)
            keys, values = keys + key_step, values + value_step


def _norms(layer: DenseLayer) -> dict[str, int | None]:
    return {
        "attention_norm": address(layer.attention_norm),
        "query_norm": address(layer.query_norm),
        "key_norm": address(layer.key_norm),
        "mlp_norm": address(layer.mlp_norm),
    }


def native_float32_logits(
    hidden: torch.Tensor,  # (B, H)
    projection: Projection,
    updates: RowUpdates,
    products: Products,
    library: Library,
    *,
    written: bool = True,  # they are in any case: a pass over them is short
) -> tuple[torch.Tensor, ExactLogits]:  # (B, V)
    """The output layer's logits in fp32, and what token sampling needs of them."""
    logits = project(products, hidden, projection, updates)
    count, vocabulary = logits.shape
    blocks = -(-vocabulary // BLOCK)  # Y
    highest, sums = torch.empty(count, blocks), torch.empty(count, blocks)
    most_likely = torch.empty(count, blocks, dtype=torch.int32)
    library.functions.tinkersmith_look_through_logits_float32(
        *(count, vocabulary, address(logits)),
        *(address(highest), address(most_likely), address(sums)),
    )
    return logits, ExactLogits(highest, most_likely, sums, partial(logits.gather, -1))


def native_logits(
    hidden: torch.Tensor,  # (B, H)
    projection: Projection,
    updates: RowUpdates,
    products: NativeProducts,
    *,
    written: bool = True,
) -> tuple[torch.Tensor | None, ExactLogits]:  # (B, V) if `written`
    """The output layer's logits in bf16, and what is known of them before they are rounded."""
    count, vocabulary = len(hidden), len(projection.weight)
    logits = hidden.new_empty(count, vocabulary) if written else None
    blocks = -(-vocabulary // BLOCK)  # Y
    highest, sums = torch.empty(count, blocks), torch.empty(count, blocks)
    most_likely = torch.empty(count, blocks, dtype=torch.int32)
    linear = bfloat16_linear(projection, updates)
    products.library.functions.tinkersmith_logits(
        *(count, ctypes.addressof(linear), address(hidden), address(logits)),
        *(address(highest), address(most_likely), address(sums)),
    )

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:  # (B, K) -> (B, K) in fp32
        exact = (hidden.float()[:, None] * projection.weight[tokens]).sum(-1)
        for rows, update in updates.groups:
            [trained] = update.parts
            low = hidden.new_empty(rows.stop - rows.start, len(update.a))  # (N, R)
            products.linear(hidden[rows], update.a, low)
            exact[rows] += (low.float()[:, None] * trained.b[tokens[rows]]).sum(-1)
        return exact if projection.bias is None else exact + projection.bias[tokens]

    return logits, ExactLogits(highest, most_likely, sums, logits_of)
