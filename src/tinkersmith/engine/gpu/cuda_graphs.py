"""Training passes of one shape as CUDA graphs: one launch instead of one for every kernel.

A small model's kernels end before Python launches the next. Packs are padded to one of few shapes.
When a shape comes a second time, its pass is captured, for all adapters of one kind, and from then
on launched as a whole: forward, and after the output layer backward.

Experimental: what it gains is not measured. On an H100 with torch 2.11 the capture failed, because
the graphs of several models shared a pool of memory that had ended with the first of them; since
each model has its own pool, it has not run on a GPU again. When a model is loaded, gradients are
compared with those of a plain pass.

Axes: T tokens of a shape, N tokens of a pack, M rows that reach the output layer, H hidden size.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.memory import free_memory
from tinkersmith.engine.kernels.varlen_attention import VarlenAttention, of_documents
from tinkersmith.engine.log import log
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.dense import DenseModel
from tinkersmith.engine.model.kernels import Kernels
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dense_pass import DensePass, numbers_kept
from tinkersmith.engine.training.self_check import gradient_difference

_OPTION = "--gpu-graphs"
_STEP = 1024  # tokens: shapes have a multiple of them
_MOST = 16  # shapes and kinds of adapters that are remembered
# Operations of a layer's forward products, below which launching its kernels takes longer than they
# do: about 1 ms of Python at 400 TFLOP/s. Not measured.
_LAUNCH_BOUND = 4e11
_TOLERANCE = 0.03  # both are rounded


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a pack is padded to."""

    tokens: int
    documents: int
    longest: int


def shape_of(lengths: Sequence[int]) -> Shape:
    """The padding is a document, too; those that are still missing have no tokens."""
    missing = -sum(lengths) % _STEP
    return Shape(
        tokens=sum(lengths) + missing,
        documents=_power_of_two(len(lengths) + 1),
        longest=_power_of_two(max(*lengths, missing)),
    )


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


class CudaGraphs:
    """The captured passes of one model.

    If a capture fails, raise when `strict`, otherwise fall back to plain passes.
    """

    def __init__(self, model: DenseModel, kernels: Kernels, *, strict: bool = False) -> None:
        self.model, self.kernels, self.strict = model, kernels, strict
        # None: seen once. The least lately used first.
        self.passes: OrderedDict[Hashable, GraphPass | None] = OrderedDict()
        self.captures_more = True

    @cached_property
    def pool(self) -> Any:
        """The memory pool of this model's graphs: no two passes are under way at a time.

        A pool ends with its last graph, so a model's must not be another's.
        """
        return torch.cuda.graph_pool_handle()

    def begin(self, adapter: Adapter, lengths: Sequence[int]) -> "GraphPass | None":
        """A captured pass over documents of these lengths; None if there is none."""
        shape, config = shape_of(lengths), adapter.config
        key = shape, config.rank, config.train_attn, config.train_mlp
        graph_pass = self.passes.get(key)
        if graph_pass is not None:
            graph_pass.begin(adapter, lengths)
        elif not self._is_worth_it(adapter, shape):
            return None
        elif key in self.passes:
            graph_pass = self._capture(adapter, lengths)
        self.passes[key] = graph_pass
        self.passes.move_to_end(key)
        while len(self.passes) > _MOST:
            self.passes.popitem(last=False)
        return graph_pass

    def _capture(self, adapter: Adapter, lengths: Sequence[int]) -> "GraphPass | None":
        try:
            return GraphPass(self, adapter, lengths)
        except RuntimeError as error:  # memory is short, for the most part
            if self.strict:
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("no more passes are captured as CUDA graphs: %s", reason[0])
            self.captures_more = False
            return None

    def _is_worth_it(self, adapter: Adapter, shape: Shape) -> bool:
        if not self.captures_more:
            return False
        model = self.model
        layer, norm = model.layers[0], model.final_norm
        weights = sum(projection.weight.numel() for projection in layer.projections)
        operations = 2 * shape.tokens * weights
        # A graph's memory stays its own: other passes need as much besides.
        needed = numbers_kept(model, adapter) * len(model.layers) * shape.tokens * norm.itemsize
        return operations < _LAUNCH_BOUND and needed < free_memory(norm.device) / 4


