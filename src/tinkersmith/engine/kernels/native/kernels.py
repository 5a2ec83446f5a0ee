"""The C++ functions on tensors: element-wise work and, in bf16, the products of a layer, attention.

Each gives what its twin of the same name gives, in elementwise.py, dense_projection.py and
tile_attention.py.

Axes: N rows of a block, R rank of the adapter, n trained layers of a projection, F width of the
MLP, T packed tokens, Q query heads, G key/value heads, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.model.kernels import Elementwise
from tinkersmith.engine.model.projection import Part, Projection, Update

_FEW = 128  # rows, up to which it is faster to leave the weights as they lie


def address(tensor: torch.Tensor | None) -> int | None:
    """Of the first number; the others follow it in order."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def native_elementwise(library: Library, dtype: torch.dtype) -> Elementwise:
    """For tensors of this dtype, float32 or bfloat16."""

    def call(name: str) -> Callable[..., None]:
        suffix = str(dtype).removeprefix("torch.")
        return getattr(library.functions, f"tinkersmith_{name}_{suffix}")

    functions = {field.name: call(field.name) for field in fields(Elementwise)}

    def rms_norm(x, weight, eps, output) -> None:
        functions["rms_norm"](*x.shape, address(x), address(weight), eps, address(output))

    def rms_norm_backward(grad, x, weight, eps, total, normed) -> None:
        tensors = address(grad), address(x), address(weight)
        functions["rms_norm_backward"](*x.shape, *tensors, eps, address(total), address(normed))

    def swiglu(gate_up, output) -> None:
        functions["swiglu"](*output.shape, address(gate_up), address(output))

    def swiglu_backward(grad, gate_up, activated, output) -> None:
        tensors = address(grad), address(gate_up), address(activated), address(output)
        functions["swiglu_backward"](*grad.shape, *tensors)

    def heads(qkv, query_norm, key_norm, eps, cosine, sine, scale, query) -> tuple[Any, ...]:
        groups, count, share, size = query.shape
        # Blocks of rows: those of a group follow each other, groups are further apart.
        group_rows = query.stride(0) // (share * size)
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        norms = address(qkv), address(query_norm), address(key_norm)
        turn = cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)
        return (count, groups, share, size, group_rows, *norms, eps, *turn, scale)

    def split_heads(qkv, query_norm, key_norm, eps, cosine, sine, scale, query, key, value) -> None:
        given = heads(qkv, query_norm, key_norm, eps, cosine, sine, scale, query)
        functions["split_heads"](*given, query.data_ptr(), key.data_ptr(), value.data_ptr())

    def split_heads_backward(
        qkv, query_norm, key_norm, eps, cosine, sine, scale, query, key, value, output
    ) -> None:
        given = heads(qkv, query_norm, key_norm, eps, cosine, sine, scale, query)
        assert key.dtype == value.dtype == torch.float32
        functions["split_heads_backward"](
            *given, query.data_ptr(), key.data_ptr(), value.data_ptr(), address(output)
        )

    def exponentials(logits, shift, sums, kept) -> None:
        tensors = shift.data_ptr(), address(sums), None if kept is None else kept.data_ptr()
        functions["exponentials"](
            *logits.shape,
            *(logits.data_ptr(), logits.stride(0), *tensors),
            0 if kept is None else kept.stride(0),
        )

    return Elementwise(
        *(rms_norm, rms_norm_backward, swiglu, swiglu_backward),
        *(split_heads, split_heads_backward, exponentials),
    )


