"""Device, precision and processor -> the implementations that a model's dense path uses."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from tinkersmith.engine.kernels import varlen_attention
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.model.kernels import PackedAttention


def _attention(
    heads: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[Sequence[int]], PackedAttention]:
    if varlen_attention.works(heads, key_heads, size, dtype, device):
        return partial(varlen_attention.of_documents, device=device)
    share = heads // key_heads
    return partial(TileAttention, queries_per_key=share, dtype=dtype, device=device)
