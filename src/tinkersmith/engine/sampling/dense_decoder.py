"""Prefill and decode of Llama-shaped models, written out in few operations over joined weights.

Axes: B active rows, P tokens of a shared prefix, T packed tokens, L queries and S keys of a tile,
N rows, H hidden size, G key/value heads, J queries per key, D head size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from tinkersmith.engine.images.vision import Vision
from tinkersmith.engine.kernels.decoding import project
from tinkersmith.engine.kernels.tile_attention import Tile, TileAttention, by_token
from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.dense import (
    DenseModel,
    LayerRowUpdates,
    LayerUpdates,
    RotaryTables,
    layer_row_updates,
    layer_updates,
    row_updates,
)
from tinkersmith.engine.model.kernels import (
    ExactLogits,
    Kernels,
    PackedAttention,
    PromptReading,
)
from tinkersmith.engine.model.lora import Adapter, adapter_runs
from tinkersmith.engine.model.projection import (
    Projection,
    RowUpdates,
    Update,
    stored_by_rank,
    update_of,
)
from tinkersmith.engine.sampling.decoder import Shifts, past_of, positions_of_runs
from tinkersmith.engine.sampling.prefixes import TokenRun
from tinkersmith.engine.training.dense_pass import DensePass
from tinkersmith.engine.training.head_pass import target_logprobs

# Bytes of matrices, as products take them, that stay for adapters without rows: the next request of
# such an adapter may come soon.
_REMEMBERED = 2**28
# Positions up to which the kernels of decoding read prompts. Each of their tokens goes through the
# KV cache alone; those of training take a tile of tokens, and are twice as fast at 8,000.
_READ_POSITIONS = 1024
_STEP = 64  # of a past's length: every size of a product is a kernel of its own to oneDNN
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
_MOST_ROTARY_ROWS = 8192  # whose tables are kept


def decodes_densely(base: BaseModel, tokens: int) -> bool:
    """Whether sequences of at most so many tokens can be decoded by a model's kernels."""
    return base.dense is not None and base.kernels is not None and base.dense.holds(tokens)


@dataclass(frozen=True, slots=True)
class _Updates:
    """An adapter's matrices, as products take them."""

    layers: list[LayerUpdates]
    head: Update | None

    def nbytes(self) -> int:
        updates = [self.head, *(update for layer in self.layers for update in layer.in_order)]
        return sum(
            update.a.nbytes + sum(part.b.nbytes for part in update.parts)
            for update in updates
            if update is not None
        )


@dataclass(frozen=True, slots=True)
class _StepUpdates:
    """What the products of a step add to rows of these adapters."""

    adapters: list[Adapter | None]
    layers: list[LayerRowUpdates]
    head: RowUpdates