@dataclass(frozen=True, slots=True)
class NativeProducts:
    """In bf16, on processors that have instructions for its products."""

    library: Library
    elementwise: Elementwise  # for bf16, too

    def project(self, x, projection, update, output, low, residual=None) -> None:
        parts: list[tuple[slice, Part | None]] = [(slice(0, len(projection.weight)), None)]
        if update is not None:
            self.linear(x, update.a, low)
            parts = of_columns(projection, update)
        for columns, part in parts:
            self.linear(
                x,
                projection.weight[columns],
                output[:, columns],
                None if part is None else low[:, part.ranks],
                None if part is None else part.b,
                None if projection.bias is None else projection.bias[columns],
                None if residual is None else residual[:, columns],
            )

    def project_swiglu(self, x, projection, update, gate_up, low) -> torch.Tensor:
        count, width = len(x), gate_up.shape[1] // 2
        activated = gate_up.new_empty(count, width)
        if count <= _FEW:
            self.project(x, projection, update, gate_up, low)
            self.elementwise.swiglu(gate_up, activated)
            return activated
        gate = up = None
        rank = 0
        if update is not None:
            self.linear(x, update.a, low)
            (_, gate), (_, up) = of_columns(projection, update)
            rank = update.parts[0].b.shape[1]
        self.library.functions.tinkersmith_swiglu_linear(
            *(count, width, x.shape[1], address(x), address(projection.weight)),
            *(address(low), low.shape[1], rank),
            *(None if part is None else address(part.b) for part in (gate, up)),
            *(address(projection.bias), address(gate_up), address(activated)),
        )
        return activated

    def input_gradient(self, grad, projection, update):
        grad_low = self.low_gradient(grad, update)
        weight = projection.weight
        grad_x = grad.new_empty(len(grad), weight.shape[1])
        a = None if update is None else update.a
        self.multiply(grad, weight, grad_x, grad_low, a)
        return grad_x, grad_low

    def input_gradient_swiglu(self, grad, projection, update, gate_up):
        grad_low = self.low_gradient(grad, update)
        weight = projection.weight
        activated = gate_up.new_empty(len(grad), weight.shape[1])
        inner = torch.empty_like(gate_up)
        self.library.functions.tinkersmith_swiglu_input_gradient(
            *(len(grad), weight.shape[1], len(weight), address(grad), address(weight)),
            *(address(grad_low), 0 if grad_low is None else grad_low.shape[1]),
            None if update is None else address(update.a),
            *(address(gate_up), address(activated), address(inner)),
        )
        return activated, inner, grad_low

    def low_gradient(self, grad, update) -> torch.Tensor | None:
        if update is None:
            return None
        grad_low = grad.new_empty(len(grad), len(update.a))
        for part in update.parts:
            self.multiply(grad[:, part.columns], part.b, grad_low[:, part.ranks])
        return grad_low

    def add_gradients(self, update, grad, x, grad_low, low) -> None:
        if update is None or grad_low is None:
            return
        rank, scaling = update.adapter.config.rank, update.adapter.scaling
        # All A matrices have one input: it is laid out for them once.
        of_a = torch.zeros(grad_low.shape[1], x.shape[1])  # (n R, in)
        self.add_product(grad_low, x, len(of_a), 1.0, of_a, 0)
        for part in update.parts:
            of_b = update.gradient(part, "B")
            self.add_product(low[:, part.ranks], grad[:, part.columns], rank, scaling, of_b, 1)
            update.gradient(part, "A").add_(of_a[part.ranks][:rank])

    def linear(
        self,
        x: torch.Tensor,  # (N, in)
        weight: torch.Tensor,  # (out, in)
        output: torch.Tensor,  # (N, out), may be columns of a matrix, as `low` and `residual`
        low: torch.Tensor | None = None,  # (N, R)
        b: torch.Tensor | None = None,  # (out, R)
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,  # (N, out)
    ) -> None:
        """output = x weight^T + low b^T + bias + residual"""
        assert residual is None or residual.stride(0) == output.stride(0)
        functions = self.library.functions
        call = functions.tinkersmith_linear_few if len(x) <= _FEW else functions.tinkersmith_linear
        call(
            *(len(x), *weight.shape, address(x), x.shape[1], address(weight)),
            *((None, 0) if low is None else (low.data_ptr(), low.stride(0))),
            *(0 if b is None else b.shape[1], address(b), address(bias)),
            None if residual is None else residual.data_ptr(),
            *(output.data_ptr(), output.stride(0)),
        )

    def multiply(
        self,
        grad: torch.Tensor,  # (N, out), may be columns of a matrix, as `grad_x`
        weight: torch.Tensor,  # (out, in)
        grad_x: torch.Tensor,  # (N, in)
        grad_low: torch.Tensor | None = None,  # (N, R)
        a: torch.Tensor | None = None,  # (R, in)
    ) -> None:
        """grad_x = grad weight + grad_low a"""
        self.library.functions.tinkersmith_input_gradient(
            *(len(grad), weight.shape[1], len(weight), grad.data_ptr(), grad.stride(0)),
            *(address(weight), address(grad_low), 0 if a is None else len(a), address(a)),
            *(grad_x.data_ptr(), grad_x.stride(0)),
        )

    def add_product(
        self,
        low: torch.Tensor,  # (N, R), columns of a matrix
        x: torch.Tensor,  # (N, width), too
        rank: int,
        scale: float,
        gradient: torch.Tensor,  # (rank, width) in fp32, or (width, rank) if `transposed`
        transposed: int,
    ) -> None:
        """gradient += scale low^T x, of the first `rank` columns of low"""
        self.library.functions.tinkersmith_weight_gradient(
            *(*x.shape, rank, low.data_ptr(), low.stride(0), x.data_ptr(), x.stride(0)),
            *(scale, address(gradient), transposed),
        )

    def add_blocks(
        self,
        low: torch.Tensor,  # (N, R)
        x: torch.Tensor,  # (blocks, N, width)
        scale: float,
        gradient: torch.Tensor,  # (columns, R) in fp32; the last block may have more
    ) -> None:
        """gradient += scale x^T low"""
        columns, rank = gradient.shape
        self.library.functions.tinkersmith_weight_gradient(
            *(len(low), columns, rank, address(low), rank, address(x), x.shape[2]),
            *(scale, address(gradient), 1),
        )


