"""Weights in bfloat16, computed in float32: each is cast where it is used.

On a processor without instructions for bfloat16, its products are tens of times slower than those
in float32. So everything is computed in float32, with the results of a float32 model that has these
weights, in half of its memory. A weight is cast tile by tile, and a tile stays in the caches until
it is used.

Axes: N rows, I inputs and O outputs of a layer.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from tinkersmith.engine.model.lora import LoraLinear

# x (N, I), W (O, I), output (N, O): writes x W^T to the output, which may be columns of a matrix
LinearProduct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

_TILE = 1 << 21  # numbers; the best of five by measurement


def linear_product(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """output = x W^T, in the dtype of x: a `LinearProduct`."""
    if weight.dtype == x.dtype:
        torch.mm(x, weight.T, out=output)
        return
    for rows, tile in _tiles(weight, x.dtype):
        torch.mm(x, tile.T, out=output[:, rows])


def input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, O) -> grad W (N, I), in the gradient's dtype."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    output = grad.new_zeros(len(grad), weight.shape[1])
    for rows, tile in _tiles(weight, grad.dtype):
        output.addmm_(grad[:, rows], tile)
    return output


def _tiles(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of rows with their weights in `dtype`; each tile overwrites the one before it."""
    count = min(len(weight), max(1, _TILE // weight.shape[1]))
    buffer = weight.new_empty(count, weight.shape[1], dtype=dtype)
    for start in range(0, len(weight), count):
        rows = slice(start, min(start + count, len(weight)))
        yield rows, buffer[: rows.stop - start].copy_(weight[rows])


class CastLinear(nn.Linear):
    """A frozen linear layer whose output is in float32, as its input is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., I) -> (..., O)
        return linear(input, self.weight.to(input.dtype), self.bias)


def compute_in_float32(model: PreTrainedModel, layers: Iterable[LoraLinear]) -> None:
    """Let `model` compute in float32; its embedding and these layers' weights keep their dtype."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
    unchanged = {embedding.weight}
    for layer in layers:
        layer.base = CastLinear(layer.base)
        unchanged.add(layer.base.weight)
    for parameter in model.parameters():
        if parameter not in unchanged:
            parameter.data = parameter.data.float()
