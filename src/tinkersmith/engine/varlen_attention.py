"""Causal attention over packed documents by a GPU's variable-length FlashAttention, torch's own.

Written without a GPU at hand: `works` compares it with tile_attention.py when a model is loaded,
and where it does not agree, or does not run, tiles are taken.

Axes: T packed tokens, Q query heads, G key/value heads, R = Q / G queries a key, D head size.
"""

import logging
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn.attention.varlen import varlen_attn

from tinkersmith.engine.tile_attention import attend, attend_backward, tiles

log = logging.getLogger("tinkersmith.engine")


class VarlenAttention:
    """Attention of documents packed end to end; shapes are those of tile_attention.py."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        ends = [0, *accumulate(lengths)]
        self.ends = torch.tensor(ends, dtype=torch.int32, device=device)
        self.longest = max(lengths)

    def attend(
        self,
        query: torch.Tensor,  # (G, T R, D), scaled
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
        kept: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:  # (G, T R, D)
        """What the backward pass needs is put into `kept`."""
        groups, count, size = key.shape
        by_token = query.view(groups, count, -1, size).transpose(0, 1).reshape(count, -1, size)
        with torch.set_grad_enabled(kept is not None):
            q, k, v = (
                part.detach().contiguous().requires_grad_(kept is not None)
                for part in (by_token, key.transpose(0, 1), value.transpose(0, 1))
            )
            output = varlen_attn(
                *(q, k, v),
                cu_seq_q=self.ends,
                cu_seq_k=self.ends,
                max_q=self.longest,
                max_k=self.longest,
                scale=1.0,
                window_size=(-1, 0),
                enable_gqa=True,
            )
        assert isinstance(output, torch.Tensor)
        if kept is not None:
            kept += [q, k, v, output]
        return _by_group(output.detach(), groups)

    def backward(
        self,
        grad: torch.Tensor,  # (G, T R, D)
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kept: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of query, key and value; without what `attend` kept it runs again."""
        if kept is None:
            self.attend(query, key, value, kept := [])
        *inputs, output = kept
        groups = len(key)
        size = output.shape[-1]
        wanted = grad.view(groups, len(output), -1, size).transpose(0, 1).reshape(output.shape)
        grads = torch.autograd.grad(output, inputs, wanted)
        return _by_group(grads[0], groups), grads[1].transpose(0, 1), grads[2].transpose(0, 1)


def _by_group(part: torch.Tensor, groups: int) -> torch.Tensor:  # (T, Q, D) -> (G, T R, D)
    count, _, size = part.shape
    return part.view(count, groups, -1, size).transpose(0, 1).reshape(groups, -1, size)


def works(heads: int, groups: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has such a kernel, and it gives what tiles give, forward and back."""
    if device.type != "cuda":
        return False
    try:
        worst = _difference(heads, groups, size, dtype, device)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.info("no variable-length FlashAttention here: %s", reason[0])
        return False
    if not worst < 0.03:
        log.warning("variable-length FlashAttention is off by %.1e: it is not used", worst)
    return worst < 0.03


def _difference(
    heads: int, groups: int, size: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The worst relative difference to tiles, of random documents."""
    lengths = [70, 1, 150, 35]
    generator = torch.Generator().manual_seed(0)

    def random(share: int) -> torch.Tensor:
        part = torch.randn(groups, sum(lengths) * share, size, generator=generator)
        return part.to(device, dtype)

    share = heads // groups
    query, key, value, grad = random(share) * size**-0.5, random(1), random(1), random(share)
    varlen, grid = VarlenAttention(lengths, device), tiles(lengths, share, dtype, device)
    kept: list[torch.Tensor] = []
    ours = [varlen.attend(query, key, value, kept)]
    ours += varlen.backward(grad, query, key, value, kept)
    expected = [attend(query, key, value, grid)]
    expected += attend_backward(grad, query, key, value, grid)
    return max(
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(ours, expected, strict=True)
    )
