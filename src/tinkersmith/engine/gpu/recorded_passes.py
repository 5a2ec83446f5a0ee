"""Passes of one shape as CUDA graphs: a small model's kernels end before Python launches the next.

Packs are padded to one of few shapes. A shape that comes a second time is recorded, for all
adapters of one kind, and from then on launched as a whole: forward, and after the output layer
backward.

Written without a GPU at hand: what it gains is not measured. When a model is loaded, gradients are
compared with those of a plain pass; where they do not agree, nothing is recorded.

Axes: T tokens of a shape, N those of a pack, M rows that are wanted, H hidden size.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from tinkersmith.engine.hardware.memory import free_memory
from tinkersmith.engine.kernels.varlen_attention import VarlenAttention, of_documents
from tinkersmith.engine.log import log
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.dense import DenseModel
from tinkersmith.engine.model.kernels import Kernels
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dense_pass import DensePass, numbers_kept
from tinkersmith.engine.training.self_check import gradient_difference

_STEP = 1024  # tokens: shapes have a multiple of them
_MOST = 16  # shapes and kinds of adapters that are remembered
# Operations of a layer's forward products, below which launching its kernels takes longer than they
# do: about 1 ms of Python at 400 TFLOP/s. Not measured.
_LAUNCH_BOUND = 4e11
_TOLERANCE = 0.03  # both are rounded


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pack is padded to."""

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


class RecordedPasses:
    """Those of one model. Where recording fails, `strict` ones raise; others go on without it."""

    def __init__(self, model: DenseModel, kernels: Kernels, *, strict: bool = False) -> None:
        self.model, self.kernels, self.strict = model, kernels, strict
        # None: seen once. The least lately used first.
        self.passes: OrderedDict[Hashable, RecordedPass | None] = OrderedDict()
        self.records_more = True

    def begin(self, adapter: Adapter, lengths: Sequence[int]) -> "RecordedPass | None":
        """A pass over such a pack; None if it is to be made as it is."""
        shape, config = shape_of(lengths), adapter.config
        key = shape, config.rank, config.train_attn, config.train_mlp
        found = self.passes.get(key)
        if found is not None:
            found.begin(adapter, lengths)
        elif not self._is_worth_it(adapter, shape):
            return None
        elif key in self.passes:
            found = self._record(adapter, lengths)
        self.passes[key] = found
        self.passes.move_to_end(key)
        while len(self.passes) > _MOST:
            self.passes.popitem(last=False)
        return found

    def _record(self, adapter: Adapter, lengths: Sequence[int]) -> "RecordedPass | None":
        try:
            return RecordedPass(self.model, self.kernels, adapter, lengths)
        except RuntimeError as error:  # memory is short, for the most part
            if self.strict:
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("no more passes are recorded as CUDA graphs: %s", reason[0])
            self.records_more = False
            return None

    def _is_worth_it(self, adapter: Adapter, shape: Shape) -> bool:
        if not self.records_more:
            return False
        model = self.model
        layer, like = model.layers[0], model.final_norm
        operations = 2 * shape.tokens * sum(part.weight.numel() for part in layer.projections)
        # A graph's memory stays its own: other passes need as much besides.
        kept = numbers_kept(model, adapter) * len(model.layers) * shape.tokens * like.itemsize
        return operations < _LAUNCH_BOUND and kept < free_memory(like.device) / 4


class RecordedPass:
    """A forward and a backward pass of one shape, as DensePass makes them, for every pack in it."""

    def __init__(
        self, model: DenseModel, kernels: Kernels, adapter: Adapter, lengths: Sequence[int]
    ) -> None:
        self.shape = shape = shape_of(lengths)
        device, like = model.final_norm.device, model.final_norm
        # Weights and gradients at addresses that stay: an adapter's own are copied.
        projections = [part for layer in model.layers for part in layer.projections]
        paths = {path for projection in projections for path in projection.paths}
        self.weights = {
            name: nn.Parameter(weight.detach().clone())
            for name, weight in adapter.weights.items()
            if name.rpartition(".")[0] in paths
        }
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        self.tokens = torch.zeros(shape.tokens, dtype=torch.long, device=device)
        self.ends = torch.zeros(shape.documents + 1, dtype=torch.int32, device=device)
        self.grad = like.new_zeros(shape.tokens, len(like))
        own = Adapter(adapter.config, self.weights)
        self.one = DensePass(model, kernels, own, [shape.tokens], backward=True)
        self.one.attention = VarlenAttention(self.ends, shape.tokens, shape.longest)
        self.begin(adapter, lengths)
        self.launch_forward = record(self._forward)
        self.launch_backward = record(self._backward)

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
        of_pack = self.one.model.rotary_tables(positions.to(self.ends.device))
        for part, new in zip(self.one.rotary, of_pack, strict=True):
            part.copy_(new)

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
        for name, own in self.weights.items():
            weight = self.adapter.weights[name]
            assert own.grad is not None
            weight.grad = own.grad.clone() if weight.grad is None else weight.grad.add_(own.grad)

    def _forward(self) -> None:
        self.hidden = self.one.forward(self.tokens)  # (T, H)

    def _backward(self) -> None:
        for weight in self.weights.values():
            assert weight.grad is not None
            weight.grad.zero_()
        self.one.backward(self.grad)


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Work on a GPU -> the same as one launch, on the same memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        work()
    return graph.replay


@lru_cache
def _pool() -> Any:
    """One for all graphs: no two passes are under way at a time."""
    return torch.cuda.graph_pool_handle()


def with_recorded_passes(base: BaseModel) -> BaseModel:
    """The same model; on a GPU with variable-length attention its passes will be recorded."""
    if base.device.type != "cuda" or base.kernels is None:
        return base
    # The plan of tiles is another one for every pack.
    if getattr(base.kernels.attention, "func", None) is not of_documents:
        return base
    return _recording_if_right(base)


def _recording_if_right(base: BaseModel) -> BaseModel:
    try:
        worst = gradient_difference(base, partial(_recording, strict=True), passes=3)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("no CUDA graphs here: %s", reason[0])
        return base
    if not worst < _TOLERANCE:
        log.warning("passes as CUDA graphs are off by %.1e: none is recorded", worst)
        return base
    return _recording(base)


def _recording(base: BaseModel, *, strict: bool = False) -> BaseModel:
    assert base.dense is not None and base.kernels is not None
    passes = RecordedPasses(base.dense, base.kernels, strict=strict)
    return replace(base, kernels=replace(base.kernels, prepared=passes.begin))
