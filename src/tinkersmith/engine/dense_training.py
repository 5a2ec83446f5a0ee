"""The forward and backward pass of Llama-shaped models, written out: no autograd, no padding.

Only LoRA matrices get gradients, so nothing is computed for the frozen ones. Element-wise work
runs over blocks of rows that stay in a CPU's caches.

Axes: T packed tokens, H hidden size, Q query heads, G key/value heads, D head size, F width of the
MLP, R rank of the adapter.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from tinkersmith.engine.dense_layers import DenseLayer, DenseModel, Projection
from tinkersmith.engine.head import add_gradient
from tinkersmith.engine.lora import Adapter
from tinkersmith.engine.memory import free_memory
from tinkersmith.engine.tile_attention import attend, attend_backward, tiles

log = logging.getLogger("tinkersmith.engine")

_ROWS = 512  # of element-wise work at a time


@dataclass(frozen=True, slots=True)
class _Update:
    """An adapter's part in a projection, in the base model's dtype."""

    a: torch.Tensor  # (n R, in): the A matrices of its n trained layers
    b: list[torch.Tensor]  # n of (out, R)
    columns: list[slice]  # where in the projection's output each of them adds
    paths: list[str]
    rank: int
    scaling: float

    def ranks(self) -> list[slice]:
        return [slice(i * self.rank, (i + 1) * self.rank) for i in range(len(self.b))]


@dataclass(frozen=True, slots=True)
class _LayerUpdates:
    qkv: _Update | None
    output: _Update | None
    gate_up: _Update | None
    down: _Update | None


@dataclass(slots=True)
class _Kept:
    """What the backward pass of a layer needs."""

    x: torch.Tensor  # (T, H), the layer's input
    qkv: torch.Tensor  # (T, (Q + 2 G) D), before norms and rotation
    query: torch.Tensor  # (G, T Q/G, D)
    key: torch.Tensor  # (G, T, D)
    value: torch.Tensor  # (G, T, D)
    attended: torch.Tensor  # (T, Q D)
    middle: torch.Tensor  # (T, H), between attention and MLP
    gate_up: torch.Tensor  # (T, 2 F)
    low: list[torch.Tensor | None]  # (T, n R) of qkv, output, gate_up, down


class DensePass:
    """One forward pass over a pack, and the backward pass that goes with it.

    `kept_layers` of the layers keep what their backward pass needs (None: as many as fit into
    memory); the rest keep their input only and are computed again.
    """

    def __init__(
        self,
        model: DenseModel,
        adapter: Adapter | None,
        lengths: Sequence[int],
        *,
        backward: bool,
        kept_layers: int | None = None,
    ) -> None:
        self.model, self.adapter, self.backward_follows = model, adapter, backward
        self.updates = [layer_updates(layer, adapter) for layer in model.layers]
        self.kept_layers = 0
        if backward and adapter is not None:
            fitting = layers_that_fit(model, adapter, sum(lengths))
            self.kept_layers = fitting if kept_layers is None else kept_layers
            if self.kept_layers < len(model.layers):
                log.info(
                    "%d tokens: memory for %d of %d layers, the others are computed twice",
                    sum(lengths),
                    self.kept_layers,
                    len(model.layers),
                )
        self.kept: list[_Kept | torch.Tensor] = []
        weight = model.final_norm
        self.tiles = tiles(lengths, model.heads // model.key_heads, weight.dtype, weight.device)
        positions = torch.cat([torch.arange(n, device=weight.device) for n in lengths])
        cosine, sine = model.rotary(weight.new_empty(0, dtype=torch.float32), positions[None])
        half = model.head_size // 2
        # (T, 1, D/2): both halves are the same
        self.cosine, self.sine = cosine[0, :, None, :half], sine[0, :, None, :half]

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T,) -> (T, H), the input of the output layer."""
        x = self.model.embedding(tokens)
        for index in range(len(self.model.layers)):
            x, kept = self._layer(index, x)
            if self.backward_follows:
                self.kept.append(kept if index < self.kept_layers else kept.x)
        self.last = x
        return rms_norm(x, self.model.final_norm, self.model.eps)

    @torch.no_grad()
    def backward(self, grad: torch.Tensor) -> None:
        """From the gradient of what `forward` gave, (T, H), to those of the adapter's weights."""
        grad = rms_norm_backward(grad, self.last, self.model.final_norm, self.model.eps)
        for index in reversed(range(len(self.model.layers))):
            kept = self.kept.pop()
            if isinstance(kept, torch.Tensor):
                _, kept = self._layer(index, kept)
            grad = self._layer_backward(index, grad, kept)

    def _layer(self, index: int, x: torch.Tensor) -> tuple[torch.Tensor, _Kept]:
        layer, updates, eps = self.model.layers[index], self.updates[index], self.model.eps
        normed = rms_norm(x, layer.attention_norm, eps)
        qkv, low_qkv = _project(normed, layer.qkv, updates.qkv)
        query, key, value = self._rotated(qkv, layer)
        attended = self._rows_of(attend(query, key, value, self.tiles))
        middle, low_output = _project(attended, layer.output, updates.output)
        middle += x
        normed = rms_norm(middle, layer.mlp_norm, eps)
        gate_up, low_gate_up = _project(normed, layer.gate_up, updates.gate_up)
        activated = _swiglu(gate_up)
        output, low_down = _project(activated, layer.down, updates.down)
        output += middle
        low = [low_qkv, low_output, low_gate_up, low_down]
        return output, _Kept(x, qkv, query, key, value, attended, middle, gate_up, low)

    def _layer_backward(self, index: int, grad: torch.Tensor, kept: _Kept) -> torch.Tensor:
        layer, updates, eps = self.model.layers[index], self.updates[index], self.model.eps
        low_qkv, low_output, low_gate_up, low_down = kept.low
        activated = _swiglu(kept.gate_up)
        part = self._project_backward(grad, activated, layer.down, updates.down, low_down)
        del activated
        part = _swiglu_backward(part, kept.gate_up)
        normed = rms_norm(kept.middle, layer.mlp_norm, eps)
        part = self._project_backward(part, normed, layer.gate_up, updates.gate_up, low_gate_up)
        grad = grad + rms_norm_backward(part, kept.middle, layer.mlp_norm, eps)

        part = self._project_backward(grad, kept.attended, layer.output, updates.output, low_output)
        part = self._rotated_backward(
            attend_backward(self._heads_of(part), kept.query, kept.key, kept.value, self.tiles),
            kept.qkv,
            layer,
        )
        normed = rms_norm(kept.x, layer.attention_norm, eps)
        part = self._project_backward(
            part, normed, layer.qkv, updates.qkv, low_qkv, input_wanted=index > 0
        )
        if index == 0:  # nothing below it is trained
            return grad
        return grad + rms_norm_backward(part, kept.x, layer.attention_norm, eps)

    def _project_backward(
        self,
        grad: torch.Tensor,  # (T, out)
        x: torch.Tensor,  # (T, in), what went in
        projection: Projection,
        update: _Update | None,
        low: torch.Tensor | None,  # (T, n R)
        *,
        input_wanted: bool = True,
    ) -> torch.Tensor:
        """Adds the LoRA gradients; returns that of the input, (T, in), if wanted."""
        grad_x = grad @ projection.weight if input_wanted else x.new_empty(0)
        if update is None or low is None or self.adapter is None:
            return grad_x
        grad_low = torch.empty_like(low)
        for rank, columns, b, path in zip(
            update.ranks(), update.columns, update.b, update.paths, strict=True
        ):
            part = grad[:, columns]
            grad_low[:, rank] = (part @ b).mul_(update.scaling)
            grad_b = (part.T @ low[:, rank]).float().mul_(update.scaling)
            add_gradient(self.adapter, f"{path}.lora_B", grad_b)
        grad_a = grad_low.T @ x  # (n R, in)
        for rank, path in zip(update.ranks(), update.paths, strict=True):
            add_gradient(self.adapter, f"{path}.lora_A", grad_a[rank])
        return grad_x.addmm_(grad_low, update.a) if input_wanted else grad_x

    def _rotated(
        self, qkv: torch.Tensor, layer: DenseLayer
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, (Q + 2 G) D) -> query (G, T Q/G, D), scaled, key and value (G, T, D)."""
        model, count = self.model, len(qkv)
        groups, share, size = model.key_heads, model.heads // model.key_heads, model.head_size
        query = qkv.new_empty(groups, count, share, size)
        key, value = (qkv.new_empty(groups, count, size) for _ in range(2))
        for rows in _blocks(count):
            heads = qkv[rows].view(-1, model.heads + 2 * groups, size)
            q, k, v = heads.split([model.heads, groups, groups], 1)
            turned = self._rotate(_head_norm(q, layer.query_norm, model.eps), rows)
            turned = turned.mul_(model.scale).view(-1, groups, share, size)
            query[:, rows] = turned.transpose(0, 1)
            turned = self._rotate(_head_norm(k, layer.key_norm, model.eps), rows)
            key[:, rows] = turned.transpose(0, 1)
            value[:, rows] = v.transpose(0, 1)
        return query.view(groups, count * share, size), key, value

    def _rotated_backward(
        self,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        qkv: torch.Tensor,
        layer: DenseLayer,
    ) -> torch.Tensor:
        model, count = self.model, len(qkv)
        groups, size = model.key_heads, model.head_size
        grad_query = grads[0].view(groups, count, -1, size)
        result = torch.empty_like(qkv)
        for rows in _blocks(count):
            heads = qkv[rows].view(-1, model.heads + 2 * groups, size)
            out = result[rows].view(heads.shape)
            q, k, _ = heads.split([model.heads, groups, groups], 1)
            out_q, out_k, out_v = out.split([model.heads, groups, groups], 1)
            grad = grad_query[:, rows].transpose(0, 1).flatten(1, 2)  # (rows, Q, D)
            grad = self._rotate(grad.float() * model.scale, rows, back=True)
            out_q.copy_(_head_norm_backward(grad, q, layer.query_norm, model.eps))
            grad = self._rotate(grads[1][:, rows].transpose(0, 1), rows, back=True)
            out_k.copy_(_head_norm_backward(grad, k, layer.key_norm, model.eps))
            out_v.copy_(grads[2][:, rows].transpose(0, 1))
        return result

    def _rotate(self, x: torch.Tensor, rows: slice, *, back: bool = False) -> torch.Tensor:
        """Rotary positions (Su et al. 2021) for (rows, heads, D) in fp32; `back` turns back."""
        cosine, sine = self.cosine[rows], self.sine[rows]
        if back:
            sine = -sine
        left, right = x.chunk(2, -1)
        turned = torch.empty_like(x, memory_format=torch.contiguous_format)
        half = left.shape[-1]
        torch.addcmul(left * cosine, right, sine, value=-1, out=turned[..., :half])
        torch.addcmul(right * cosine, left, sine, out=turned[..., half:])
        return turned

    def _rows_of(self, heads: torch.Tensor) -> torch.Tensor:
        """(G, T Q/G, D) -> (T, Q D)"""
        groups, _, size = heads.shape
        share = self.model.heads // groups
        return heads.view(groups, -1, share * size).transpose(0, 1).flatten(1)

    def _heads_of(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, Q D) -> (G, T Q/G, D)"""
        groups, size = self.model.key_heads, self.model.head_size
        heads = rows.view(len(rows), groups, -1).transpose(0, 1).contiguous()
        return heads.view(groups, -1, size)


