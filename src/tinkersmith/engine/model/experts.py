"""LoRA on mixture-of-experts layers, in the layout of Tinker's cloud.

A module "<path>.experts" has the parts "<path>.experts.w1" (gate), ".w3" (up) and ".w2" (down).
Each expert has its own matrices on the side of its width; the experts of a layer share those on the
side of the hidden size: w1 and w3 have lora_A (1, R, H) and lora_B (E, F, R), w2 has lora_A
(E, R, F) and lora_B (1, H, R). Experts without a gate have w1 (up) and w2 only. The router is
frozen. An adapter of another program may have (E, ...) on both sides: it can be sampled from.

Families store the frozen matrices in several ways: inputs or outputs first, gate and up one after
the other or in turn, with biases or without. transformers notes the way on each layer.

Axes: N tokens, X experts per token, P of their N X pairs, E experts, H hidden size, F width of an
expert, R rank of the adapter, I, O inputs and outputs of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import grouped_mm, linear

from tinkersmith.engine.model import lora


class LoraExperts(nn.Module):
    """A frozen layer of experts that adds the active adapter's products, if it trains this layer.

    Without such an adapter the layer is computed as transformers does.
    """

    def __init__(self, base: nn.Module, path: str) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.inputs_first = bool(getattr(base, "is_transposed", False))
        gate = getattr(type(base), "_apply_gate", None)
        self.has_own_gate = getattr(gate, "__module__", "") == type(base).__module__
        self.alternates = self.has_own_gate and _alternates(base)
        self.has_gate = not hasattr(base, "up_proj")
        self.inward = "gate_up_proj" if self.has_gate else "up_proj"
        self.parts = ("w1", "w2", "w3") if self.has_gate else ("w1", "w2")

    def weight(self, name: str) -> torch.Tensor:  # (E, O, I)
        weight = cast(torch.Tensor, getattr(self.base, name))
        return weight.transpose(1, 2) if self.inputs_first else weight

    def forward(
        self,
        hidden: torch.Tensor,  # (N, H)
        chosen: torch.Tensor,  # (N, X), of experts
        weights: torch.Tensor,  # (N, X)
    ) -> torch.Tensor:  # (N, H)
        adapters = lora.active()
        if adapters is None:
            return self.base(hidden, chosen, weights)
        if isinstance(adapters, lora.Adapter):
            trained = [(adapters, None)] if self._is_trained_by(adapters) else []
        else:
            trained = [
                (group.adapter, group.rows)
                for group in adapters
                if self._is_trained_by(group.adapter)
            ]
        return (
            self.routed(hidden, chosen, weights, trained)
            if trained
            else self.base(hidden, chosen, weights)
        )

    def _is_trained_by(self, adapter: lora.Adapter) -> bool:
        return f"{self.path}.w1.lora_A" in adapter.weights

    def routed(
        self,
        hidden: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        adapters: Sequence[tuple[lora.Adapter, torch.Tensor | None]],
    ) -> torch.Tensor:
        """Like `forward`, with rows sorted by expert, so that each expert has one product.

        Each adapter is applied to the given rows of `hidden`, or to all.
        """
        order = chosen.flatten().argsort(stable=True)  # of the N X pairs
        token, expert = order // chosen.shape[1], chosen.flatten()[order]
        inward_weight, down_weight = self.weight(self.inward), self.weight("down_proj")
        counts = torch.bincount(chosen.flatten(), minlength=len(down_weight))
        ends = counts.cumsum(0).int()  # (E,)
        x = hidden[token]  # (N X, H)
        inward = self._with_bias(grouped_linear(x, inward_weight, ends), self.inward, expert)
        outputs = self._split(inward)  # each (N X, F)
        groups = [
            _pairs_of(adapter, rows, token, expert, counts, ends) for adapter, rows in adapters
        ]
        for group in groups:  # in fp32 also on a bf16 base, as in LoraLinear
            outputs = [
                group.added(output, self._inward_update(hidden, token, part, group))
                for output, part in zip(outputs, ("w1", "w3"), strict=False)
            ]
        inner = self._activated(outputs)
        output = self._with_bias(grouped_linear(inner, down_weight, ends), "down_proj", expert)
        for group in groups:
            a, b = (group.adapter.weights[f"{self.path}.w2.lora_{side}"] for side in "AB")
            low = grouped_linear(group.of(inner).float(), a, group.ends)  # (P, R)
            high = linear(low, b[0]) if len(b) == 1 else grouped_linear(low, b, group.ends)
            output = group.added(output, high * group.adapter.scaling)
        output = output * weights.flatten()[order, None]
        return torch.zeros_like(hidden).index_add(0, token, output.to(hidden.dtype))

    def _with_bias(self, output: torch.Tensor, name: str, expert: torch.Tensor) -> torch.Tensor:
        bias = getattr(self.base, f"{name}_bias", None)  # (E, O)
        return output if bias is None else output + bias[expert]

    def _split(self, inward: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of gate and up, or of up alone."""
        if not self.has_gate:
            return [inward]
        if self.alternates:
            return [inward[:, ::2], inward[:, 1::2]]
        return list(inward.chunk(2, -1))

    def _activated(self, outputs: list[torch.Tensor]) -> torch.Tensor:  # (N X, F) all
        if self.has_gate and self.has_own_gate:
            both = (
                torch.stack(outputs, -1).flatten(1) if self.alternates else torch.cat(outputs, -1)
            )
            return self.base._apply_gate(both)  # type: ignore[operator]
        activated = self.base.act_fn(outputs[0])  # type: ignore[operator]
        return activated * outputs[1] if self.has_gate else activated

    def _inward_update(
        self,
        hidden: torch.Tensor,  # (N, H)
        token: torch.Tensor,  # (N X,)
        part: str,
        group: "_Pairs",
    ) -> torch.Tensor:  # (P, F)
        a, b = (group.adapter.weights[f"{self.path}.{part}.lora_{side}"] for side in "AB")
        hidden = hidden.float()
        if len(a) > 1:
            low = grouped_linear(hidden[group.of(token)], a, group.ends)
        elif group.pairs is None:
            low = linear(hidden, a[0])[token]  # (N X, R)
        else:
            low = linear(hidden[token[group.pairs]], a[0])
        return grouped_linear(low, b, group.ends) * group.adapter.scaling


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The P pairs of a token and its expert to which an adapter is applied, sorted by expert."""

    adapter: lora.Adapter
    pairs: torch.Tensor | None  # (P,); None: all
    ends: torch.Tensor  # (E,) int32: behind the last pair of each expert

    def of(self, values: torch.Tensor) -> torch.Tensor:  # (N X, ...) -> (P, ...)
        return values if self.pairs is None else values[self.pairs]

    def added(self, output: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """`output` (N X, O) plus the update (P, O) of these pairs."""
        update = update.to(output.dtype)
        if self.pairs is None:
            return output + update
        return output.index_add(0, self.pairs, update)


def _pairs_of(
    adapter: lora.Adapter,
    rows: torch.Tensor | None,  # of tokens
    token: torch.Tensor,  # (N X,)
    expert: torch.Tensor,  # (N X,)
    counts: torch.Tensor,  # (E,)
    ends: torch.Tensor,  # (E,)
) -> _Pairs:
    if rows is None:
        return _Pairs(adapter, None, ends)
    pairs = torch.isin(token, rows).nonzero()[:, 0]
    own = torch.bincount(expert[pairs], minlength=len(counts)).cumsum(0).int()
    return _Pairs(adapter, pairs, own)


def grouped_linear(
    x: torch.Tensor,  # (N, I), sorted by expert
    weight: torch.Tensor,  # (E, O, I)
    ends: torch.Tensor,  # (E,) int32: behind the last row of each expert
) -> torch.Tensor:  # (N, O)
    """Each row times its own expert's matrix."""
    if all(size * x.element_size() % 16 == 0 for size in weight.shape[1:]):
        return grouped_mm(x, weight.transpose(1, 2), offs=ends)
    # Such rows are not aligned as that product needs them (small ranks).
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    rows = zip(x.split(counts), weight, strict=True)
    return torch.cat([linear(expert_rows, matrix) for expert_rows, matrix in rows])


