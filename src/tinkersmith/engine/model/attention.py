"""Attention over packed documents (training, prefill) and over cached rows (decode).

One function is registered with transformers; the active context decides what it computes. Only the
engine thread computes, so the active context is a plain module variable.

Axes: B rows, T packed tokens, Q query heads, G key/value heads, D head size, S cached positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from tinkersmith.engine.errors import Refused

NAME = "tinkersmith"


KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer, (G, T, D) both


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


class PackedDocuments:
    """T tokens of documents end to end: each attends to itself only, causally."""

    def __init__(self, lengths: Sequence[int], *, keep: bool = False) -> None:
        self.bounds = list(pairwise(np.cumsum([0, *lengths]).tolist()))
        self.longest = max(lengths)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] | None = [] if keep else None
        self.calls = 0
        self.window: int | None = None  # the smallest one seen

    def attend(self, layer, query, key, value, scale, window):
        self.calls += 1
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


class CachedRows:
    """The KV cache of rows of different lengths, which get one new token each."""

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self.keys: list[torch.Tensor] = [torch.empty(0)] * layers  # each (rows, G, S, D)
        self.values: list[torch.Tensor] = [torch.empty(0)] * layers
        self.rows = rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.active = 0

    def put(self, row: int, past: KeysAndValues | None) -> None:
        """Fill `row` with a document's past, or with none."""
        self.lengths[row] = length = 0 if past is None else past[0][0].shape[1]
        for layer, (key, value) in enumerate(past or []):
            self._reserve(layer, length, key, value)
            self.keys[layer][row, :, :length] = key
            self.values[layer][row, :, :length] = value

    def move(self, source: int, target: int) -> None:
        length = int(self.lengths[source])
        for layer in range(len(self.keys)):
            self.keys[layer][target, :, :length] = self.keys[layer][source, :, :length]
            self.values[layer][target, :, :length] = self.values[layer][source, :, :length]
        self.lengths[target] = length

    def resize(self, rows: int) -> None:
        """Have so many rows from now on; those beyond them have ended."""
        used = min(rows, self.rows)
        lengths = self.lengths.new_zeros(rows)
        lengths[:used] = self.lengths[:used]
        self.lengths, self.rows = lengths, rows
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if old.numel():
                    store[layer] = old.new_zeros(rows, *old.shape[1:])
                    store[layer][:used] = old[:used]

    def held(self) -> int:
        """Bytes of all rows."""
        return sum(layer.nbytes for store in (self.keys, self.values) for layer in store)

    def prepare(self, active: int) -> None:
        """Prepare for one more token in each of the first `active` rows."""
        self.active = active
        self.used = int(self.lengths[:active].max()) + 1
        positions = torch.arange(self.used, device=self.lengths.device)
        self.mask = positions[None, None, None, :] <= self.lengths[:active, None, None, None]

    def advance(self) -> None:
        self.lengths[: self.active] += 1

    def attend(self, layer, query, key, value, scale, window):
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