def layers_that_fit(model: DenseModel, adapter: Adapter, tokens: int) -> int:
    """How many layers can keep what their backward pass needs in half of the free memory."""
    layer, weight = model.layers[0], model.final_norm
    widths = [sum(part.sizes) for part in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    ranks = adapter.config.rank * len(adapter.weights) / 2 / len(model.layers)
    # Of _Kept: x, middle and attended are as wide as what output and down give, or about so.
    width = 2 * widths[0] + 2 * widths[1] + widths[2] + widths[3] + ranks
    fitting = int(free_memory(weight.device) / 2 / (width * tokens * weight.itemsize))
    return min(len(model.layers), fitting)


def layer_updates(layer: DenseLayer, adapter: Adapter | None) -> _LayerUpdates:
    """The adapter's matrices as this layer's projections use them."""
    return _LayerUpdates(
        qkv=_update(layer.qkv, adapter),
        output=_update(layer.output, adapter),
        gate_up=_update(layer.gate_up, adapter),
        down=_update(layer.down, adapter),
    )


def _update(projection: Projection, adapter: Adapter | None) -> _Update | None:
    if adapter is None:
        return None
    dtype = projection.weight.dtype
    a, b, columns, paths = [], [], [], []
    start = 0
    for path, width in zip(projection.paths, projection.sizes, strict=True):
        if f"{path}.lora_A" in adapter.weights:
            a.append(adapter.weights[f"{path}.lora_A"].detach())
            b.append(adapter.weights[f"{path}.lora_B"].detach().to(dtype))
            columns.append(slice(start, start + width))
            paths.append(path)
        start += width
    if not paths:
        return None
    return _Update(torch.cat(a).to(dtype), b, columns, paths, adapter.config.rank, adapter.scaling)


def _project(
    x: torch.Tensor, projection: Projection, update: _Update | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x W^T + b, the adapter's part added; and x A^T."""
    output = torch.nn.functional.linear(x, projection.weight, projection.bias)
    if update is None:
        return output, None
    low = x @ update.a.T  # (T, n R)
    for rank, columns, b in zip(update.ranks(), update.columns, update.b, strict=True):
        output[:, columns].addmm_(low[:, rank], b.T, alpha=update.scaling)
    return output, low


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32 (Zhang & Sennrich 2019)."""
    output = torch.empty_like(x)
    scale = weight.float()
    for rows in _blocks(len(x)):
        block = x[rows].float()
        output[rows] = (block * _inverse_rms(block, eps)).mul_(scale)
    return output


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    output = torch.empty_like(x)
    scale = weight.float()
    for rows in _blocks(len(x)):
        output[rows] = _norm_gradient(grad[rows] * scale, x[rows].float(), eps)
    return output


def _norm_gradient(grad: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Of x / rms(x), in fp32; overwrites `grad`."""
    inverse = _inverse_rms(x, eps)
    normed = x * inverse
    along = (grad * normed).mean(-1, keepdim=True)
    return grad.sub_(normed.mul_(along)).mul_(inverse)


def _inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        .square_()
        .div_(x.shape[-1])
        .add_(eps)
        .rsqrt_()
    )


def _head_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """The norm of each head, if the model has one; (rows, heads, D) in fp32."""
    x = x.float()
    return x if weight is None else (x * _inverse_rms(x, eps)).mul_(weight.float())


def _head_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    return grad if weight is None else _norm_gradient(grad * weight.float(), x.float(), eps)


def _swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: (T, 2 F) -> (T, F) (Shazeer 2020)"""
    width = gate_up.shape[1] // 2
    output = gate_up.new_empty(len(gate_up), width)
    for rows in _blocks(len(gate_up)):
        gate, up = gate_up[rows].chunk(2, -1)
        torch.mul(silu(gate), up, out=output[rows])
    return output


def _swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """(T, F) -> (T, 2 F)"""
    output = torch.empty_like(gate_up)
    width = grad.shape[1]
    for rows in _blocks(len(grad)):
        gate, up = gate_up[rows].chunk(2, -1)
        torch.mul(grad[rows], silu(gate), out=output[rows, width:])
        output[rows, :width] = torch.ops.aten.silu_backward(grad[rows] * up, gate)
    return output