def find_experts(model: nn.Module) -> tuple[dict[str, LoraExperts], str]:
    """The expert layers under `model`, each replaced by one that takes LoRAs, by module path.

    The second value is the reason why there are none, if the model has some that this module cannot
    train.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if path.rsplit(".", 1)[-1] == "experts"
    }
    layers = {path: LoraExperts(module, path) for path, module in modules.items()}
    for path, layer in layers.items():
        if not _computes_the_same(layer):
            return {}, f" (its experts, {path}, are not of the kind that this engine knows)"
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
    return layers, ""


@torch.no_grad()
def _computes_the_same(layer: LoraExperts) -> bool:
    """Whether `routed` can compute this layer, and its result is the layer's own."""
    inward, down = (getattr(layer.base, name, None) for name in (layer.inward, "down_proj"))
    if not (isinstance(inward, nn.Parameter) and isinstance(down, nn.Parameter)):
        return False
    count, hidden_size, width = layer.weight("down_proj").shape
    if layer.weight(layer.inward).shape != (count, (1 + layer.has_gate) * width, hidden_size):
        return False
    if not (layer.has_own_gate or hasattr(layer.base, "act_fn")):
        return False
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, hidden_size, generator=generator).to(down)
    chosen = torch.randint(count, (6, min(2, count)), generator=generator).to(down.device)
    weights = torch.rand(chosen.shape, generator=generator).to(down)
    expected = layer.base(hidden, chosen, weights)
    tolerance = 1e-3 if down.dtype == torch.float32 else 0.1
    difference = (layer.routed(hidden, chosen, weights, []) - expected).norm()
    return bool(difference <= tolerance * expected.norm())


@torch.no_grad()
def _alternates(base: nn.Module) -> bool:
    """Whether rows of gate and up take turns in their joined projection: up's do not all come last.

    The layer's own gate is asked. Not all versions of transformers say it otherwise, and a wrong
    guess would train the wrong rows under a part's name.
    """
    rows = torch.full((2, 8), 0.5)
    rows[1, 1] = 1.0  # of the first output's up, or of the second output's gate
    before, after = base._apply_gate(rows)  # type: ignore[operator]
    return bool(before[0] != after[0])


def part_shapes(layer: LoraExperts) -> dict[str, lora.LayerShape]:
    """The shape of each part of a layer of experts, by its path."""
    count, hidden_size, width = layer.weight("down_proj").shape
    inward = lora.LayerShape(hidden_size, width, a_lead=(1,), b_lead=(count,))
    outward = lora.LayerShape(width, hidden_size, a_lead=(count,), b_lead=(1,))
    return {f"{layer.path}.{part}": outward if part == "w2" else inward for part in layer.parts}