class DenseDecoder:
    def __init__(self, base: BaseModel, slots: int) -> None:
        assert base.dense is not None and base.kernels is not None
        model, self.kernels = base.dense, base.kernels
        self.model, self.decoding = model, base.kernels.decoding
        self.device, self.base = base.device, base
        self.head = _head(base)
        self._updates: dict[Adapter | None, _Updates] = {}  # the latest last
        self._of_step: _StepUpdates | None = None  # of the last one: few steps need others
        self.layers = self.decoding.layers(model, slots)
        self.reading = None if self.decoding.reading is None else self.decoding.reading(model)
        # Of the last read: adapters of its tokens, and what is added to them.
        self._of_read: tuple[list[Adapter | None], list[LayerRowUpdates]] | None = None
        self.rotary = _RotaryRows(model, self.device)
        self.shifts = Shifts(slots)
        self.held = self.layers.held

    # ---- prefill

    def prefill(
        self, runs: Sequence[TokenRun], wanted: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        reading = self.reading
        short = [
            reading is not None and run.start + len(run.tokens) <= _READ_POSITIONS for run in runs
        ]
        if any(short) and not all(short):  # so that a run's digits do not depend on its company
            return self._prefill_apart(runs, wanted, short)
        # Runs of one adapter stand together, and among them those with one parent: their attention
        # to its keys is one computation.
        families = list(dict.fromkeys((run.adapter, run.parent) for run in runs))
        adapters = list(dict.fromkeys(run.adapter for run in runs))

        def place(index: int) -> tuple[int, int]:
            run = runs[index]
            return adapters.index(run.adapter), families.index((run.adapter, run.parent))

        order = sorted(range(len(runs)), key=place)
        ordered = [runs[index] for index in order]
        answer: list[torch.Tensor | None] = [None] * len(runs)
        vision = self.base.vision
        if vision is not None and not any(_has_images(run) for run in ordered):
            vision = None
        if reading is not None and vision is None and all(short):
            hidden = self._read(reading, ordered, cache_only=not any(wanted))
            for index, of_run in zip(order, hidden, strict=True):
                answer[index] = of_run if wanted[index] else None
            return answer
        tokens = torch.tensor([token for run in ordered for token in run.tokens])
        lengths = [len(run.tokens) for run in ordered]
        bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
        asked = [torch.arange(*bounds[i : i + 2]) for i, j in enumerate(order) if wanted[j]]
        rows = torch.cat([torch.arange(1), *asked]).to(self.device)  # at least one row
        updates = [self._updates_of(adapter).layers for adapter in adapters]
        if vision is None:
            forward = _Prefill(self.model, self.kernels, ordered, updates)
        else:
            positions = positions_of_runs(vision, ordered).to(self.device)
            forward = _Prefill(self.model, self.kernels, ordered, updates, vision, positions)
        hidden = forward.forward(tokens.to(self.device), rows)[1:]
        asked_hidden = iter(hidden.split([len(positions) for positions in asked]))
        for index, start, end in zip(order, bounds[:-1], bounds[1:], strict=True):
            # No row is longer than a window here, so nothing is out of sight.
            runs[index].past = past_of(forward.past, start, end, [None] * len(forward.past))
            if wanted[index]:
                answer[index] = next(asked_hidden)
        return answer

    def _prefill_apart(
        self, runs: Sequence[TokenRun], wanted: Sequence[bool], short: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        answer: list[torch.Tensor | None] = [None] * len(runs)
        for kind in (True, False):
            chosen = [index for index, is_short in enumerate(short) if is_short == kind]
            found = self.prefill([runs[i] for i in chosen], [wanted[i] for i in chosen])
            for index, hidden in zip(chosen, found, strict=True):
                answer[index] = hidden
        return answer

    def _read(
        self, reading: PromptReading, runs: Sequence[TokenRun], *, cache_only: bool
    ) -> Sequence[torch.Tensor]:  # (T, H) of each run, of no meaning if `cache_only`
        """Runs by the kernels of decoding; those of one adapter stand together."""
        model, lengths = self.model, [len(run.tokens) for run in runs]
        x = model.embedding(torch.tensor([token for run in runs for token in run.tokens]))
        positions = [torch.arange(run.start, run.start + len(run.tokens)) for run in runs]
        rotary = model.rotary_tables(torch.cat(positions))
        pasts: list[list[KeysAndValues]] = [
            [link.past for link in run.chain()[:-1] if link.past is not None] for run in runs
        ]
        adapters: list[Adapter | None] = [run.adapter for run in runs for _ in run.tokens]
        if not any(adapters):
            adapters = [None]  # the same for every number of tokens
        of_read = self._of_read
        if of_read is None or of_read[0] != adapters:
            groups = [
                (rows, self._updates_of(adapter).layers) for adapter, rows in adapter_runs(adapters)
            ]
            of_read = adapters, _row_updates_of_layers(groups, len(model.layers))
            self._of_read = of_read
        found = reading.read(x, lengths, pasts, rotary, of_read[1], cache_only=cache_only)
        for run, past in zip(runs, found, strict=True):
            run.past = past
        normed = torch.empty_like(x)
        if not cache_only:
            self.decoding.elementwise.rms_norm(x, model.final_norm, model.eps, normed)
        return normed.split(lengths)

    def put(self, slot: int, run: TokenRun) -> None:
        self.layers.put(slot, [link.past for link in run.chain() if link.past is not None])
        self.shifts.put(slot, run.shift)

    def move(self, source: int, target: int) -> None:
        self.layers.move(source, target)
        self.shifts.move(source, target)

    def resize(self, slots: int, /) -> None:
        self.layers.resize(slots)
        self.shifts.resize(slots)

    # ---- decode

    @torch.no_grad()
    def step(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        adapters: Sequence[Adapter | None],
        *,
        greedy: bool = False,
    ) -> tuple[torch.Tensor | None, ExactLogits | None]:
        model, count = self.model, len(tokens)
        # Without adapters, the updates are the same for every number of rows.
        updates = self._updates_for(adapters if any(adapters) else [None])
        x = model.embedding(torch.tensor(tokens, device=self.device))  # (B, H)
        places = self.layers.lengths[:count]
        if self.base.vision is not None:
            places = self.shifts.after(places)
        x = self.layers.step(x, slots, self.rotary.at(places), updates.layers)
        for slot in range(count):
            self.layers.lengths[slot] += 1
        normed = torch.empty_like(x)
        self.decoding.elementwise.rms_norm(x, model.final_norm, model.eps, normed)
        if self.decoding.logits is None:
            return project(self.decoding.products, normed, self.head, updates.head), None
        return self.decoding.logits(normed, self.head, updates.head, written=not greedy)

    def logits(self, hidden: torch.Tensor, adapter: Adapter | None) -> torch.Tensor:
        """(N, H) -> (N, V)"""
        update = self._updates_of(adapter).head
        return project(self.decoding.products, hidden, self.head, update)

    def logprobs(
        self, hidden: torch.Tensor, adapter: Adapter | None, targets: torch.Tensor
    ) -> torch.Tensor:
        return target_logprobs(self.base, adapter, hidden, targets)

    def _updates_of(self, adapter: Adapter | None) -> _Updates:
        updates = self._updates.pop(adapter, None)
        if updates is None:
            layers = [layer_updates(layer, adapter) for layer in self.model.layers]
            head = update_of(self.head, adapter)
            if self.decoding.by_rank and self.device.type == "cpu":
                layers = [
                    LayerUpdates(*map(stored_by_rank, updates.in_order)) for updates in layers
                ]
                head = stored_by_rank(head)
            updates = _Updates(layers, head)
        self._updates[adapter] = updates
        return updates

    def _updates_for(self, adapters: Sequence[Adapter | None]) -> _StepUpdates:
        """What is added to rows of these adapters; those of one stand together."""
        if self._of_step is not None and self._of_step.adapters == adapters:
            return self._of_step
        groups = [(rows, self._updates_of(adapter)) for adapter, rows in adapter_runs(adapters)]
        layers = _row_updates_of_layers(
            [(rows, updates.layers) for rows, updates in groups], len(self.model.layers)
        )
        head = row_updates((rows, updates.head) for rows, updates in groups)
        self._of_step = _StepUpdates(list(adapters), layers, head)
        unused = list(self._updates)[: -len(groups)]
        size = sum(self._updates[adapter].nbytes() for adapter in unused)
        for adapter in unused:
            if size <= _REMEMBERED:
                break
            size -= self._updates.pop(adapter).nbytes()
        return self._of_step


class _RotaryRows:
    """Rotary tables of all positions up to a number, so that a step only reads its rows."""

    def __init__(self, model: DenseModel, device: torch.device) -> None:
        self._model, self._device = model, device
        # The tables of other kinds depend on the longest position that they are made for.
        self._is_fixed = getattr(model.rotary, "rope_type", "") in _FIXED_ROTARY
        self._rows = 0
        self._cosine = self._sine = torch.empty(0)  # (rows, 1, D/2)

    def at(self, positions: Sequence[int]) -> RotaryTables:
        """Like `DenseModel.rotary_tables`."""
        index, longest = torch.tensor(positions, device=self._device), max(positions)
        if not self._is_fixed or longest >= _MOST_ROTARY_ROWS:
            return self._model.rotary_tables(index)
        if longest >= self._rows:
            self._rows = min(_MOST_ROTARY_ROWS, 2 * longest + _STEP)
            rows = torch.arange(self._rows, device=self._device)
            self._cosine, self._sine = self._model.rotary_tables(rows)
        return self._cosine.index_select(0, index), self._sine.index_select(0, index)


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Runs of one adapter with one parent, end to end in a pack.

    Their attention is a computation of its own: numbers of an adapter that are not finite would
    spoil those of others behind any mask.
    """

    tokens: slice
    past: int  # tokens before them
    layers: KeysAndValues | None  # (G, P, D): the past, zeros at its end
    attention: PackedAttention  # among themselves; TileAttention where there is a past


class _Prefill(DensePass):
    """A forward pass over runs that keeps keys and values; each run attends to its parents' too."""

    def __init__(
        self,
        model: DenseModel,
        kernels: Kernels,
        runs: Sequence[TokenRun],  # those of one adapter stand together, and those of one parent
        updates: Sequence[list[LayerUpdates]],  # of each adapter, in their order
        vision: Vision | None = None,  # if there are images in them, or before them
        positions: torch.Tensor | None = None,  # (3, T), with `vision`
    ) -> None:
        lengths, starts = [len(run.tokens) for run in runs], [run.start for run in runs]
        super().__init__(
            model,
            kernels,
            None,
            lengths,
            backward=False,
            starts=starts,
            vision=vision,
            positions=positions,
        )
        self.adapter_updates = updates
        # The first token behind those of each adapter. Padding has none.
        ends = list(accumulate(lengths))
        self.ends = [ends[rows.stop - 1] for _, rows in adapter_runs([run.adapter for run in runs])]
        self.past: KeysAndValues = []
        self.siblings = list(self._siblings(runs))

    def _layer_updates(self) -> list[LayerUpdates]:
        return self.adapter_updates[0]

    def _updates_for(self, index: int, rows: torch.Tensor | None) -> LayerUpdates | LayerRowUpdates:
        if len(self.ends) == 1:
            return self.updates[index]
        ends = self.ends
        if rows is not None:  # in the order of tokens
            ends = torch.searchsorted(rows.cpu(), torch.tensor(ends)).tolist()
        groups = [slice(start, end) for start, end in pairwise([0, *ends])]
        layers = [updates[index] for updates in self.adapter_updates]
        return layer_row_updates(list(zip(groups, layers, strict=True)))

    def _siblings(self, runs: Sequence[TokenRun]) -> Iterator[_Siblings]:
        start = first = 0
        while first < len(runs):
            parent, adapter = runs[first].parent, runs[first].adapter
            assert parent is None or parent.adapter is adapter
            last = first + 1
            while last < len(runs) and (runs[last].parent, runs[last].adapter) == (parent, adapter):
                last += 1
            lengths = [len(run.tokens) for run in runs[first:last]]
            end = start + sum(lengths)
            if last == len(runs) and end < self.padded:
                lengths.append(self.padded - end)
                end = self.padded
            weight = self.model.final_norm
            yield _Siblings(
                slice(start, end),
                runs[first].start,
                None if parent is None else _padded_past(parent),
                self.kernels.attention(lengths)
                if parent is None
                else TileAttention(lengths, self.queries_per_key, weight.dtype, weight.device),
            )
            start, first = end, last

    def _attend(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        self.past.append((key, value))
        parts = []
        for siblings in self.siblings:
            per_key, tokens = self.queries_per_key, siblings.tokens
            rows = slice(tokens.start * per_key, tokens.stop * per_key)
            among = query[:, rows], key[:, siblings.tokens], value[:, siblings.tokens]
            if siblings.layers is None:
                parts.append(siblings.attention.attend(*among, keep=False)[0])
                continue
            assert isinstance(siblings.attention, TileAttention)
            heads = _attend_to_past(
                *among, siblings.attention.tiles, *siblings.layers[index], siblings.past
            )
            parts.append(by_token(heads, among[1].shape[1]))
        return torch.cat(parts), None


def _has_images(run: TokenRun) -> bool:
    """Whether the positions of a run are not numbers of tokens, or its tokens not all text."""
    return bool(run.parent and run.parent.shift) or min(run.tokens) < 0


def _padded_past(parent: TokenRun) -> KeysAndValues:
    """Keys and values of a run and all before it, (G, P, D), P a multiple of _STEP."""
    chain = [run.past for run in parent.chain() if run.past is not None]
    joined: KeysAndValues = []
    for layer in zip(*chain, strict=True):
        sides = [torch.cat([pair[side] for pair in layer], 1) for side in (0, 1)]
        missing = -sides[0].shape[1] % _STEP
        key, value = (torch.nn.functional.pad(side, (0, 0, 0, missing)) for side in sides)
        joined.append((key, value))
    return joined


def _attend_to_past(
    query: torch.Tensor,  # (G, T J, D), scaled
    key: torch.Tensor,  # (G, T, D)
    value: torch.Tensor,  # (G, T, D)
    tiles: Sequence[Tile],
    past_key: torch.Tensor,  # (G, P, D)
    past_value: torch.Tensor,
    length: int,  # of the past; beyond it are zeros
) -> torch.Tensor:  # (G, T J, D)
    """Like `tile_attention.attend`, but every query sees the past, too."""
    output = torch.empty_like(query)
    per_key, before = query.shape[1] // key.shape[1], past_key.shape[1]
    for tile in tiles:
        rows, near = slice(tile.start * per_key, tile.end * per_key), slice(tile.first, tile.end)
        keys = torch.cat([past_key, key[:, near]], 1)
        scores = query[:, rows] @ keys.transpose(1, 2)  # (G, L J, P + S)
        scores[:, :, length : before + tile.hidden] = -torch.inf
        scores[:, :, before + tile.masked - tile.first :] += tile.mask
        output[:, rows] = scores.softmax(-1) @ torch.cat([past_value, value[:, near]], 1)
    return output


def _row_updates_of_layers(
    groups: Sequence[tuple[slice, list[LayerUpdates]]], layers: int
) -> list[LayerRowUpdates]:
    return [
        layer_row_updates([(rows, updates[index]) for rows, updates in groups])
        for index in range(layers)
    ]


def _head(base: BaseModel) -> Projection:
    layer = base.unembed
    weight, bias = layer.weight.detach(), layer.base.bias
    bias = None if bias is None else bias.detach()
    return Projection(weight, base.dtype, bias, (layer.path,), (len(weight),))
