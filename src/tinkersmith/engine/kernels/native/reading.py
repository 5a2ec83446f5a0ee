"""Prompts through all layers by one call of the C++ functions, in fp32.

Axes: T packed tokens, L layers, G key/value heads, D head size, S positions in a KV cache, P those
of a panel.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.decoding import NativeLayers
from tinkersmith.engine.kernels.native.operands import address, row_addresses
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import DenseModel, LayerRowUpdates, RotaryTables


class NativeReading(NativeLayers):
    """`PromptReading`: while it reads, each run of tokens has a slot, as a row that decodes has."""

    def __init__(self, model: DenseModel, library: Library) -> None:
        super().__init__(model, 0, library)
        assert self.in_fp32
        self.read_tokens = library.functions.tinkersmith_read_float32

    def read(
        self,
        x: torch.Tensor,
        lengths: Sequence[int],
        pasts: Sequence[Sequence[KeysAndValues]],
        rotary: RotaryTables,
        updates: Sequence[LayerRowUpdates],
        *,
        cache_only: bool,
    ) -> list[KeysAndValues]:
        self._adopt(updates)
        self.resize(len(lengths))
        for slot, (length, parts) in enumerate(zip(lengths, pasts, strict=True)):
            self.put(slot, parts, more=length)
        model, hidden, (cosine, sine) = self.model, x.shape[1], rotary
        before = [
            np.arange(start, start + length)
            for start, length in zip(self.lengths, lengths, strict=True)
        ]
        of_sequences = np.vstack([self.capacities, self.places])  # (5, R)
        of_tokens = np.vstack([np.hstack(before), of_sequences.repeat(lengths, 1)])  # (6, T)
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        self.read_tokens(
            *(len(x), hidden, model.key_heads, model.heads // model.key_heads, model.head_size),
            *(len(model.layers), ctypes.addressof(self.layers), model.eps, model.scale),
            *(cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)),
            *row_addresses(of_tokens),
            *(int(cache_only), address(x)),
        )
        pasts_of_runs = list(map(self._past, range(len(lengths)), lengths))
        self.resize(0)
        return pasts_of_runs

    def _past(self, slot: int, length: int) -> KeysAndValues:
        """Keys and values (G, T, D) of each layer that were computed in this slot."""
        start, size = self.lengths[slot], self.model.head_size
        keys = self.keys[slot].unflatten(-1, (-1, size, self.panel))  # (L, G, S / P, D, P)
        keys = keys.transpose(-1, -2).flatten(2, 3)  # (L, G, S, D)
        values = self.values[slot].unflatten(-1, (-1, self.value_width)).flatten(2, 3)
        own = slice(start, start + length)
        # Copies: the rest of the cache is not held in memory.
        both = keys[:, :, own].clone(), values[:, :, own, :size].clone()
        return list(zip(*both, strict=True))