class NativeAttention:
    """Attention of documents packed end to end, in bf16 (see dense_layers.py).

    Nothing but each row's normaliser is kept: the backward pass computes the probabilities again.
    """

    def __init__(self, lengths: Sequence[int], library: Library, queries_per_key: int) -> None:
        self.library, self.share = library, queries_per_key
        self.starts = torch.tensor([0, *accumulate(lengths)])
        self.documents = len(lengths)

    def numbers_kept(self, heads: int, key_heads: int, size: int) -> int:
        return 0

    def attend(self, query, key, value, *, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        groups, tokens, size = key.shape
        output = key.new_empty(tokens, groups * self.share * size)
        normaliser = torch.empty(groups, tokens * self.share)
        query, key, value = (part.contiguous() for part in (query, key, value))
        self.library.functions.tinkersmith_attend(
            *(groups, self.share, size, self.documents, address(self.starts)),
            *(address(query), address(key), address(value)),
            *(address(output), address(normaliser)),
        )
        return output, normaliser

    def backward(self, grad, query, key, value, output, kept):
        groups, _, size = key.shape
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.empty(key.shape) for _ in range(2))
        self.library.functions.tinkersmith_attend_backward(
            *(groups, self.share, size, self.documents, address(self.starts)),
            *(address(query), address(key), address(value), address(output), address(kept)),
            *(address(grad), address(grad_query), address(grad_key), address(grad_value)),
        )
        return grad_query, grad_key, grad_value


def of_columns(projection: Projection, update: Update | None) -> list[tuple[slice, Part | None]]:
    """The columns of each of the projection's layers, with what trains it."""
    trained = {part.columns.start: part for part in (update.parts if update else ())}
    starts = [0, *accumulate(projection.sizes)]
    return [
        (slice(start, start + size), trained.get(start))
        for start, size in zip(starts, projection.sizes, strict=False)
    ]
