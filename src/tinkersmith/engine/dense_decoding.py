"""Prefill and decode of Llama-shaped models, written out in few operations over joined weights.

Decode attends by plain products over padded slots, a group of slots at a time: on a CPU they run at
the speed of its bf16 units, if keys and values lie in one piece. Hence each group of slots has a
cache of its own, as long as its longest row and no longer.

Axes: B active rows, S cached positions, P tokens of a past, T packed tokens, H hidden size,
Q query heads, G key/value heads, R = Q / G, D head size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import rms_norm as scaled_norm

from tinkersmith.engine.attention import KeysAndValues
from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.decoding import past_of
from tinkersmith.engine.dense_layers import DenseLayer, DenseModel, PackedAttention, layer_updates
from tinkersmith.engine.dense_projection import Projection, Update, outputs, update_of
from tinkersmith.engine.dense_training import DensePass
from tinkersmith.engine.lora import Adapter
from tinkersmith.engine.prefixes import Run
from tinkersmith.engine.tile_attention import Tile, TileAttention, by_token

_GROUP = 16  # slots
_STEP = 64  # positions by which a cache grows: every size is a kernel of its own to oneDNN


class DenseDecoder:
    shares = True

    def __init__(self, base: BaseModel, adapter: Adapter | None, slots: int) -> None:
        assert base.dense is not None
        model = self.model = base.dense
        self.device = base.device
        self.adapter = adapter
        self.updates = [layer_updates(layer, adapter) for layer in model.layers]
        self.head_norms = [_head_norm(model, layer) for layer in model.layers]
        self.head = _head(base, adapter)
        self.lengths = [0] * slots
        sizes = [min(_GROUP, slots - start) for start in range(0, slots, _GROUP)]
        self.groups = [_Slots(model, size) for size in sizes]

    # ---- prefill

    def prefill(self, runs: Sequence[Run], wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        # Runs with one parent stand together: they attend to its keys in one go.
        parents = list(dict.fromkeys(run.parent for run in runs))
        order = sorted(range(len(runs)), key=lambda index: parents.index(runs[index].parent))
        ordered = [runs[index] for index in order]
        tokens = torch.tensor([token for run in ordered for token in run.tokens])
        lengths = [len(run.tokens) for run in ordered]
        bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
        asked = [torch.arange(*bounds[i : i + 2]) for i, j in enumerate(order) if wanted[j]]
        rows = torch.cat([torch.arange(1), *asked]).to(self.device)  # one at least
        forward = _Prefill(self.model, self.adapter, ordered)
        hidden = forward.forward(tokens.to(self.device), rows)[1:]
        parts = iter(hidden.split([len(part) for part in asked]))
        answer: list[torch.Tensor | None] = [None] * len(runs)
        for index, start, end in zip(order, bounds[:-1], bounds[1:], strict=True):
            runs[index].past = past_of(forward.past, start, end)
            if wanted[index]:
                answer[index] = next(parts)
        return answer

    def put(self, slot: int, run: Run) -> None:
        parts = [one.past for one in run.chain() if one.past is not None]
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        group, place = self._group(slot)
        self._fit(slot // _GROUP, self.lengths[slot])
        group.put(place, parts)

    def move(self, source: int, target: int) -> None:
        (origin, start), (group, end) = self._group(source), self._group(target)
        self.lengths[target] = length = self.lengths[source]
        self._fit(target // _GROUP, length)
        group.put(end, [origin.take(start, length)])

    def _group(self, slot: int) -> tuple["_Slots", int]:
        return self.groups[slot // _GROUP], slot % _GROUP

    def _fit(self, group: int, needed: int) -> None:
        """Room for `needed` positions in a group, and for what its rows have."""
        longest = max(self.lengths[group * _GROUP : (group + 1) * _GROUP])
        self.groups[group].fit(max(needed, longest))

    # ---- decode

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:  # B tokens -> (B, V)
        model, count = self.model, len(tokens)
        x = model.embedding(torch.tensor(tokens, device=self.device))  # (B, H)
        turn = self._turn(self.lengths[:count])
        active: list[_Active] = []
        for index, start in enumerate(range(0, count, _GROUP)):
            lengths = self.lengths[start : min(start + _GROUP, count)]
            self.groups[index].fit(max(lengths) + 1)
            active.append(_Active(self.groups[index], start, lengths, x))
        for index in range(len(model.layers)):
            x = self._layer(index, x, turn, active)
        for slot in range(count):
            self.lengths[slot] += 1
        normed = torch.empty_like(x)
        model.elementwise.rms_norm(x, model.final_norm, model.eps, normed)
        return self.logits(normed)

    def _layer(
        self,
        index: int,
        x: torch.Tensor,  # (B, H)
        turn: tuple[torch.Tensor, torch.Tensor],
        active: Sequence["_Active"],
    ) -> torch.Tensor:
        model, layer, updates = self.model, self.model.layers[index], self.updates[index]
        count, groups, size = len(x), model.key_heads, model.head_size
        normed = torch.empty_like(x)
        model.elementwise.rms_norm(x, layer.attention_norm, model.eps, normed)
        qkv = self._project(normed, layer.qkv, updates.qkv)
        turned = self._rotate(qkv, self.head_norms[index], turn)  # (B, Q + G, D)
        query = turned[:, : model.heads].reshape(count * groups, -1, size)
        key = turned[:, model.heads :]
        value = qkv[:, -groups * size :].view(count, groups, size)
        heads = torch.empty_like(query)
        for part in active:
            part.attend(index, query, key, value, heads)
        middle = self._project(heads.view(count, -1), layer.output, updates.output, x)
        model.elementwise.rms_norm(middle, layer.mlp_norm, model.eps, normed)
        gate_up, low = outputs(count, layer.gate_up, updates.gate_up)
        activated = model.products.project_swiglu(
            *(normed, layer.gate_up, updates.gate_up), gate_up, low
        )
        return self._project(activated, layer.down, updates.down, middle)

    def _project(
        self,
        x: torch.Tensor,  # (N, in)
        projection: Projection,
        update: Update | None,
        residual: torch.Tensor | None = None,  # (N, out)
    ) -> torch.Tensor:  # (N, out)
        output, low = outputs(len(x), projection, update)
        self.model.products.project(x, projection, update, output, low, residual)
        return output

    def _turn(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of each row's heads, (B, Q + G, D): queries are scaled by them, too."""
        model = self.model
        where = torch.tensor(positions, device=self.device)[None]
        like = model.final_norm.new_empty(0, dtype=torch.float32)
        cosine, sine = (part[0, :, None] for part in model.rotary(like, where))  # (B, 1, D)
        factor = torch.ones(model.heads + model.key_heads, 1, device=self.device)
        factor[: model.heads] = model.scale
        half = model.head_size // 2
        return cosine * factor, torch.cat([-sine[..., :half], sine[..., half:]], -1) * factor

    def _rotate(
        self,
        qkv: torch.Tensor,
        norm: torch.Tensor | None,
        turn: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Queries and keys, normed and rotated in fp32 (Su et al. 2021): (B, Q + G, D)."""
        model, (cosine, sine) = self.model, turn
        heads = qkv[:, : -model.key_heads * model.head_size]
        heads = heads.view(len(qkv), -1, model.head_size).float()
        if norm is not None:
            heads = scaled_norm(heads, (model.head_size,), None, model.eps).mul_(norm)
        swapped = heads.roll(model.head_size // 2, -1)
        return (heads * cosine).addcmul_(swapped, sine).to(qkv.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:  # (N, H) -> (N, V)
        return self._project(hidden, *self.head)


class _Slots:
    """Keys and values of some rows in every layer, padded to the longest."""

    def __init__(self, model: DenseModel, slots: int) -> None:
        shape = (slots, model.key_heads, 0, model.head_size)
        self.keys = [model.final_norm.new_zeros(shape) for _ in model.layers]
        self.values = [model.final_norm.new_zeros(shape) for _ in model.layers]
        self.capacity = 0

    def fit(self, longest: int) -> None:
        """Room for `longest` positions; much more than that is given back."""
        wanted = -(-longest // _STEP) * _STEP
        if wanted <= self.capacity <= wanted + 4 * _STEP:
            return
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                kept = min(self.capacity, wanted)
                slots, heads, _, size = old.shape
                store[layer] = old.new_zeros(slots, heads, wanted, size)
                store[layer][:, :, :kept] = old[:, :, :kept]
        self.capacity = wanted

    def put(self, place: int, parts: Sequence[KeysAndValues]) -> None:
        start = 0
        for part in parts:
            end = start + part[0][0].shape[1]
            for layer, (key, value) in enumerate(part):
                self.keys[layer][place, :, start:end] = key
                self.values[layer][place, :, start:end] = value
            start = end

    def take(self, place: int, length: int) -> KeysAndValues:
        return [
            (key[place, :, :length], value[place, :, :length])
            for key, value in zip(self.keys, self.values, strict=True)
        ]


class _Active:
    """The active rows of one group of slots, in one step."""

    def __init__(
        self, slots: _Slots, start: int, lengths: Sequence[int], like: torch.Tensor
    ) -> None:
        self.slots, self.count = slots, len(lengths)
        self.rows = slice(start, start + len(lengths))
        self.places = torch.arange(self.count, device=like.device)
        self.ends = torch.tensor(lengths, device=like.device)
        beyond = torch.arange(slots.capacity, device=like.device) > self.ends[:, None]
        mask = torch.zeros(beyond.shape, dtype=like.dtype, device=like.device)
        self.mask = mask.masked_fill_(beyond, -torch.inf)[:, None, None]  # (count, 1, 1, S)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # (B G, R, D)
        key: torch.Tensor,  # (B, G, D)
        value: torch.Tensor,  # (B, G, D)
        output: torch.Tensor,  # (B G, R, D)
    ) -> None:
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        keys[self.places, :, self.ends] = key[self.rows]
        values[self.places, :, self.ends] = value[self.rows]
        groups = key.shape[1]
        rows = slice(self.rows.start * groups, self.rows.stop * groups)
        seen = keys[: self.count].flatten(0, 1)  # (count G, S, D)
        scores = torch.bmm(query[rows], seen.transpose(1, 2))
        scores.view(self.count, groups, *scores.shape[1:]).add_(self.mask)
        torch.bmm(scores.softmax(-1), values[: self.count].flatten(0, 1), out=output[rows])


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Runs of one parent, end to end in a pack."""

    tokens: slice
    past: int  # how many tokens are before them
    layers: KeysAndValues | None  # (G, P, D): the past, zeros at its end
    attention: PackedAttention  # among themselves; TileAttention where there is a past


class _Prefill(DensePass):
    """A forward pass over runs that keeps keys and values, and lets each see its parents'."""

    def __init__(
        self,
        model: DenseModel,
        adapter: Adapter | None,
        runs: Sequence[Run],  # those of one parent stand together
    ) -> None:
        lengths, starts = [len(run.tokens) for run in runs], [run.start for run in runs]
        super().__init__(model, adapter, lengths, backward=False, starts=starts)
        self.past: KeysAndValues = []
        self.siblings = list(self._siblings(runs))

    def _siblings(self, runs: Sequence[Run]) -> Iterator[_Siblings]:
        start = first = 0
        while first < len(runs):
            parent = runs[first].parent
            last = first + 1
            while last < len(runs) and runs[last].parent is parent:
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
                self.model.attention(lengths)
                if parent is None
                else TileAttention(lengths, self.share, weight.dtype, weight.device),
            )
            start, first = end, last

    def _attend(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        self.past.append((key, value))
        parts = []
        for one in self.siblings:
            rows = slice(one.tokens.start * self.share, one.tokens.stop * self.share)
            own = query[:, rows], key[:, one.tokens], value[:, one.tokens]
            if one.layers is None:
                parts.append(one.attention.attend(*own, keep=False)[0])
                continue
            assert isinstance(one.attention, TileAttention)
            heads = _attend_to_past(*own, one.attention.tiles, *one.layers[index], one.past)
            parts.append(by_token(heads, own[1].shape[1]))
        return torch.cat(parts), None


def _padded_past(parent: Run) -> KeysAndValues:
    """Keys and values of a run and all before it, (G, P, D), P a round number."""
    chain = [run.past for run in parent.chain() if run.past is not None]
    joined: KeysAndValues = []
    for layer in zip(*chain, strict=True):
        sides = [torch.cat([pair[side] for pair in layer], 1) for side in (0, 1)]
        missing = -sides[0].shape[1] % _STEP
        key, value = (torch.nn.functional.pad(side, (0, 0, 0, missing)) for side in sides)
        joined.append((key, value))
    return joined


def _attend_to_past(
    query: torch.Tensor,  # (G, T R, D), scaled
    key: torch.Tensor,  # (G, T, D)
    value: torch.Tensor,  # (G, T, D)
    tiles: Sequence[Tile],
    past_key: torch.Tensor,  # (G, P, D)
    past_value: torch.Tensor,
    length: int,  # of the past; beyond it are zeros
) -> torch.Tensor:  # (G, T R, D)
    """As `attend`, every query sees the past, too."""
    output = torch.empty_like(query)
    share, before = query.shape[1] // key.shape[1], past_key.shape[1]
    for tile in tiles:
        rows, own = slice(tile.start * share, tile.end * share), slice(tile.first, tile.end)
        keys = torch.cat([past_key, key[:, own]], 1)
        scores = query[:, rows] @ keys.transpose(1, 2)  # (G, L R, P + S)
        scores[:, :, length : before + tile.hidden] = -torch.inf
        scores[:, :, before + tile.masked - tile.first :] += tile.mask
        output[:, rows] = scores.softmax(-1) @ torch.cat([past_value, value[:, own]], 1)
    return output


def _head_norm(model: DenseModel, layer: DenseLayer) -> torch.Tensor | None:
    """The weights of all heads' norms, (Q + G, D) in fp32."""
    if layer.query_norm is None or layer.key_norm is None:
        return None
    parts = [layer.query_norm.expand(model.heads, -1), layer.key_norm.expand(model.key_heads, -1)]
    return torch.cat(parts).float()


def _head(base: BaseModel, adapter: Adapter | None) -> tuple[Projection, Update | None]:
    layer = base.unembed
    weight, bias = layer.weight.detach(), layer.base.bias
    bias = None if bias is None else bias.detach()
    projection = Projection(weight, weight.dtype, bias, (layer.path,), (len(weight),))
    return projection, update_of(projection, adapter)
