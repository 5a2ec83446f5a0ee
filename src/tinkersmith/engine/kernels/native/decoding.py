"""A step of decoding by the C++ functions, in bf16 or fp32.

Axes: B sequences that decode together, S positions in the KV cache of a slot, T tokens of a part of
a prompt, G key/value heads, D head size, H hidden size, V vocabulary, Y blocks of it, K tokens per
sequence, C layers joined in one projection that the adapter trains, R rank of the adapter.
"""

import ctypes
from collections.abc import Iterator, Sequence

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.interface import INTERFACE, InterfaceError
from tinkersmith.engine.kernels.native.kernels import NativeProducts, address, joined_layers
from tinkersmith.engine.kernels.native.row_updates import prepared_updates
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import (
    DenseLayer,
    DenseModel,
    LayerRowUpdates,
    LayerUpdates,
    RotaryTables,
)
from tinkersmith.engine.model.kernels import BLOCK, ExactLogits
from tinkersmith.engine.model.projection import Part, Projection, RowUpdates, Update

_JOINED = INTERFACE.constants["JOINED_LAYERS"]
_LINEARS = "qkv", "output", "gate_up", "down"  # as `DenseLayer.projections`
if INTERFACE.constants["VOCABULARY_BLOCK"] != BLOCK:
    raise InterfaceError("VOCABULARY_BLOCK of interface.h is not BLOCK of model/kernels.py")


class NativeLayers:
    """`DecodingLayers`: one step through all layers is one call.

    In bf16 all rows have one adapter; in fp32 each may have its own.

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
        self.updates: Sequence[LayerUpdates] | Sequence[LayerRowUpdates] = []
        self.lengths: list[int] = []
        # The cache of each slot, for all layers, in the panels of interface.h. Positions that are
        # not written yet are 0.
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.capacities: list[int] = []
        self.resize(slots)

    def put(self, slot: int, parts: Sequence[KeysAndValues], *, more: int = 1) -> None:
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        self.capacities[slot] = 0
        self._reserve(slot, self.lengths[slot] + more)
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
        self._adopt(updates)
        model, (count, hidden) = self.model, x.shape
        for slot in slots:
            if self.lengths[slot] + 1 > self.capacities[slot]:
                self._grow(slot)
        lengths, capacities = (
            torch.tensor([numbers[slot] for slot in slots])
            for numbers in (self.lengths, self.capacities)
        )
        keys, values = ([caches[slot] for slot in slots] for caches in (self.keys, self.values))
        # For each row: where its first layer begins, and how far away the next layer is.
        key_places, value_places = (
            torch.tensor([cache.data_ptr() for cache in caches]) for caches in (keys, values)
        )
        key_steps, value_steps = (
            torch.tensor([cache.stride(0) for cache in caches]) for caches in (keys, values)
        )
        cosine, sine = rotary
        if any(slot != row for row, slot in enumerate(slots)):  # the tables are in slots' order
            order = torch.tensor(slots)
            cosine, sine = cosine[order], sine[order]
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        x = x.contiguous()
        self.decode(
            *(count, hidden, model.key_heads, model.heads // model.key_heads, model.head_size),
            *(len(model.layers), ctypes.addressof(self.layers)),
            *(() if self.in_fp32 else (self.rank,)),
            *(model.eps, model.scale),
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
        self.updates = updates
        if self.in_fp32:
            of_rows = [one for one in updates if isinstance(one, LayerRowUpdates)]
            layers = list(map(_float32_layer, self.model.layers, of_rows))
            assert len(layers) == len(updates)  # see Decoding.groups_adapters
            self.layers = (INTERFACE.structures["Float32Layer"] * len(layers))(*layers)
            return
        own = [one for one in updates if isinstance(one, LayerUpdates)]
        assert len(own) == len(updates)
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
        panel, width = self.panel, self.value_width
        capacity = -(-max(positions * 5 // 4, 2 * panel) // panel) * panel  # S
        empty = model.final_norm.new_zeros
        self.keys[slot] = empty(layers, model.key_heads, capacity * model.head_size)
        self.values[slot] = empty(layers, model.key_heads, self.value_panels, capacity * width)
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
        self.fill_cache(
            *(groups, size, self.capacities[slot], start, count),
            *(key.data_ptr(), value.data_ptr(), key.stride(0)),
            *(self.keys[slot][layer].data_ptr(), self.values[slot][layer].data_ptr()),
        )


def _layer(layer: DenseLayer, updates: LayerUpdates) -> ctypes.Structure:
    linears = map(_linear, layer.projections, updates.in_order)
    return INTERFACE.fill("Layer", **_norms(layer), **dict(zip(_LINEARS, linears, strict=True)))


def _float32_layer(layer: DenseLayer, updates: LayerRowUpdates) -> ctypes.Structure:
    in_order = (updates.qkv, updates.output, updates.gate_up, updates.down)
    linears = map(_float32_linear, layer.projections, in_order)
    parts = dict(zip(_LINEARS, linears, strict=True))
    return INTERFACE.fill("Float32Layer", **_norms(layer), **parts)


def _norms(layer: DenseLayer) -> dict[str, int | None]:
    return {
        "attention_norm": address(layer.attention_norm),
        "query_norm": address(layer.query_norm),
        "key_norm": address(layer.key_norm),
        "mlp_norm": address(layer.mlp_norm),
    }


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


def _float32_linear(projection: Projection, updates: RowUpdates) -> ctypes.Structure:
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