class GraphPass:
    """A DensePass of one shape as two CUDA graphs, for every pack that fits into the shape."""

    def __init__(self, graphs: CudaGraphs, adapter: Adapter, lengths: Sequence[int]) -> None:
        model = graphs.model
        self.shape = shape = shape_of(lengths)
        norm = model.final_norm
        device = norm.device
        # Weights and gradients at addresses that stay: an adapter's own are copied.
        trained = [
            path
            for layer in model.layers
            for projection in layer.projections
            for path in projection.paths
        ]
        self.weights = {
            name: nn.Parameter(weight.detach().clone())
            for name, weight in adapter.weights.items()
            if name.rpartition(".")[0] in trained
        }
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        self.tokens = torch.zeros(shape.tokens, dtype=torch.long, device=device)
        self.ends = torch.zeros(shape.documents + 1, dtype=torch.int32, device=device)
        self.grad = norm.new_zeros(shape.tokens, len(norm))
        captured_adapter = Adapter(adapter.config, self.weights)
        self.dense_pass = DensePass(
            model, graphs.kernels, captured_adapter, [shape.tokens], backward=True
        )
        self.dense_pass.attention = VarlenAttention(self.ends, shape.tokens, shape.longest)
        self.begin(adapter, lengths)
        self.launch_forward = capture(self._forward, graphs)
        self.launch_backward = capture(self._backward, graphs)

    @torch.no_grad()
    def begin(self, adapter: Adapter, lengths: Sequence[int]) -> None:
        """The next pass is this adapter's, over documents of these lengths."""
        self.adapter = adapter
        for name, weight in self.weights.items():
            weight.copy_(adapter.weights[name])
        missing = self.shape.tokens - sum(lengths)
        padded = [*lengths, missing]
        ends = np.full(len(self.ends), self.shape.tokens, np.int32)
        ends[: len(padded) + 1] = [0, *accumulate(padded)]
        self.ends.copy_(torch.from_numpy(ends))
        positions = torch.cat([torch.arange(length) for length in padded])
        rotary = self.dense_pass.model.rotary_tables(positions.to(self.ends.device))
        for table, values in zip(self.dense_pass.rotary, rotary, strict=True):
            table.copy_(values)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """(N,) -> (N, H), or (M, H) of some rows only."""
        self.rows = slice(len(tokens)) if rows is None else rows
        self.tokens.copy_(pad(tokens, (0, self.shape.tokens - len(tokens))))
        self.launch_forward()
        return self.hidden[self.rows]

    @torch.no_grad()
    def backward(self, grad: torch.Tensor) -> None:
        """From (N, H) or (M, H) to the gradients of the adapter's weights."""
        self.grad.zero_()
        self.grad[self.rows] = grad
        self.launch_backward()
        for name, captured in self.weights.items():
            weight = self.adapter.weights[name]
            assert captured.grad is not None
            if weight.grad is None:
                weight.grad = captured.grad.clone()
            else:
                weight.grad += captured.grad

    def _forward(self) -> None:
        self.hidden = self.dense_pass.forward(self.tokens)  # (T, H)

    def _backward(self) -> None:
        for weight in self.weights.values():
            assert weight.grad is not None
            weight.grad.zero_()
        self.dense_pass.backward(self.grad)


def capture(work: Callable[[], None], graphs: CudaGraphs) -> Callable[[], None]:
    """Capture work on a GPU as a graph that one call launches, on the same memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=graphs.pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


def with_cuda_graphs(base: BaseModel) -> BaseModel:
    """Let the training passes of a model on a GPU be launched as CUDA graphs.

    Raises:
        Refused: graphs are not possible for this model here, or give other gradients.
    """
    if base.kernels is None:
        raise Refused(f"{_OPTION} is for Llama, Mistral, Qwen2 and Qwen3, not for {base.arch}.")
    # The plan of tiles is another one for every pack.
    if getattr(base.kernels.attention, "func", None) is not of_documents:
        raise Refused(f"{_OPTION} needs variable-length FlashAttention, which does not work here.")
    return _checked(base)


def _checked(base: BaseModel) -> BaseModel:
    try:
        worst = gradient_difference(base, partial(_with_graphs, strict=True), passes=3)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(f"{_OPTION} does not work here: {reason[0]}") from error
    if not worst < _TOLERANCE:
        raise Refused(f"{_OPTION} gives wrong gradients for {base.name}: off by {worst:.1e}.")
    return _with_graphs(base)


def _with_graphs(base: BaseModel, *, strict: bool = False) -> BaseModel:
    assert base.dense is not None and base.kernels is not None
    graphs = CudaGraphs(base.dense, base.kernels, strict=strict)
    return replace(base, kernels=replace(base.kernels, prepared=graphs.begin))
