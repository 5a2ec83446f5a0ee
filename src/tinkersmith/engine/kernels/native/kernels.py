"""The C++ functions on tensors: element-wise work and, in bf16, the products of a layer, attention.

Each method computes what its twin of the same name computes in kernels/elementwise.py,
kernels/products.py and kernels/tile_attention.py.

Axes: N rows of a block, I and O input and output size of a linear layer, R rank of the adapter,
C layers joined in one projection that the adapter trains, F width of the MLP, T packed tokens,
Q query heads, G key/value heads, J queries per key, D head size, H hidden size, W tokens of a block
of the vocabulary, Y such blocks.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.native.operands import address, bfloat16_linear
from tinkersmith.engine.model.kernels import Elementwise, HeadTransform
from tinkersmith.engine.model.projection import Part, Projection, RowUpdates, Update

_SMALL_BATCH = 128  # rows, up to which it is faster to leave the weights as they lie


def native_elementwise(library: Library, dtype: torch.dtype) -> Elementwise:
    """The element-wise functions for tensors in `dtype`, float32 or bfloat16."""
    suffix = str(dtype).removeprefix("torch.")

    def function(name: str) -> Callable[..., None]:
        return getattr(library.functions, f"tinkersmith_{name}_{suffix}")

    call_rms_norm = function("rms_norm")
    call_rms_norm_backward = function("rms_norm_backward")
    call_swiglu = function("swiglu")
    call_swiglu_backward = function("swiglu_backward")
    call_split_heads = function("split_heads")
    call_split_heads_backward = function("split_heads_backward")
    call_exponentials = function("exponentials")

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, output: torch.Tensor) -> None:
        call_rms_norm(*x.shape, address(x), address(weight), eps, address(output))

    def rms_norm_backward(
        grad: torch.Tensor,  # (N, H)
        x: torch.Tensor,  # (N, H)
        weight: torch.Tensor,  # (H,)
        eps: float,
        total: torch.Tensor,  # (N, H)
        normed: torch.Tensor,  # (N, H)
    ) -> None:
        tensors = address(grad), address(x), address(weight)
        call_rms_norm_backward(*x.shape, *tensors, eps, address(total), address(normed))

    def swiglu(gate_up: torch.Tensor, output: torch.Tensor) -> None:
        call_swiglu(*output.shape, address(gate_up), address(output))

    def swiglu_backward(
        grad: torch.Tensor,  # (N, F)
        gate_up: torch.Tensor,  # (N, 2 F)
        activated: torch.Tensor,  # (N, F)
        output: torch.Tensor,  # (N, 2 F)
    ) -> None:
        tensors = address(grad), address(gate_up), address(activated), address(output)
        call_swiglu_backward(*grad.shape, *tensors)

    def head_arguments(
        qkv: torch.Tensor, transform: HeadTransform, query: torch.Tensor
    ) -> tuple[int | float | None, ...]:
        """The arguments that both split functions begin with."""
        query_norm, key_norm, eps, cosine, sine, scale = transform
        groups, count, share, size = query.shape
        # The outputs are rows of larger tensors: those of a group stand together, groups apart.
        group_rows = query.stride(0) // (share * size)
        assert cosine.stride() == sine.stride() and cosine.stride(-1) == 1
        norms = address(qkv), address(query_norm), address(key_norm)
        rotary = cosine.data_ptr(), sine.data_ptr(), cosine.stride(0)
        return (count, groups, share, size, group_rows, *norms, eps, *rotary, scale)

    def split_heads(
        qkv: torch.Tensor,  # (N, (Q + 2 G) D)
        transform: HeadTransform,
        query: torch.Tensor,  # (G, N, J, D)
        key: torch.Tensor,  # (G, N, D)
        value: torch.Tensor,  # (G, N, D)
    ) -> None:
        arguments = head_arguments(qkv, transform, query)
        call_split_heads(*arguments, query.data_ptr(), key.data_ptr(), value.data_ptr())

    def split_heads_backward(
        qkv: torch.Tensor,  # (N, (Q + 2 G) D)
        transform: HeadTransform,
        query: torch.Tensor,  # (G, N, J, D)
        key: torch.Tensor,  # (G, N, D)
        value: torch.Tensor,  # (G, N, D)
        output: torch.Tensor,  # (N, (Q + 2 G) D)
    ) -> None:
        arguments = head_arguments(qkv, transform, query)
        assert key.dtype == value.dtype == torch.float32
        call_split_heads_backward(
            *arguments, query.data_ptr(), key.data_ptr(), value.data_ptr(), address(output)
        )

    def exponentials(
        logits: torch.Tensor,  # (N, W), may be columns of a matrix, like `powers`
        shift: torch.Tensor,  # (N, 1)
        sums: torch.Tensor,  # (N,)
        powers: torch.Tensor | None,  # (N, W)
    ) -> None:
        tensors = shift.data_ptr(), address(sums), None if powers is None else powers.data_ptr()
        call_exponentials(
            *logits.shape,
            *(logits.data_ptr(), logits.stride(0), *tensors),
            0 if powers is None else powers.stride(0),
        )

    return Elementwise(
        rms_norm=rms_norm,
        rms_norm_backward=rms_norm_backward,
        swiglu=swiglu,
        swiglu_backward=swiglu_backward,
        split_heads=split_heads,
        split_heads_backward=split_heads_backward,
        exponentials=exponentials,
    )


@dataclass(frozen=True, slots=True)
class NativeProducts:
    """`Products` in bf16, on processors that have instructions for them."""

    library: Library
    elementwise: Elementwise  # in bf16, too

    def project(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        output: torch.Tensor,  # (N, O)
        low: torch.Tensor,  # (N, C R)
        residual: torch.Tensor | None = None,  # (N, O)
    ) -> None:
        if isinstance(update, RowUpdates):
            self._project_rows(x, projection, update, output, residual)
            return
        joined: list[tuple[slice, Part | None]] = [(slice(0, len(projection.weight)), None)]
        if update is not None:
            self.linear(x, update.a, low)
            joined = joined_layers(projection, update)
        for columns, trained in joined:
            self.linear(
                x,
                projection.weight[columns],
                output[:, columns],
                None if trained is None else low[:, trained.ranks],
                None if trained is None else trained.b,
                None if projection.bias is None else projection.bias[columns],
                None if residual is None else residual[:, columns],
            )

    def project_swiglu(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        gate_up: torch.Tensor,  # (N, 2 F)
        low: torch.Tensor,  # (N, C R)
    ) -> torch.Tensor:  # (N, F)
        count, width = len(x), gate_up.shape[1] // 2
        activated = gate_up.new_empty(count, width)  # (N, F)
        if count <= _SMALL_BATCH or isinstance(update, RowUpdates):
            self.project(x, projection, update, gate_up, low)
            self.elementwise.swiglu(gate_up, activated)
            return activated
        gate = up = None
        rank = 0
        if update is not None:
            self.linear(x, update.a, low)
            (_, gate), (_, up) = joined_layers(projection, update)
            rank = update.parts[0].b.shape[1]
        self.library.functions.tinkersmith_swiglu_linear(
            *(count, width, x.shape[1], address(x), address(projection.weight)),
            *(address(low), low.shape[1], rank),
            *(None if trained is None else address(trained.b) for trained in (gate, up)),
            *(address(projection.bias), address(gate_up), address(activated)),
        )
        return activated

    def _project_rows(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        updates: RowUpdates,
        output: torch.Tensor,  # (N, O)
        residual: torch.Tensor | None,  # (N, O)
    ) -> None:
        if all(rows.stop - rows.start <= _SMALL_BATCH for rows, _ in updates.groups):
            linear = bfloat16_linear(projection, updates)
            self.library.functions.tinkersmith_small_batch_projection(
                *(len(x), ctypes.addressof(linear), address(x)),
                *(address(residual), address(output)),
            )
            return
        for rows, update in _all_rows(updates, len(x)):
            low = x.new_empty(rows.stop - rows.start, 0 if update is None else len(update.a))
            more = None if residual is None else residual[rows]
            self.project(x[rows], projection, update, output[rows], low, more)

    def input_gradient(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # (N, I), (N, C R)
        grad_low = self.low_gradient(grad, update)
        weight = projection.weight
        grad_x = grad.new_empty(len(grad), weight.shape[1])  # (N, I)
        a = None if update is None else update.a
        self.multiply(grad, weight, grad_x, grad_low, a)
        return grad_x, grad_low

    def input_gradient_swiglu(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # (N, F), (N, 2 F), (N, C R)
        grad_low = self.low_gradient(grad, update)
        weight = projection.weight
        activated = gate_up.new_empty(len(grad), weight.shape[1])  # (N, F)
        grad_gate_up = torch.empty_like(gate_up)
        self.library.functions.tinkersmith_swiglu_input_gradient(
            *(len(grad), weight.shape[1], len(weight), address(grad), address(weight)),
            *(address(grad_low), 0 if grad_low is None else grad_low.shape[1]),
            None if update is None else address(update.a),
            *(address(gate_up), address(activated), address(grad_gate_up)),
        )
        return activated, grad_gate_up, grad_low

    def low_gradient(
        self, grad: torch.Tensor, update: Update | None
    ) -> torch.Tensor | None:  # (N, O) -> (N, C R)
        if update is None:
            return None
        grad_low = grad.new_empty(len(grad), len(update.a))
        for trained in update.parts:
            self.multiply(grad[:, trained.columns], trained.b, grad_low[:, trained.ranks])
        return grad_low

    def add_gradients(
        self,
        update: Update | None,
        grad: torch.Tensor,  # (N, O)
        x: torch.Tensor,  # (N, I)
        grad_low: torch.Tensor | None,  # (N, C R)
        low: torch.Tensor,  # (N, C R)
    ) -> None:
        if update is None or grad_low is None:
            return
        rank, scaling = update.adapter.config.rank, update.adapter.scaling
        # One product for all A matrices: their input is packed only once.
        grad_a = torch.zeros(grad_low.shape[1], x.shape[1])  # (C R, I)
        self.add_product(grad_low, x, len(grad_a), 1.0, grad_a, transposed=False)
        for trained in update.parts:
            grad_b = update.gradient(trained, "B")  # (outputs, rank)
            columns = grad[:, trained.columns]
            self.add_product(low[:, trained.ranks], columns, rank, scaling, grad_b, transposed=True)
            update.gradient(trained, "A").add_(grad_a[trained.ranks][:rank])

    def linear(
        self,
        x: torch.Tensor,  # (N, I)
        weight: torch.Tensor,  # (O, I)
        output: torch.Tensor,  # (N, O), may be columns of a matrix, like `low` and `residual`
        low: torch.Tensor | None = None,  # (N, R)
        b: torch.Tensor | None = None,  # (O, R)
        bias: torch.Tensor | None = None,  # (O,)
        residual: torch.Tensor | None = None,  # (N, O)
    ) -> None:
        """output = x weight^T + low b^T + bias + residual"""
        assert residual is None or residual.stride(0) == output.stride(0)
        functions = self.library.functions
        call = (
            functions.tinkersmith_small_batch_linear
            if len(x) <= _SMALL_BATCH
            else functions.tinkersmith_linear
        )
        call(
            *(len(x), *weight.shape, address(x), x.shape[1], address(weight)),
            *((None, 0) if low is None else (low.data_ptr(), low.stride(0))),
            *(0 if b is None else b.shape[1], address(b), address(bias)),
            None if residual is None else residual.data_ptr(),
            *(output.data_ptr(), output.stride(0)),
        )

    def multiply(
        self,
        grad: torch.Tensor,  # (N, O), may be columns of a matrix, like `grad_x`
        weight: torch.Tensor,  # (O, I)
        grad_x: torch.Tensor,  # (N, I)
        grad_low: torch.Tensor | None = None,  # (N, C R)
        a: torch.Tensor | None = None,  # (C R, I)
    ) -> None:
        """grad_x = grad weight + grad_low a"""
        self.library.functions.tinkersmith_input_gradient(
            *(len(grad), weight.shape[1], len(weight), grad.data_ptr(), grad.stride(0)),
            *(address(weight), address(grad_low), 0 if a is None else len(a), address(a)),
            *(grad_x.data_ptr(), grad_x.stride(0)),
        )

    def add_product(
        self,
        low: torch.Tensor,  # (N, R) columns of a matrix
        x: torch.Tensor,  # (N, I) columns of a matrix
        rank: int,
        scale: float,
        gradient: torch.Tensor,  # (rank, I) in fp32, or (I, rank) if `transposed`
        *,
        transposed: bool,
    ) -> None:
        """gradient += scale low^T x, for the first `rank` columns of low."""
        self.library.functions.tinkersmith_weight_gradient(
            *(*x.shape, rank, low.data_ptr(), low.stride(0), x.data_ptr(), x.stride(0)),
            *(scale, address(gradient), transposed),
        )

    def add_blocks(
        self,
        low: torch.Tensor,  # (N, R)
        x: torch.Tensor,  # (Y, N, W), the last block may have more columns than are used
        scale: float,
        gradient: torch.Tensor,  # (V, R) in fp32
    ) -> None:
        """gradient += scale x^T low, where x is V columns in blocks."""
        columns, rank = gradient.shape
        self.library.functions.tinkersmith_weight_gradient(
            *(len(low), columns, rank, address(low), rank, address(x), x.shape[2]),
            *(scale, address(gradient), True),
        )


class NativeAttention:
    """`PackedAttention` in bf16 for documents of these lengths.

    It saves only each row's normaliser: the backward pass computes the probabilities again.
    """

    def __init__(self, lengths: Sequence[int], library: Library, queries_per_key: int) -> None:
        self.library, self.share = library, queries_per_key
        self.starts = torch.tensor([0, *accumulate(lengths)])
        self.documents = len(lengths)

    def numbers_kept(self, heads: int, key_heads: int, size: int) -> int:
        return 0

    def attend(
        self,
        query: torch.Tensor,  # (G, T J, D), scaled
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # (T, Q D), the normalisers (G, T J)
        groups, tokens, size = key.shape
        output = key.new_empty(tokens, groups * self.share * size)
        normaliser = torch.empty(groups, tokens * self.share)
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        self.library.functions.tinkersmith_attend(
            *(groups, self.share, size, self.documents, address(self.starts)),
            *(address(query), address(key), address(value)),
            *(address(output), address(normaliser)),
        )
        return output, normaliser

    def backward(
        self,
        grad: torch.Tensor,  # (T, Q D)
        query: torch.Tensor,  # (G, T J, D)
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
        output: torch.Tensor,  # (T, Q D)
        kept: torch.Tensor,  # (G, T J), the normalisers
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # (G, T J, D), (G, T, D), (G, T, D)
        groups, _, size = key.shape
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.empty(key.shape), torch.empty(key.shape)  # in fp32
        self.library.functions.tinkersmith_attend_backward(
            *(groups, self.share, size, self.documents, address(self.starts)),
            *(address(query), address(key), address(value), address(output), address(kept)),
            *(address(grad), address(grad_query), address(grad_key), address(grad_value)),
        )
        return grad_query, grad_key, grad_value


def joined_layers(projection: Projection, update: Update | None) -> list[tuple[slice, Part | None]]:
    """The output columns of each layer of the projection, and what trains it, if anything."""
    trained = {part.columns.start: part for part in (update.parts if update else ())}
    starts = [0, *accumulate(projection.sizes)]
    return [
        (slice(start, start + size), trained.get(start))
        for start, size in zip(starts, projection.sizes, strict=False)
    ]


def _all_rows(updates: RowUpdates, count: int) -> Iterator[tuple[slice, Update | None]]:
    """The groups of `count` rows, those between them that have no adapter included."""
    start = 0
    for rows, update in updates.groups:
        if start < rows.start:
            yield slice(start, rows.start), None
        yield rows, update
        start = rows.stop
    if start < count:
        yield slice(start, count), None
