"""Weights in bfloat16 on a processor without instructions for it: widened where they are used.

Products in bfloat16 are tens of times slower there than in float32. So all is computed in float32,
as a model in float32 would with these weights, in half of its memory: a weight is widened tile by
tile, and a tile stays in the caches until it is used.

Axes: N rows, M outputs and K inputs of a layer.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from tinkersmith.engine.model.lora import LoraLinear

# (N, K), (M, K), (N, M): writes x W^T to the last, which may be columns of a matrix
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

_TILE = 1 << 21  # numbers; the best of five by measurement


def product(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """A `Product`."""
    if weight.dtype == x.dtype:
        torch.mm(x, weight.T, out=output)
        return
    for rows, tile in _tiles(weight, x.dtype):
        torch.mm(x, tile.T, out=output[:, rows])


def input_product(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, M) -> grad W (N, K), in the gradient's dtype."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    output = grad.new_zeros(len(grad), weight.shape[1])
    for rows, tile in _tiles(weight, grad.dtype):
        output.addmm_(grad[:, rows], tile)
    return output


def _tiles(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Which rows, and these in `dtype`; the next tile takes the place of the last."""
    count = min(len(weight), max(1, _TILE // weight.shape[1]))
    room = weight.new_empty(count, weight.shape[1], dtype=dtype)
    for start in range(0, len(weight), count):
        rows = slice(start, min(start + count, len(weight)))
        yield rows, room[: rows.stop - start].copy_(weight[rows])


class WidenedLinear(nn.Linear):
    """A frozen linear layer whose output is in float32, as its input is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., K) -> (..., M)
        return linear(input, self.weight.to(input.dtype), self.bias)


def widen(model: PreTrainedModel, layers: Iterable[LoraLinear]) -> None:
    """Let `model` compute in float32; its embedding and these layers' weights stay as they are."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
    kept = {embedding.weight}
    for layer in layers:
        layer.base = WidenedLinear(layer.base)
        kept.add(layer.base.weight)
    for parameter in model.parameters():
        if parameter not in kept:
            parameter.data = parameter.data.float()
