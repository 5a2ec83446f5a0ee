"""Attention over packed documents (training, prefill) and over cached rows (decode).

One function is registered with transformers; the active context decides what it computes. Only the
engine thread computes, so the active context is a plain module variable.

Axes: B rows, T packed tokens, Q query heads, G key/value heads, D head size, S cached positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.model.layer_states import LayerStates

NAME = "tinkersmith"


KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer, (G, T, D) both

# A layer with a state: (B, T, H) -> (B, T, H), after the states of its rows, which it updates.
Carry = Callable[[torch.Tensor, LayerStates | None], torch.Tensor]


class AttentionContext(Protocol):
    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # (B, Q, T, D)
        key: torch.Tensor,  # (B, G, T, D)
        value: torch.Tensor,  # (B, G, T, D)
        scale: float,
        window: int | None,
    ) -> torch.Tensor: ...  # (B, Q, T, D)

    def carry(
        self,
        layer: int,
        compute: Carry,
        hidden: torch.Tensor,  # (B, T, H)
    ) -> torch.Tensor: ...  # (B, T, H)


class PackedDocuments:
    """T tokens of documents end to end: each attends to itself only, causally."""

    def __init__(self, lengths: Sequence[int], *, keep: bool = False) -> None:
        self.bounds = list(pairwise(np.cumsum([0, *lengths]).tolist()))
        self.longest = max(lengths)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] | None = [] if keep else None
        self.states = [LayerStates() for _ in lengths] if keep else [None for _ in lengths]
        self.attention_layers: list[int] = []  # in the order of their calls
        self.state_layers: list[int] = []
        self.window: int | None = None  # the smallest one seen

    def attend(self, layer, query, key, value, scale, window):
        self.attention_layers.append(layer)
        if window is not None:
            self.window = min(window, self.window or window)
        if window is not None and self.longest > window:
            raise Refused(
                f"a sequence of {self.longest:,} tokens is longer than this model's sliding "
                f"attention window of {window:,}, which this engine does not have; "
                f"use sequences of at most {window:,} tokens."
            )
        if self.kept is not None:
            self.kept.append((key, value))
        parts = [
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            )
            for start, end in self.bounds
        ]
        return torch.cat(parts, dim=2)

    def carry(self, layer: int, compute: Carry, hidden: torch.Tensor) -> torch.Tensor:
        """Let a layer with a state begin anew in each document."""
        self.state_layers.append(layer)
        parts = [
            compute(hidden[:, start:end], states)
            for (start, end), states in zip(self.bounds, self.states, strict=True)
        ]
        return torch.cat(parts, dim=1)


class CachedRows:
    """The KV cache and states of rows of different lengths, which get one new token each."""

    def __init__(self, layers: Sequence[int], rows: int, device: torch.device) -> None:
        self.places = {layer: place for place, layer in enumerate(layers)}  # those of attention
        self.keys: list[torch.Tensor] = [torch.empty(0)] * len(layers)  # each (rows, G, S, D)
        self.values: list[torch.Tensor] = [torch.empty(0)] * len(layers)
        self.states = LayerStates()
        self.rows = rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.active = 0

    def put(
        self, row: int, length: int, past: KeysAndValues | None, states: LayerStates | None
    ) -> None:
        """Fill `row` with a document of `length` tokens, or with none."""
        self.states.put(row, states, self.rows)
        self.lengths[row] = length
        for layer, (key, value) in enumerate(past or []):
            self._reserve(layer, length, key, value)
            self.keys[layer][row, :, :length] = key
            self.values[layer][row, :, :length] = value

    def move(self, source: int, target: int) -> None:
        length = int(self.lengths[source])
        for layer in range(len(self.keys)):
            self.keys[layer][target, :, :length] = self.keys[layer][source, :, :length]
            self.values[layer][target, :, :length] = self.values[layer][source, :, :length]
        self.states.move(source, target)
        self.lengths[target] = length

    def resize(self, rows: int) -> None:
        """Have so many rows from now on; those beyond them have ended."""
        used = min(rows, self.rows)
        lengths = self.lengths.new_zeros(rows)
        lengths[:used] = self.lengths[:used]
        self.lengths, self.rows = lengths, rows
        self.states.resize(rows)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if old.numel():
                    store[layer] = old.new_zeros(rows, *old.shape[1:])
                    store[layer][:used] = old[:used]

    def held(self) -> int:
        """Bytes of all rows."""
        cache = sum(layer.nbytes for store in (self.keys, self.values) for layer in store)
        return cache + self.states.nbytes()

    def prepare(self, active: int) -> None:
        """Prepare for one more token in each of the first `active` rows."""
        self.active = active
        self.used = int(self.lengths[:active].max()) + 1
        positions = torch.arange(self.used, device=self.lengths.device)
        self.mask = positions[None, None, None, :] <= self.lengths[:active, None, None, None]
        self.active_states = self.states.first(active)

    def advance(self) -> None:
        self.states.adopt(self.active_states, self.rows)
        self.lengths[: self.active] += 1

    def carry(self, layer: int, compute: Carry, hidden: torch.Tensor) -> torch.Tensor:
        return compute(hidden, self.active_states)

    def attend(self, layer, query, key, value, scale, window):
        layer = self.places[layer]
        if window is not None and self.used > window:
            raise Refused(
                f"the answer has grown beyond this model's sliding attention window of {window:,} "
                "tokens, which this engine does not have; ask for a lower max_tokens."
            )
        self._reserve(layer, self.used, key[0], value[0])
        rows = torch.arange(self.active, device=key.device)
        self.keys[layer][rows, :, self.lengths[: self.active]] = key[:, :, 0]
        self.values[layer][rows, :, self.lengths[: self.active]] = value[:, :, 0]
        return scaled_dot_product_attention(
            query,
            self.keys[layer][: self.active, :, : self.used],
            self.values[layer][: self.active, :, : self.used],
            attn_mask=self.mask,
            scale=scale,
            enable_gqa=True,
        )

    def _reserve(self, layer: int, positions: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Grow the caches to so many positions, with the sizes of `key` and `value` (G, any, D)."""
        for store, template in ((self.keys, key), (self.values, value)):
            old = store[layer]
            capacity = old.shape[2] if old.numel() else 0
            if positions <= capacity:
                continue
            heads, _, size = template.shape
            capacity = max(positions, capacity * 3 // 2, 128)
            store[layer] = template.new_zeros(self.rows, heads, capacity, size)
            if old.numel():
                store[layer][:, :, : old.shape[2]] = old


_context: AttentionContext | None = None


@contextmanager
def attending(context: AttentionContext) -> Iterator[None]:
    """Let `context` compute every attention layer inside the block."""
    global _context
    before, _context = _context, context
    try:
        yield
    finally:
        _context = before


def active_context() -> AttentionContext | None:
    return _context


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    if _context is None:
        raise RuntimeError("attention was called outside attending(...)")
    if rest.get("softcap") is not None or rest.get("s_aux") is not None:
        raise Refused("this model's attention has soft-capping or sinks, which are not supported.")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise Refused("this model's attention layers are not numbered, so it is not supported.")
    output = _context.attend(layer, query, key, value, scale, sliding_window)
    return output.transpose(1, 2).contiguous(), None  # (B, T, Q, D)


def _no_mask(*arguments: Any, **named: Any) -> None:
    """The contexts above know what is visible; a (T, T) mask is never built."""
    return


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)
