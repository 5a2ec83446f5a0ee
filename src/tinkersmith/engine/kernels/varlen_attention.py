"""Causal attention over packed documents by torch's variable-length FlashAttention on a GPU.

`works` compares it with tile_attention.py when a model is loaded. Where it does not run or does not
agree, tiles are used.

Axes: T packed tokens, Q query heads, G key/value heads, J = Q / G queries per key, D head size.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from tinkersmith.engine.kernels.tile_attention import TileAttention, by_group, by_token
from tinkersmith.engine.log import log


class VarlenAttention:
    """Attention of documents packed end to end (see `PackedAttention`)."""

    def __init__(
        self,
        ends: torch.Tensor,  # (documents + 1,) in int32, from 0 to T; some may have no tokens
        tokens: int,  # T
        longest: int,  # no document has more tokens
    ) -> None:
        self.ends, self.tokens, self.longest = ends, tokens, longest

    def numbers_kept(self, heads: int, key_heads: int, size: int) -> int:
        """Queries, keys, values and the output, once more."""
        return 2 * (heads + key_heads) * size * self.tokens

    def attend(self, query, key, value, *, keep: bool) -> tuple[torch.Tensor, Any]:
        groups, count, size = key.shape
        queries = query.view(groups, count, -1, size).transpose(0, 1).reshape(count, -1, size)
        with torch.set_grad_enabled(keep):
            q, k, v = (
                heads.detach().contiguous().requires_grad_(keep)
                for heads in (queries, key.transpose(0, 1), value.transpose(0, 1))
            )
            output = varlen_attn(
                q,
                k,
                v,
                cu_seq_q=self.ends,
                cu_seq_k=self.ends,
                max_q=self.longest,
                max_k=self.longest,
                scale=1.0,
                window_size=(-1, 0),
                **_for_grouped_heads(varlen_attn),
            )
        assert isinstance(output, torch.Tensor)
        return output.detach().flatten(1), (q, k, v, output) if keep else None

    def backward(self, grad, query, key, value, output, kept: Any):
        if kept is None:  # the forward pass runs again
            _, kept = self.attend(query, key, value, keep=True)
        *inputs, output = kept
        groups, _, size = key.shape
        grads = torch.autograd.grad(output, inputs, grad.view_as(output))
        grad_query = by_group(grads[0].flatten(1), groups, size)
        return grad_query, grads[1].transpose(0, 1), grads[2].transpose(0, 1)


@cache
def _for_grouped_heads(function: Callable[..., Any]) -> dict[str, Any]:
    """What lets a function have fewer key heads than query heads: torch 2.11's asks for nothing."""
    asks = "enable_gqa" in inspect.signature(function).parameters
    return {"enable_gqa": True} if asks else {}


def of_documents(lengths: Sequence[int], device: torch.device) -> VarlenAttention:
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return VarlenAttention(ends, sum(lengths), max(lengths))


def works(heads: int, groups: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has such a kernel, and it agrees with tiles, forward and backward."""
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
    """The worst relative difference to tiles, on random documents."""
    lengths = [70, 1, 150, 35]
    generator = torch.Generator().manual_seed(0)

    def random(per_token: int) -> torch.Tensor:
        heads = torch.randn(groups, sum(lengths) * per_token, size, generator=generator)
        return heads.to(device, dtype)

    queries_per_key = heads // groups
    query, key, value = random(queries_per_key) * size**-0.5, random(1), random(1)
    grad = by_token(random(queries_per_key), sum(lengths))

    def pass_of(attention: VarlenAttention | TileAttention) -> list[torch.Tensor]:
        output, kept = attention.attend(query, key, value, keep=True)
        return [output, *attention.backward(grad, query, key, value, output, kept)]

    ours = pass_of(of_documents(lengths, device))
    expected = pass_of(TileAttention(lengths, queries_per_key, dtype, device))
    return max(
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(ours, expected, strict=True)
    )
