"""The forward and backward pass of Llama-shaped models, written out: no autograd, no padding.

Only LoRA matrices get gradients, so nothing is computed for the frozen ones. On a CPU all but
attention runs over blocks of rows that stay in its caches.

Axes: T packed tokens, M rows of T that reach the output layer, N rows of a block, H hidden size,
Q query heads, G key/value heads, J = Q / G queries per key, D head size, F width of the MLP, R rank
of the adapter, C trained layers of a projection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tinkersmith.engine.hardware.memory import free_memory
from tinkersmith.engine.images.vision import ImageRows, Vision
from tinkersmith.engine.log import log
from tinkersmith.engine.model.dense import (
    DenseLayer,
    DenseModel,
    LayerRowUpdates,
    LayerUpdates,
    RotaryTables,
    layer_updates,
)
from tinkersmith.engine.model.kernels import (
    ROW_STEP,
    HeadTransform,
    Kernels,
    PackedAttention,
    pad_rows,
)
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.model.projection import of_block, outputs

_ROWS = 1024


@dataclass(slots=True)
class _SavedLayer:
    """What the backward pass of a layer needs.

    In the last layer, M rows go through the MLP; in the others M is T.
    """

    x: torch.Tensor  # (T, H), the layer's input
    qkv: torch.Tensor  # (T, (Q + 2 G) D), before norms and rotation
    query: torch.Tensor  # (G, T, J, D)
    key: torch.Tensor  # (G, T, D)
    value: torch.Tensor  # (G, T, D)
    attention: Any  # what its backward pass takes as `kept`
    attended: torch.Tensor  # (M, Q D)
    middle: torch.Tensor  # (M, H), between attention and MLP
    gate_up: torch.Tensor  # (M, 2 F)
    low: list[torch.Tensor]  # (T or M, C R) of qkv, output, gate_up, down


class DensePass:
    """One forward pass over a pack, and the backward pass that goes with it.

    `kept_layers` of the layers keep what their backward pass needs (None: as many as fit into
    memory); the rest keep their input only and are computed again.
    """

    def __init__(
        self,
        model: DenseModel,
        kernels: Kernels,
        adapter: Adapter | None,
        lengths: Sequence[int],
        *,
        backward: bool,
        kept_layers: int | None = None,
        starts: Sequence[int] | None = None,  # the position of each document's first token: 0
        vision: Vision | None = None,  # of a pack that has images
        positions: torch.Tensor | None = None,  # (3, T), with `vision`
    ) -> None:
        self.vision = vision
        self.model, self.kernels, self.adapter = model, kernels, adapter
        self.backward_follows = backward
        self.queries_per_key = model.heads // model.key_heads
        weight = model.final_norm
        # Few shapes of products occur: a document of padding makes T a multiple of ROW_STEP.
        self.tokens = sum(lengths)
        lengths = [*lengths, *([-self.tokens % ROW_STEP] if self.tokens % ROW_STEP else [])]
        self.padded, self.lengths = sum(lengths), lengths
        if vision is not None and positions is not None:
            padding = (0, self.padded - self.tokens)
            positions = torch.nn.functional.pad(positions, padding)
            self.rotary = _tables_with_images(model, vision, positions)
        else:
            firsts = [*(starts or []), *[0] * (len(lengths) - len(starts or []))]
            positions = torch.cat(
                [
                    torch.arange(first, first + n, device=weight.device)
                    for first, n in zip(firsts, lengths, strict=True)
                ]
            )
            self.rotary = model.rotary_tables(positions)
        self.kept_layers, self.attention_keeps = 0, False
        if backward and adapter is not None:
            self._choose_what_is_kept(adapter, kept_layers)
        self.saved: list[_SavedLayer | torch.Tensor] = []

    @cached_property
    def attention(self) -> PackedAttention:
        return self.kernels.attention(self.lengths)

    def _choose_what_is_kept(self, adapter: Adapter, kept_layers: int | None) -> None:
        """Keep what fits into half of the free memory: layers first, then what attention keeps."""
        model, weight = self.model, self.model.final_norm
        count, size = len(model.layers), numbers_kept(model, adapter)
        half = free_memory(weight.device) / 2 / weight.itemsize  # in numbers
        by_attention = self.attention.numbers_kept(model.heads, model.key_heads, model.head_size)
        fitting = min(count, int(half / (size * self.tokens)))
        self.kept_layers = fitting if kept_layers is None else kept_layers
        self.attention_keeps = half > count * (size * self.tokens + by_attention)
        if self.kept_layers < count:
            log.info(
                "%d tokens: memory for %d of %d layers, the others are computed twice",
                self.tokens,
                self.kept_layers,
                count,
            )

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """(T,) -> (T, H), the input of the output layer; or (M, H), of some rows only."""
        self.rows = rows
        self.updates = self._layer_updates()
        x, images = self._embedded(pad_rows(tokens[:, None])[:, 0])
        last = len(self.model.layers) - 1
        for index in range(last + 1):
            x, saved = self._layer(index, x, rows if index == last else None)
            if images is not None and index < images.layers:
                if rows is not None and index == last:
                    images = images.among(rows, self.padded)
                images.add(index, x)
            if self.backward_follows:
                self.saved.append(saved if index < self.kept_layers else saved.x)
        self.last = x
        output = torch.empty_like(x)
        for block in _blocks(len(x), x.device):
            self.kernels.elementwise.rms_norm(
                x[block], self.model.final_norm, self.model.eps, output[block]
            )
        return output[: self.tokens if rows is None else len(rows)]

    @torch.no_grad()
    def backward(self, grad: torch.Tensor) -> None:
        """Add the gradients of the adapter's weights; `grad` has the shape that `forward` gave."""
        grad_normed = pad_rows(grad)
        grad = torch.zeros_like(grad_normed)
        last, norm = len(self.model.layers) - 1, (self.model.final_norm, self.model.eps)
        for block in _blocks(len(grad), grad.device):
            x = self.last[block]
            self.kernels.elementwise.rms_norm_backward(
                grad_normed[block], x, *norm, grad[block], torch.empty_like(x)
            )
        for index in range(last, -1, -1):
            saved, rows = self.saved.pop(), self.rows if index == last else None
            if isinstance(saved, torch.Tensor):
                _, saved = self._layer(index, saved, rows)
            grad = self._layer_backward(index, grad, saved, rows)

    def _embedded(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ImageRows | None]:
        """(T,) -> (T, H), and what else there is at the places of images."""
        if self.vision is None:
            return self.model.embedding(tokens), None
        images = self.vision.rows_of(tokens)
        x = self.model.embedding(tokens.clamp(min=0))
        if images is not None:
            images.put(x)
        return x, images

    def _layer_updates(self) -> list[LayerUpdates]:
        return [layer_updates(layer, self.adapter) for layer in self.model.layers]

    def _updates_for(
        self,
        index: int,  # of the layer
        rows: torch.Tensor | None,  # (M,), the rows of T that are computed; None: all
    ) -> LayerUpdates | LayerRowUpdates:
        """What is added to the products of a layer's forward pass."""
        return self.updates[index]

    def _layer(
        self, index: int, x: torch.Tensor, rows: torch.Tensor | None
    ) -> tuple[torch.Tensor, _SavedLayer]:
        """(T, H) -> (T, H), or (M, H) where only some rows go through the MLP."""
        model, layer, updates = self.model, self.model.layers[index], self._updates_for(index, None)
        do, products = self.kernels.elementwise, self.kernels.products
        count, groups, size = len(x), model.key_heads, model.head_size
        qkv, low_qkv = outputs(count, layer.qkv, updates.qkv)
        query = x.new_empty(groups, count, self.queries_per_key, size)
        key, value = (x.new_empty(groups, count, size) for _ in range(2))
        for block in _blocks(count, x.device):
            normed = torch.empty_like(x[block])
            do.rms_norm(x[block], layer.attention_norm, model.eps, normed)
            update = of_block(updates.qkv, block)
            products.project(normed, layer.qkv, update, qkv[block], low_qkv[block])
            do.split_heads(
                qkv[block],
                self._head_transform(layer, block),
                query[:, block],
                key[:, block],
                value[:, block],
            )
        attended, remembered = self._attend(index, query.flatten(1, 2), key, value)  # (T, Q D)
        residual = x
        if rows is not None:
            attended, residual = pad_rows(attended[rows]), pad_rows(x[rows])
            updates = self._updates_for(index, rows)

        count = len(attended)
        middle, low_output = outputs(count, layer.output, updates.output)
        gate_up, low_gate_up = outputs(count, layer.gate_up, updates.gate_up)
        output, low_down = outputs(count, layer.down, updates.down)
        for block in _blocks(count, x.device):
            products.project(
                attended[block],
                layer.output,
                of_block(updates.output, block),
                middle[block],
                low_output[block],
                residual[block],
            )
            normed = torch.empty_like(middle[block])
            do.rms_norm(middle[block], layer.mlp_norm, model.eps, normed)
            update = of_block(updates.gate_up, block)
            activated = products.project_swiglu(
                normed, layer.gate_up, update, gate_up[block], low_gate_up[block]
            )
            products.project(
                activated,
                layer.down,
                of_block(updates.down, block),
                output[block],
                low_down[block],
                middle[block],
            )
        low = [low_qkv, low_output, low_gate_up, low_down]
        return output, _SavedLayer(
            x, qkv, query, key, value, remembered, attended, middle, gate_up, low
        )

    def _attend(
        self,
        index: int,  # of the layer
        query: torch.Tensor,  # (G, T J, D)
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,
    ) -> tuple[torch.Tensor, Any]:  # (T, Q D)
        return self.attention.attend(query, key, value, keep=self.attention_keeps)

    def _layer_backward(
        self, index: int, grad: torch.Tensor, saved: _SavedLayer, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """(T or M, H) -> (T, H)"""
        model, layer, updates = self.model, self.model.layers[index], self.updates[index]
        do, products = self.kernels.elementwise, self.kernels.products
        low_qkv, low_output, low_gate_up, low_down = saved.low
        grad_attended = torch.empty_like(saved.attended)
        for block in _blocks(len(grad), grad.device):
            activated, inner, grad_low = products.input_gradient_swiglu(
                grad[block], layer.down, updates.down, saved.gate_up[block]
            )
            products.add_gradients(updates.down, grad[block], activated, grad_low, low_down[block])
            grad_normed, grad_low = products.input_gradient(inner, layer.gate_up, updates.gate_up)
            middle, normed = saved.middle[block], torch.empty_like(grad_normed)
            do.rms_norm_backward(
                grad_normed, middle, layer.mlp_norm, model.eps, grad[block], normed
            )
            products.add_gradients(updates.gate_up, inner, normed, grad_low, low_gate_up[block])

            grad_attended[block], grad_low = products.input_gradient(
                grad[block], layer.output, updates.output
            )
            products.add_gradients(
                updates.output, grad[block], saved.attended[block], grad_low, low_output[block]
            )
        attended = saved.attended
        if rows is not None:
            grad, grad_attended, attended = (
                _spread(values, rows, len(saved.x)) for values in (grad, grad_attended, attended)
            )

        count = len(saved.x)
        grads = self.attention.backward(
            grad_attended,
            saved.query.flatten(1, 2),
            saved.key,
            saved.value,
            attended,
            saved.attention,
        )
        grad_query, grad_key, grad_value = grads[0].view_as(saved.query), *grads[1:]
        for block in _blocks(count, grad.device):
            inner = torch.empty_like(saved.qkv[block])
            do.split_heads_backward(
                saved.qkv[block],
                self._head_transform(layer, block),
                grad_query[:, block],
                grad_key[:, block],
                grad_value[:, block],
                inner,
            )
            x, normed = saved.x[block], torch.empty_like(saved.x[block])
            if index > 0:
                grad_normed, grad_low = products.input_gradient(inner, layer.qkv, updates.qkv)
                do.rms_norm_backward(
                    grad_normed, x, layer.attention_norm, model.eps, grad[block], normed
                )
            else:  # nothing below layer 0 is trained
                grad_low = products.low_gradient(inner, updates.qkv)
                do.rms_norm(x, layer.attention_norm, model.eps, normed)
            products.add_gradients(updates.qkv, inner, normed, grad_low, low_qkv[block])
        return grad

    def _head_transform(self, layer: DenseLayer, block: slice) -> HeadTransform:
        cosine, sine = (table[block] for table in self.rotary)
        model = self.model
        return HeadTransform(layer.query_norm, layer.key_norm, model.eps, cosine, sine, model.scale)


def _tables_with_images(
    model: DenseModel, vision: Vision, positions: torch.Tensor
) -> RotaryTables:  # (3, T) -> (T, 1, D/2) both
    """Like `DenseModel.rotary_tables`, for tokens with three positions each."""
    template = model.final_norm.new_empty(0, dtype=torch.float32)
    tables = vision.rotary_tables(model.rotary, template, positions)
    half = model.head_size // 2  # both halves are the same
    cosine, sine = (table[:, None, :half].contiguous() for table in tables)
    return cosine, sine


def numbers_kept(model: DenseModel, adapter: Adapter) -> float:
    """About how many numbers a token leaves in each layer for the backward pass."""
    layer = model.layers[0]
    widths = [sum(projection.sizes) for projection in layer.projections]
    ranks = adapter.config.rank * len(adapter.weights) / 2 / len(model.layers)
    # Of _SavedLayer: x, middle and attended are as wide as what output and down give, or about so.
    return 2 * widths[0] + 2 * widths[1] + widths[2] + widths[3] + ranks


def _spread(grad: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The gradient of some rows, (M, width), among `count` rows whose gradient is 0."""
    spread = grad.new_zeros(count, grad.shape[1])
    spread[rows] = grad[: len(rows)]
    return spread


def _blocks(count: int, device: torch.device) -> Iterator[slice]:
    """All rows: on a CPU in blocks of about _ROWS and nearly the same size."""
    blocks = max(1, round(count / _ROWS)) if device.type == "cpu" else 1
    rows = -(-count // blocks)
    rows += -rows % ROW_STEP
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
