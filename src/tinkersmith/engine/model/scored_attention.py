"""Causal attention with sliding windows, soft-capping and sinks, one block of queries at a time.

No matrix of all queries by all keys is ever held. Windows alone are for torch's fused attention.
Soft-capping and sinks, which it does not have, are written out, and the backward pass computes the
probabilities again.

Axes: B rows, Q query heads, G key/value heads, J = Q / G queries per key, T queries, S keys of
which the last T belong to the queries, L queries of a block, D head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

_CPU_BLOCK, _GPU_BLOCK = 128, 512  # queries; 128 is the best of four on a CPU by measurement
_SCORES = 2**24  # of a block, at most: 64 MB


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer weighs what a token sees."""

    scale: float
    window: int | None = None  # tokens that a token sees, itself included; None: all before it
    softcap: float | None = None  # scores s become softcap tanh(s / softcap) (Gemma 2)
    sinks: torch.Tensor | None = None  # (Q,): a score of each head that takes its share of 1

    @property
    def is_fused(self) -> bool:
        """Whether torch's attention can compute it."""
        return self.softcap is None and self.sinks is None


def attend_document(
    query: torch.Tensor,  # (1, Q, T, D)
    key: torch.Tensor,  # (1, G, S, D)
    value: torch.Tensor,  # (1, G, S, D)
    scoring: Scoring,
) -> torch.Tensor:  # (1, Q, T, D)
    """Attention of the last T tokens of a document of S tokens."""
    tokens, before = query.shape[2], key.shape[2] - query.shape[2]
    if not scoring.is_fused:
        output: torch.Tensor = _WrittenOut.apply(query, key, value, scoring)  # type: ignore[assignment]
        return output
    if value.shape[-1] < query.shape[-1]:
        # Latent attention (DeepSeek): torch's fused kernels take heads of one size only, and
        # without them a matrix of all queries by all keys is held.
        padded = pad(value, (0, query.shape[-1] - value.shape[-1]))
        return attend_document(query, key, padded, scoring)[..., : value.shape[-1]]
    if before == 0 and (scoring.window is None or tokens <= scoring.window):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scoring.scale, enable_gqa=True
        )
    # Kept for the backward pass, and the same for most blocks: one for all of them.
    masks: dict[tuple[int, int], torch.Tensor] = {}
    parts: list[torch.Tensor] = []
    for block in _blocks(query, key, scoring.window):
        size = block.end - block.start, block.last - block.first
        if size not in masks:
            hidden = ~block.visible(scoring.window)
            masks[size] = query.new_zeros(size).masked_fill_(hidden, -torch.inf)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, block.start : block.end],
                key[:, :, block.first : block.last],
                value[:, :, block.first : block.last],
                attn_mask=masks[size],
                scale=scoring.scale,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2)


