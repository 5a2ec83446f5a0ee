"""The forward and backward pass through a model's own layers and autograd, where no kernel is.

Axes: T packed tokens, M rows of T that reach the output layer, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tinkersmith.engine.hardware.memory import free_memory
from tinkersmith.engine.log import log
from tinkersmith.engine.model import attention, lora
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter


class ModelPass:
    """One forward pass over a pack, and the backward pass that goes with it.

    Layers keep what their backward pass needs as long as it fits into `budget` bytes (None: a third
    of the free memory). The rest keep their input only and are computed again.
    """

    def __init__(
        self,
        base: BaseModel,
        adapter: Adapter | None,
        lengths: Sequence[int],
        *,
        backward: bool,
        budget: int | None = None,
    ) -> None:
        self.base, self.adapter, self.lengths = base, adapter, lengths
        self.backward_follows = backward
        self.budget = budget
        self.computed_again = 0  # layers
        self.kept = 0  # bytes
        self._largest = 0  # bytes that a layer has kept
        self._known: set[int] = set()  # storages that are counted, or stay anyway

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """(T,) -> (T, H), the input of the output layer; or (M, H), of some rows only."""
        base = self.base
        with torch.set_grad_enabled(self.backward_follows), self._choosing():
            hidden = base.hidden(tokens, self.lengths, self.adapter)  # (T, H)
            self.hidden = hidden if rows is None else hidden[rows]  # (T or M, H)
        if self.computed_again:
            log.info(
                "%d tokens: memory for %d of %d layers, the others are computed twice",
                sum(self.lengths),
                base.layers - self.computed_again,
                base.layers,
            )
        # The graph is cut here: the output layer forms its gradient itself.
        return self.hidden.detach()

    def backward(self, grad: torch.Tensor) -> None:
        """Add the gradients of the adapter's weights; `grad` has the shape that `forward` gave."""
        if self.hidden.requires_grad:
            self.hidden.backward(grad)

    def _choosing(self) -> AbstractContextManager[None]:
        """Inside the block, each layer is computed as the memory allows."""
        if not self.backward_follows or self.adapter is None:
            return nullcontext()
        if self.budget is None:
            # What lies between kept tensors is free, but nearly as large, and mostly of no use.
            self.budget = free_memory(self.base.device) // 3
        weights = [*self.base.model.parameters(), *self.adapter.weights.values()]
        self._known = {weight.untyped_storage().data_ptr() for weight in weights}
        return _each_by(self._layer, _layers(self.base))

    def _layer(self, compute: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        assert self.budget is not None
        if self.kept + self._largest <= self.budget:
            before = self.kept
            with saved_tensors_hooks(self._count, _unchanged):
                output = compute(*arguments, **named)
            self._largest = max(self._largest, self.kept - before)
            return output
        self.computed_again += 1
        context, adapters = attention.active_context(), lora.active()
        assert context is not None

        @contextmanager
        def as_before() -> Iterator[None]:
            with attention.attending(context), lora.using(adapters):
                yield

        return checkpoint(
            compute,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
            context_fn=lambda: (nullcontext(), as_before()),
            **named,
        )

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.kept += storage.nbytes()
        return tensor


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _layers(base: BaseModel) -> Sequence[nn.Module]:
    """The model's layers; none where they do not stand in one list."""
    for module in base.model.base_model.children():
        if isinstance(module, nn.ModuleList) and len(module) == base.layers:
            return list(module)
    return []


@contextmanager
def _each_by(compute: Callable[..., Any], layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, `compute` gets each layer's own computation and what it is called with."""
    for layer in layers:
        layer.forward = partial(compute, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # of the object: that of its class is used again
