"""A step of decoding by torch: one more token for each active row, layer by layer.

Axes: B active rows, N rows, H hidden size.
"""

from collections.abc import Sequence
from functools import partial

import torch

from tinkersmith.engine.kernels.padded_cache import PaddedCache
from tinkersmith.engine.model.dense import (
    DenseModel,
    LayerRowUpdates,
    RotaryTables,
)
from tinkersmith.engine.model.kernels import Decoding, Elementwise, Products
from tinkersmith.engine.model.projection import Projection, RowUpdates, Update, outputs


def torch_decoding(elementwise: Elementwise, products: Products) -> Decoding:
    """Decode layer by layer, on every device."""
    layers = partial(TorchLayers, elementwise=elementwise, products=products)
    return Decoding(layers, elementwise, products)


class TorchLayers:
    """A step of decoding, layer by layer, over a padded KV cache."""

    def __init__(
        self,
        model: DenseModel,
        slots: int,
        *,
        elementwise: Elementwise,
        products: Products,
    ) -> None:
        self.model = model
        self.elementwise, self.products = elementwise, products
        self.cache = PaddedCache(model, slots)
        self.lengths = self.cache.lengths
        self.put, self.move = self.cache.put, self.cache.move
        self.resize, self.held = self.cache.resize, self.cache.held

    def step(
        self,
        x: torch.Tensor,
        slots: Sequence[int],
        rotary: RotaryTables,
        updates: Sequence[LayerRowUpdates],
    ) -> torch.Tensor:
        self.cache.begin(rotary)
        # The cache takes rows in the order of their slots.
        order = None
        if any(slot != row for row, slot in enumerate(slots)):
            order = torch.tensor(slots, device=x.device)
        for index, layer in enumerate(updates):
            x = self._layer(index, x, layer, order)
        return x

    def _layer(
        self,
        index: int,
        x: torch.Tensor,  # (B, H)
        updates: LayerRowUpdates,
        order: torch.Tensor | None,  # (B,), the slot of each row
    ) -> torch.Tensor:  # (B, H)
        model, layer = self.model, self.model.layers[index]
        do, products, normed = self.elementwise, self.products, torch.empty_like(x)
        do.rms_norm(x, layer.attention_norm, model.eps, normed)
        qkv = project(products, normed, layer.qkv, updates.qkv)
        if order is None:
            heads = self.cache.attend(index, qkv)
        else:
            by_slot = torch.empty_like(qkv).index_copy_(0, order, qkv)
            heads = self.cache.attend(index, by_slot)[order]
        middle = project(products, heads, layer.output, updates.output, x)
        do.rms_norm(middle, layer.mlp_norm, model.eps, normed)
        gate_up, low = outputs(len(x), layer.gate_up, updates.gate_up)
        activated = products.project_swiglu(normed, layer.gate_up, updates.gate_up, gate_up, low)
        return project(products, activated, layer.down, updates.down, middle)


def project(
    products: Products,
    x: torch.Tensor,  # (N, in)
    projection: Projection,
    update: Update | RowUpdates | None,
    residual: torch.Tensor | None = None,  # (N, out)
) -> torch.Tensor:  # (N, out)
    """Like `Products.project`, into a new tensor."""
    output, low = outputs(len(x), projection, update)
    products.project(x, projection, update, output, low, residual)
    return output