def attend_cached(
    query: torch.Tensor,  # (B, Q, 1, D)
    key: torch.Tensor,  # (B, G, S, D)
    value: torch.Tensor,  # (B, G, S, D)
    visible: torch.Tensor,  # (B, 1, 1, S)
    scoring: Scoring,
) -> torch.Tensor:  # (B, Q, 1, D)
    """Attention of one new token in each row."""
    if scoring.is_fused:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scoring.scale, enable_gqa=True
        )
    grouped = _grouped(query, key.shape[1])  # (B, G, J, D)
    probabilities, _ = _probabilities(grouped, key, visible, scoring)
    return (probabilities @ value).view_as(query)


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries start to end, and the keys first to last that they see."""

    start: int
    end: int
    first: int
    last: int
    device: torch.device

    def visible(self, window: int | None) -> torch.Tensor:  # (L, S)
        queries = torch.arange(self.last - (self.end - self.start), self.last, device=self.device)
        keys = torch.arange(self.first, self.last, device=self.device)
        distance = queries[:, None] - keys  # tokens between them, one more if they differ
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _blocks(query: torch.Tensor, key: torch.Tensor, window: int | None) -> Iterator[_Block]:
    heads, tokens = query.shape[1:3]
    before = key.shape[2] - tokens
    most = _CPU_BLOCK if query.device.type == "cpu" else _GPU_BLOCK
    start = 0
    while start < tokens:
        seen = before + start + most
        if window is not None:
            seen = min(seen, window + most)
        count = max(1, min(most, _SCORES // (heads * seen)))
        end = min(start + count, tokens)
        first = 0 if window is None else max(0, before + start - window + 1)
        yield _Block(start, end, first, before + end, query.device)
        start = end


class _WrittenOut(torch.autograd.Function):
    """Attention by matrix products: only its inputs and its output are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,  # (1, Q, T, D)
        key: torch.Tensor,  # (1, G, S, D)
        value: torch.Tensor,  # (1, G, S, D)
        scoring: Scoring,
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        for block in _blocks(query, key, scoring.window):
            rows, keys = slice(block.start, block.end), slice(block.first, block.last)
            grouped = _grouped(query[:, :, rows], key.shape[1])
            probabilities, _ = _probabilities(
                grouped, key[:, :, keys], block.visible(scoring.window), scoring
            )
            result = probabilities @ value[:, :, keys]  # (1, G, J L, D)
            output[:, :, rows] = result.view_as(output[:, :, rows])
        ctx.scoring = scoring
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output = ctx.saved_tensors
        scoring, groups = ctx.scoring, key.shape[1]
        grad_query = torch.empty_like(query)
        # fp32: sums over blocks
        grad_key, grad_value = (torch.zeros_like(t, dtype=torch.float32) for t in (key, value))
        for block in _blocks(query, key, scoring.window):
            rows, keys = slice(block.start, block.end), slice(block.first, block.last)
            grouped = _grouped(query[:, :, rows], groups)
            seen_key, seen_value = key[:, :, keys], value[:, :, keys]
            probabilities, slope = _probabilities(
                grouped, seen_key, block.visible(scoring.window), scoring
            )
            grad_output = _grouped(grad[:, :, rows], groups)
            grad_value[:, :, keys] += probabilities.transpose(-1, -2) @ grad_output
            # d softmax: p (dp - sum p dp), and sum p dp is the product of output and its gradient.
            # It holds with sinks, too: they have a share of 1 and the value 0.
            total = (grad_output * _grouped(output[:, :, rows], groups)).float().sum(-1, True)
            grad_scores = (grad_output @ seen_value.transpose(-1, -2)).float() - total
            grad_scores *= probabilities.float() * scoring.scale
            if slope is not None:
                grad_scores *= slope
            narrow = grad_scores.to(query.dtype)
            grad_query[:, :, rows] = (narrow @ seen_key).view_as(grad_query[:, :, rows])
            grad_key[:, :, keys] += narrow.transpose(-1, -2) @ grouped
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _grouped(heads: torch.Tensor, groups: int) -> torch.Tensor:  # (B, Q, L, D) -> (B, G, J L, D)
    return heads.reshape(len(heads), groups, -1, heads.shape[-1])


def _probabilities(
    query: torch.Tensor,  # (B, G, J L, D)
    key: torch.Tensor,  # (B, G, S, D)
    visible: torch.Tensor,  # (L, S) or (B, 1, 1, S)
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, G, J L, S) in the dtype of `query`, and what soft-capping multiplies gradients by."""
    scores = (query @ key.transpose(-1, -2)).float() * scoring.scale
    slope = None
    if scoring.softcap is not None:
        capped = (scores / scoring.softcap).tanh()
        scores, slope = capped * scoring.softcap, 1 - capped.square()
    rows, groups, _, keys = scores.shape
    tokens = visible.shape[-2]
    by_token = scores.view(rows, groups, -1, tokens, keys)  # (B, G, J, L, S)
    by_token.masked_fill_(~visible.view(-1, 1, 1, tokens, keys), -torch.inf)
    if scoring.sinks is None:
        return scores.softmax(-1).to(query.dtype), slope
    sinks = scoring.sinks.to(scores.dtype).view(1, groups, -1, 1, 1)
    highest = torch.maximum(by_token.amax(-1, keepdim=True), sinks)
    powers = (by_token - highest).exp()
    powers /= powers.sum(-1, keepdim=True) + (sinks - highest).exp()
    return powers.view_as(scores).to(query.dtype), slope
