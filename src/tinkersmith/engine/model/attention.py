"""Attention over packed documents (training, prefill) and over cached rows (decode).

One function is registered with transformers; the active context decides what it computes. Only the
engine thread computes, so the active context is a plain module variable. How a layer weighs what it
sees (windows, soft-capping, sinks) is in scored_attention.py.

Axes: B rows, T packed tokens, Q query heads, G key/value heads, D head size, S cached positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.model.layer_states import LayerStates
from tinkersmith.engine.model.scored_attention import Scoring, attend_cached, attend_document

NAME = "tinkersmith"
_CHUNK = 64  # tokens that layers with a state compute at a time, whatever is left of them
# Tokens that such a layer gets at a time, about. transformers cuts chunks out of whole tensors, and
# the gradient of each cut is as large as the tensor: time grows with the square of the tokens.
_SEGMENT = 512


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
        scoring: Scoring,
    ) -> torch.Tensor: ...  # (B, Q, T, D)

    def carry(
        self,
        layer: int,
        compute: Carry,
        hidden: torch.Tensor,  # (B, T, H)
    ) -> torch.Tensor: ...  # (B, T, H)


class PackedDocuments:
    """T tokens of documents end to end: each attends to itself and its past only, causally."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        pasts: Sequence[KeysAndValues | None] = (),  # of each document; none by default
        states: Sequence[LayerStates | None] = (),  # after each document's past
        keep: bool = False,
    ) -> None:
        self.bounds = list(pairwise(np.cumsum([0, *lengths]).tolist()))
        self.pasts = pasts or [None] * len(lengths)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] | None = [] if keep else None
        self.keep = keep
        # Layers change them: those of a past may begin several documents.
        copies = [None if before is None else before.copy() for before in states]
        self.states = [
            LayerStates() if keep and before is None else before
            for before in copies or [None] * len(lengths)
        ]
        self.attention_layers: list[int] = []  # in the order of their calls
        self.state_layers: list[int] = []

    def attend(self, layer, query, key, value, scoring):
        place = len(self.attention_layers)
        self.attention_layers.append(layer)
        if self.kept is not None:
            self.kept.append((key, value))
        parts = []
        for (start, end), past in zip(self.bounds, self.pasts, strict=True):
            document_key, document_value = key[:, :, start:end], value[:, :, start:end]
            if past is not None:
                past_key, past_value = past[place]
                document_key = torch.cat([past_key[None], document_key], 2)
                document_value = torch.cat([past_value[None], document_value], 2)
            parts.append(
                attend_document(query[:, :, start:end], document_key, document_value, scoring)
            )
        return torch.cat(parts, dim=2)

    def carry(self, layer: int, compute: Carry, hidden: torch.Tensor) -> torch.Tensor:
        """Let a layer with a state begin anew in each document.

        Where no state is kept, documents of similar lengths are rows of one batch: what stands
        behind a document in its row does not change what comes before.
        """
        self.state_layers.append(layer)
        if self.keep:
            parts = [
                compute(hidden[:, start:end], states)
                for (start, end), states in zip(self.bounds, self.states, strict=True)
            ]
            return torch.cat(parts, dim=1)
        device = hidden.device
        by_row = [_in_segments(compute, hidden[0, rows.to(device)]) for rows in self.rows]
        return torch.cat(by_row)[self.order.to(device)][None]

    @cached_property
    def rows(self) -> list[torch.Tensor]:
        """The places (B, longest) of documents in the pack, those of similar lengths together."""
        return [self._rows_of(group) for group in self._groups()]

    @cached_property
    def order(self) -> torch.Tensor:
        """Where each token of the pack stands among all places of `rows`."""
        first, places = 0, dict[int, torch.Tensor]()  # of each document, by its number
        for group in self._groups():
            longest = max(end - start for start, end in (self.bounds[n] for n in group))
            for number in group:
                start, end = self.bounds[number]
                places[number] = torch.arange(first, first + end - start)
                first += longest
        return torch.cat([places[number] for number in range(len(self.bounds))])

    def _groups(self) -> list[list[int]]:
        """The numbers of documents that need as many chunks."""
        groups: dict[int, list[int]] = {}
        for number, (start, end) in enumerate(self.bounds):
            groups.setdefault(-(-(end - start) // _CHUNK), []).append(number)
        return list(groups.values())

    def _rows_of(self, group: list[int]) -> torch.Tensor:
        starts = torch.tensor([self.bounds[number][0] for number in group])
        longest = max(self.bounds[number][1] - self.bounds[number][0] for number in group)
        return (starts[:, None] + torch.arange(longest)).clamp(max=self.bounds[-1][1] - 1)


def _in_segments(compute: Carry, hidden: torch.Tensor) -> torch.Tensor:
    """Carry a state through rows (B, T, H), a segment after another: (B T, H).

    Segments end where chunks end, so that the same is computed. None has a single token, for which
    layers have another way.
    """
    count = hidden.shape[1] // _SEGMENT
    if count < 2:
        return compute(hidden, None).flatten(0, 1)
    states = LayerStates()
    ends = [_SEGMENT * number for number in range(1, count)]
    parts = [compute(part, states) for part in hidden.tensor_split(ends, dim=1)]
    return torch.cat(parts, dim=1).flatten(0, 1)


class CachedRows:
    """The KV cache and states of rows of different lengths, which get one new token each.

    A layer with a window holds the tokens in it only: position p is in place p modulo the window.
    """

    def __init__(
        self,
        layers: Sequence[int],
        windows: Sequence[int | None],  # of each of these layers
        rows: int,
        device: torch.device,
    ) -> None:
        self.places = {layer: place for place, layer in enumerate(layers)}  # those of attention
        self.windows = windows
        self.keys: list[torch.Tensor] = [torch.empty(0)] * len(layers)  # each (rows, G, S, D)
        self.values: list[torch.Tensor] = [torch.empty(0)] * len(layers)
        self.states = LayerStates()
        self.rows = rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.active = 0

    def put(
        self, row: int, length: int, parts: Sequence[KeysAndValues], states: LayerStates | None
    ) -> None:
        """Begin a row after `length` tokens, whose past is given in parts, or after none.

        A part may have the last tokens only where they fill a layer's window.
        """
        self.states.put(row, states, self.rows)
        self.lengths[row] = length
        for layer, window in enumerate(self.windows):
            end, missing = length, length if window is None else min(length, window)
            for part in reversed(parts):
                key, value = part[layer]
                count = min(missing, key.shape[1])
                if not count:
                    break
                self._reserve(layer, length, key, value)
                start = end - count
                # A slice is copied faster than places that may wrap.
                places = (
                    slice(start, end)
                    if window is None or end <= window
                    else torch.arange(start, end) % window
                )
                self.keys[layer][row][:, places] = key[:, -count:]
                self.values[layer][row][:, places] = value[:, -count:]
                end, missing = start, missing - count
        self._clear(row, length)

    def move(self, source: int, target: int) -> None:
        length = int(self.lengths[source])
        for layer, window in enumerate(self.windows):
            used = length if window is None else min(length, window)
            for store in (self.keys[layer], self.values[layer]):
                store[target, :, :used] = store[source, :, :used]
        self._clear(target, length)
        self.states.move(source, target)
        self.lengths[target] = length

    def _clear(self, row: int, length: int) -> None:
        """Leave no number of an earlier row behind: one that is not finite would spoil products."""
        for layer, window in enumerate(self.windows):
            used = length if window is None else min(length, window)
            for store in (self.keys[layer], self.values[layer]):
                if store.numel():
                    store[row, :, used:] = 0

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
        self.visible: dict[int, torch.Tensor] = {}  # by the number of places
        self.active_states = self.states.first(active)

    def advance(self) -> None:
        self.states.adopt(self.active_states, self.rows)
        self.lengths[: self.active] += 1

    def carry(self, layer: int, compute: Carry, hidden: torch.Tensor) -> torch.Tensor:
        return compute(hidden, self.active_states)

    def attend(self, layer, query, key, value, scoring):
        layer = self.places[layer]
        window = self.windows[layer]
        self._reserve(layer, self.used, key[0], value[0])
        rows = torch.arange(self.active, device=key.device)
        lengths = self.lengths[: self.active]
        places = lengths if window is None else lengths % window
        self.keys[layer][rows, :, places] = key[:, :, 0]
        self.values[layer][rows, :, places] = value[:, :, 0]
        used = self.used if window is None else min(self.used, window)
        return attend_cached(
            query,
            self.keys[layer][: self.active, :, :used],
            self.values[layer][: self.active, :, :used],
            self._visible(used),
            scoring,
        )

    def _visible(self, used: int) -> torch.Tensor:  # (rows, 1, 1, S)
        """Which places each active row sees; the same in many layers.

        A row as long as its window sees all places, and a shorter one those up to its own token.
        """
        if used not in self.visible:
            lengths = self.lengths[: self.active, None, None, None]
            self.visible[used] = torch.arange(used, device=lengths.device) <= lengths
        return self.visible[used]

    def _reserve(self, layer: int, positions: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Grow the caches to so many positions, with the sizes of `key` and `value` (G, any, D)."""
        window = self.windows[layer]
        positions = positions if window is None else min(positions, window)
        for store, template in ((self.keys, key), (self.values, value)):
            old = store[layer]
            capacity = old.shape[2] if old.numel() else 0
            if positions <= capacity:
                continue
            heads, _, size = template.shape
            capacity = max(positions, capacity * 3 // 2, 128)
            capacity = capacity if window is None else min(capacity, window)
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


# (row, head, positions of queries, positions of keys) -> whether the query sees the key
MaskFunction = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class SeenLayer:
    """What a layer asked for: its window, and the mask that transformers would give it."""

    layer: int
    window: int | None
    mask: MaskFunction | None  # None: the model does not make it in transformers' way


_seen: list[SeenLayer] | None = None


@contextmanager
def layers_seen() -> Iterator[list[SeenLayer]]:
    """Note every attention layer that is called inside the block."""
    global _seen
    _seen = seen = []
    try:
        yield seen
    finally:
        _seen = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: MaskFunction | torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    if _context is None:
        raise RuntimeError("attention was called outside attending(...)")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise Refused("this model's attention layers are not numbered, so it is not supported.")
    if _seen is not None:
        mask = attention_mask if callable(attention_mask) else None
        _seen.append(SeenLayer(layer, sliding_window, mask))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scoring = Scoring(scale, sliding_window, softcap, s_aux)
    output = _context.attend(layer, query, key, value, scoring)
    return output.transpose(1, 2).contiguous(), None  # (B, T, Q, D)


def _no_mask(
    *arguments: Any, mask_function: MaskFunction | None = None, **named: Any
) -> MaskFunction | None:
    """The contexts above know what is visible; a (T, T) mask is never built."""
    return None if _seen is None else mask_function


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)
