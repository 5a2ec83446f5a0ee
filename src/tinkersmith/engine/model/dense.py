"""The weights of Llama-shaped models (Llama, Mistral, Qwen2, Qwen3), laid out for fast kernels.

Projections that read the same input are joined into one matrix; the model's own layers keep
working on views of it, so nothing is held twice. This module does not compute them: kernels do.

Axes: H hidden size, D head size, Q query heads, G key/value heads, F width of the MLP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from tinkersmith.engine.model.lora import Adapter, LoraLinear
from tinkersmith.engine.model.projection import Projection, RowUpdates, Update, update_of

_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}

RotaryTables = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of positions, (T, 1, D/2)


@dataclass(frozen=True, slots=True)
class DenseLayer:
    attention_norm: torch.Tensor  # (H,)
    qkv: Projection  # H -> (Q + 2 G) D
    query_norm: torch.Tensor | None  # (D,)
    key_norm: torch.Tensor | None  # (D,)
    output: Projection  # Q D -> H
    mlp_norm: torch.Tensor  # (H,)
    gate_up: Projection  # H -> 2 F
    down: Projection  # F -> H

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class DenseModel:
    layers: list[DenseLayer]
    embedding: nn.Module
    rotary: nn.Module  # (any tensor, positions (1, T)) -> cos, sin, each (1, T, D)
    final_norm: torch.Tensor  # (H,)
    eps: float
    heads: int  # Q
    key_heads: int  # G
    head_size: int  # D
    scale: float  # of the attention scores
    # Sequences of at most so many tokens: on longer ones a layer has a sliding window, which the
    # kernels do not. None: no layer has one.
    longest: int | None = None

    def holds(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can be computed by the kernels."""
        return self.longest is None or tokens <= self.longest

    def rotary_tables(self, positions: torch.Tensor) -> RotaryTables:
        """The cosines and sines of tokens at these positions, (T,)."""
        template = self.final_norm.new_empty(0, dtype=torch.float32)
        cosine, sine = self.rotary(template, positions[None])
        half = self.head_size // 2  # both halves are the same
        return cosine[0, :, None, :half], sine[0, :, None, :half]


@dataclass(frozen=True, slots=True)
class LayerUpdates:
    qkv: Update | None
    output: Update | None
    gate_up: Update | None
    down: Update | None

    @property
    def in_order(self) -> tuple[Update | None, ...]:
        """The updates in the order of `DenseLayer.projections`."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class LayerRowUpdates:
    """The updates of several adapters in a layer, each for some rows."""

    qkv: RowUpdates
    output: RowUpdates
    gate_up: RowUpdates
    down: RowUpdates


def layer_row_updates(groups: Sequence[tuple[slice, LayerUpdates]]) -> LayerRowUpdates:
    """The updates of a layer, from those of each adapter and its rows."""
    by_projection = zip(*(updates.in_order for _, updates in groups), strict=True)
    return LayerRowUpdates(
        *(
            row_updates(zip((rows for rows, _ in groups), updates, strict=True))
            for updates in by_projection
        )
    )


def row_updates(groups: Iterable[tuple[slice, Update | None]]) -> RowUpdates:
    return RowUpdates(tuple((rows, update) for rows, update in groups if update is not None))


def layer_updates(layer: DenseLayer, adapter: Adapter | None) -> LayerUpdates:
    """The adapter's matrices in the form that this layer's projections use."""
    return LayerUpdates(
        qkv=update_of(layer.qkv, adapter),
        output=update_of(layer.output, adapter),
        gate_up=update_of(layer.gate_up, adapter),
        down=update_of(layer.down, adapter),
    )


def dense_model(model: PreTrainedModel, window: int | None = None) -> DenseModel | None:
    """The layers of `model`, whose linear layers are LoraLinear already; None if it has others.

    Args:
        window: the shortest sliding window of its layers, if one has one.
    """
    config: Any = model.config
    inner: Any = model.base_model
    if not is_dense(config):
        return None
    layers = [_layer(layer) for layer in inner.layers]
    if any(layer is None for layer in layers):
        return None
    attention, norm = inner.layers[0].self_attn, inner.norm
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    size = attention.head_dim
    return DenseModel(
        layers=cast(list[DenseLayer], layers),
        embedding=inner.embed_tokens,
        rotary=inner.rotary_emb,
        final_norm=norm.weight,
        eps=norm.variance_epsilon,
        heads=heads,
        key_heads=key_heads,
        head_size=size,
        scale=attention.scaling,
        longest=window,
    )


def is_dense(config: Any) -> bool:
    """Whether models with this configuration have the layers of `DenseModel`."""
    return config.model_type in _FAMILIES and config.hidden_act == "silu"


def _layer(layer: Any) -> DenseLayer | None:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if not all(isinstance(linear, LoraLinear) for linear in linears):
        return None
    norm = layer.input_layernorm.weight
    return DenseLayer(
        attention_norm=norm,
        qkv=_joined(linears[:3], norm.dtype),
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=_joined(linears[3:4], norm.dtype),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_joined(linears[4:6], norm.dtype),
        down=_joined(linears[6:], norm.dtype),
    )


def _joined(layers: list[LoraLinear], dtype: torch.dtype) -> Projection:
    linears = [layer.base for layer in layers]
    weight, bias = linears[0].weight.detach(), linears[0].bias
    if len(linears) > 1:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        if bias is not None:
            bias = torch.cat([linear.bias.detach() for linear in linears])
        start = 0
        for linear in linears:
            linear.weight.data = weight[start : start + linear.out_features]
            start += linear.out_features
    return Projection(
        weight=weight,
        dtype=dtype,
        bias=None if bias is None else bias.detach(),
        paths=tuple(layer.path for layer in layers),
        sizes=tuple(linear.out_features for linear in linears),
    )
