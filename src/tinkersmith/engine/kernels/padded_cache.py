"""The KV cache of rows that decode together, by torch, on every device.

Attention uses plain products over padded slots, a group of slots at a time. On a CPU they run at
the speed of its bf16 units if keys and values are contiguous. Hence each group of slots has a cache
of its own, no longer than its longest row needs.

Axes: B active rows, S cached positions, Q query heads, G key/value heads, J = Q / G queries per
key, D head size.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm as scaled_norm

from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import DenseLayer, DenseModel, RotaryTables

_GROUP = 16  # slots
_STEP = 64  # positions by which a cache grows: oneDNN compiles a kernel for every size


class PaddedCache:
    """The KV cache of rows in slots; `attend` adds one position to each active row."""

    def __init__(self, model: DenseModel, slots: int) -> None:
        self.model = model
        self.lengths: list[int] = []
        self.head_norms = [_head_norm(model, layer) for layer in model.layers]
        self.groups: list[_Slots] = []
        self.active: list[_Active] = []
        self.resize(slots)

    def put(self, slot: int, parts: Sequence[KeysAndValues]) -> None:
        self.lengths[slot] = sum(part[0][0].shape[1] for part in parts)
        group, place = self._group(slot)
        self._fit(slot // _GROUP, self.lengths[slot])
        group.put(place, parts)

    def move(self, source: int, target: int) -> None:
        (origin, start), (group, end) = self._group(source), self._group(target)
        self.lengths[target] = length = self.lengths[source]
        self._fit(target // _GROUP, length)
        group.put(end, [origin.take(start, length)])

    def resize(self, slots: int) -> None:
        """Have so many slots from now on; rows beyond them have ended."""
        self.lengths += [0] * (slots - len(self.lengths))
        del self.lengths[slots:]
        self.active = []
        sizes = [min(_GROUP, slots - start) for start in range(0, slots, _GROUP)]
        del self.groups[len(sizes) :]
        for group, size in zip(self.groups, sizes, strict=False):
            group.resize(size)
        self.groups += [_Slots(self.model, size) for size in sizes[len(self.groups) :]]

    def held(self) -> int:
        """Bytes of all slots."""
        return sum(group.held() for group in self.groups)

    def begin(self, rotary: RotaryTables) -> None:
        """A step of as many rows as there are positions in `rotary` begins."""
        count = len(rotary[0])
        self.rotary = self._per_head(rotary)
        self.active = []
        for index, start in enumerate(range(0, count, _GROUP)):
            lengths = self.lengths[start : min(start + _GROUP, count)]
            self.groups[index].fit(max(lengths) + 1)
            self.active.append(_Active(self.groups[index], start, lengths, self.model.final_norm))

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        count, groups, size = len(qkv), self.model.key_heads, self.model.head_size
        turned = self._rotate(qkv, self.head_norms[layer])  # (B, Q + G, D)
        query = turned[:, : self.model.heads].reshape(count * groups, -1, size)
        key = turned[:, self.model.heads :]
        value = qkv[:, -groups * size :].view(count, groups, size)
        heads = torch.empty_like(query)
        for rows in self.active:
            rows.attend(layer, query, key, value, heads)
        return heads.view(count, -1)

    def _group(self, slot: int) -> tuple["_Slots", int]:
        return self.groups[slot // _GROUP], slot % _GROUP

    def _fit(self, group: int, needed: int) -> None:
        """Space for `needed` positions in a group, and for what its rows have."""
        longest = max(self.lengths[group * _GROUP : (group + 1) * _GROUP])
        self.groups[group].fit(max(needed, longest))

    def _per_head(self, rotary: RotaryTables) -> RotaryTables:
        """Full-width rotary tables per head, (B, Q + G, D).

        The attention scale is folded into the rows of queries.
        """
        model, (cosine, sine) = self.model, rotary
        factor = torch.ones(model.heads + model.key_heads, 1, device=cosine.device)
        factor[: model.heads] = model.scale
        return torch.cat([cosine, cosine], -1) * factor, torch.cat([-sine, sine], -1) * factor

    def _rotate(self, qkv: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """Queries and keys, normed and rotated in fp32 (Su et al. 2021): (B, Q + G, D)."""
        model, (cosine, sine) = self.model, self.rotary
        heads = qkv[:, : -model.key_heads * model.head_size]
        heads = heads.view(len(qkv), -1, model.head_size).float()
        if norm is not None:
            heads = scaled_norm(heads, (model.head_size,), None, model.eps).mul_(norm)
        swapped = heads.roll(model.head_size // 2, -1)
        return (heads * cosine).addcmul_(swapped, sine).to(qkv.dtype)


class _Slots:
    """Keys and values of some rows in every layer, padded to the longest."""

    def __init__(self, model: DenseModel, slots: int) -> None:
        shape = (slots, model.key_heads, 0, model.head_size)
        self.keys = [model.final_norm.new_zeros(shape) for _ in model.layers]
        self.values = [model.final_norm.new_zeros(shape) for _ in model.layers]
        self.capacity = 0

    def fit(self, longest: int) -> None:
        """Space for `longest` positions; much more than that is freed."""
        wanted = -(-longest // _STEP) * _STEP
        if wanted <= self.capacity <= wanted + 4 * _STEP:
            return
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                used = min(self.capacity, wanted)
                slots, heads, _, size = old.shape
                store[layer] = old.new_zeros(slots, heads, wanted, size)
                store[layer][:, :, :used] = old[:, :, :used]
        self.capacity = wanted

    def resize(self, slots: int) -> None:
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                count = min(slots, len(old))
                if slots != len(old):
                    store[layer] = old.new_zeros(slots, *old.shape[1:])
                    store[layer][:count] = old[:count]

    def held(self) -> int:
        return sum(layer.nbytes for store in (self.keys, self.values) for layer in store)

    def put(self, place: int, parts: Sequence[KeysAndValues]) -> None:
        start = 0
        for part in parts:
            end = start + part[0][0].shape[1]
            for layer, (key, value) in enumerate(part):
                self.keys[layer][place, :, start:end] = key
                self.values[layer][place, :, start:end] = value
            start = end
        # What is hidden still goes through the products: no number that is not finite may be left
        # there by an earlier row.
        for store in (self.keys, self.values):
            for layer in store:
                layer[place, :, start:] = 0

    def take(self, place: int, length: int) -> KeysAndValues:
        return [
            (key[place, :, :length], value[place, :, :length])
            for key, value in zip(self.keys, self.values, strict=True)
        ]


class _Active:
    """The active rows of one group of slots, in one step."""

    def __init__(
        self, slots: _Slots, start: int, lengths: Sequence[int], template: torch.Tensor
    ) -> None:
        self.slots, self.count = slots, len(lengths)
        self.rows = slice(start, start + len(lengths))
        self.places = torch.arange(self.count, device=template.device)
        self.ends = torch.tensor(lengths, device=template.device)
        beyond = torch.arange(slots.capacity, device=template.device) > self.ends[:, None]
        mask = torch.zeros(beyond.shape, dtype=template.dtype, device=template.device)
        self.mask = mask.masked_fill_(beyond, -torch.inf)[:, None, None]  # (count, 1, 1, S)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # (B G, J, D)
        key: torch.Tensor,  # (B, G, D)
        value: torch.Tensor,  # (B, G, D)
        output: torch.Tensor,  # (B G, J, D)
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


def _head_norm(model: DenseModel, layer: DenseLayer) -> torch.Tensor | None:
    """The weights of all heads' norms, (Q + G, D) in fp32."""
    if layer.query_norm is None or layer.key_norm is None:
        return None
    norms = [layer.query_norm.expand(model.heads, -1), layer.key_norm.expand(model.key_heads, -1)]
    return torch.cat(norms).float()
