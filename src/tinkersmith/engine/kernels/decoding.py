"""A step of decoding by torch: one more token for each active row, layer by layer.

Axes: B active rows, N rows, H hidden size.
"""

from collections.abc import Sequence
from functools import partial

import torch

from tinkersmith.engine.kernels.padded_cache import PaddedCache
from tinkersmith.engine.model.dense import DenseModel, LayerUpdates, RotaryTables
from tinkersmith.engine.model.kernels import Decoding, Elementwise, Products
from tinkersmith.engine.model.projection import Projection, Update, outputs


def torch_decoding(elementwise: Elementwise, products: Products) -> Decoding:
    """Decode layer by layer, on every device."""
    layers = partial(TorchLayers, elementwise=elementwise, products=products)
    return Decoding(layers, elementwise, products)


class TorchLayers:
    """A step of decoding, layer by layer, over a padded KV cache."""

    def __init__(
        self,
        model: DenseModel,
        updates: Sequence[LayerUpdates],
        slots: int,
        *,
        elementwise: Elementwise,
        products: Products,
    ) -> None:
        self.model, self.updates = model, updates
        self.elementwise, self.products = elementwise, products
        self.cache = PaddedCache(model, slots)
        self.lengths = self.cache.lengths
        self.put, self.move = self.cache.put, self.cache.move
        self.resize, self.held = self.cache.resize, self.cache.held

    def step(self, x: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
        self.cache.begin(rotary)
        for index in range(len(self.model.layers)):
            x = self._layer(index, x)
        return x

    def _layer(self, index: int, x: torch.Tensor) -> torch.Tensor:  # (B, H)
        model, layer, updates = self.model, self.model.layers[index], self.updates[index]
        do, products, normed = self.elementwise, self.products, torch.empty_like(x)
        do.rms_norm(x, layer.attention_norm, model.eps, normed)
        heads = self.cache.attend(index, project(products, normed, layer.qkv, updates.qkv))
        middle = project(products, heads, layer.output, updates.output, x)
        do.rms_norm(middle, layer.mlp_norm, model.eps, normed)
        gate_up, low = outputs(len(x), layer.gate_up, updates.gate_up)
        activated = products.project_swiglu(normed, layer.gate_up, updates.gate_up, gate_up, low)
        return project(products, activated, layer.down, updates.down, middle)


def project(
    products: Products,
    x: torch.Tensor,  # (N, in)
    projection: Projection,
    update: Update | None,
    residual: torch.Tensor | None = None,  # (N, out)
) -> torch.Tensor:  # (N, out)
    """Like `Products.project`, into a new tensor."""
    output, low = outputs(len(x), projection, update)
    products.project(x, projection, update, output, low, residual)
    return output
