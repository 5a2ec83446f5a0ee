"""The output layer in bf16: logits and the gradient of the hidden states in one pass.

Its twin in torch is kernels/head.py.

Axes: N rows, K targets per position, H hidden size, V vocabulary, W tokens of a block of the
vocabulary, Y such blocks, R rank of the adapter.
"""

import torch

from tinkersmith.engine.kernels.head import weighted_rows
from tinkersmith.engine.kernels.native.interface import INTERFACE
from tinkersmith.engine.kernels.native.kernels import NativeProducts
from tinkersmith.engine.kernels.native.operands import address
from tinkersmith.engine.model.kernels import HeadWeights

_ROWS = 4096
_LORA_ROWS = 512  # where exponentials are saved, for the gradient of the output layer's own LoRA
_LARGEST = 1e30  # a sum of exponentials up to which products with it are finite
_MAXIMA_BLOCK = 4096  # tokens
_MOST_TOKENS = 1024  # of a block
_BLOCK_NUMBERS = 2**19  # weights of a block: a core's cache holds them
_PANEL = INTERFACE.constants["PANEL"]


class NativeHead:
    """`Head` in bf16, on processors that have instructions for its products."""

    def __init__(self, weights: HeadWeights, products: NativeProducts) -> None:
        self.weights, self.products = weights, products
        self.rows = _ROWS if weights.a is None else _LORA_ROWS
        self.grad_a, self.grad_b = (
            torch.zeros(0) if matrix is None else torch.zeros(matrix.shape)
            for matrix in (weights.a, weights.b)
        )

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:  # (N, H), (N, K) -> (N, K)
        weights = self.weights
        self.hidden, self.targets = hidden.contiguous(), targets
        self.low = None if weights.a is None else hidden @ weights.a.T  # (N, R)
        picked = self._logits_of(targets)  # (N, K)
        # A trained model's targets are near the largest logit, and with this shift exp(0) is in the
        # sum: it cannot be 0.
        sums = self._pass(shift := picked.amax(-1), keep)
        if not bool((sums < _LARGEST).all()):
            sums = self._pass(shift := self._maxima(), keep)
        self.sums = sums[:, None]
        return picked - shift[:, None] - self.sums.log()

    def _pass(self, shift: torch.Tensor, keep: bool) -> torch.Tensor:  # (N,) -> (N,)
        """The sums of e = exp(logits - shift).

        With `keep`, also e weight (N, H) as `total`, e b (N, R) as `low_total`, and, if the output
        layer has a LoRA, e itself (Y, N, W) as `powers`.
        """
        weights, (count, width) = self.weights, self.hidden.shape
        vocabulary, rank = len(weights.base), 0 if weights.b is None else weights.b.shape[1]
        panels = _BLOCK_NUMBERS // width // _PANEL
        block = min(_MOST_TOKENS, max(_PANEL, panels * _PANEL))  # W
        sums = torch.empty(count)
        totals = powers = None
        if keep:
            padded_width, padded_rank = (-(-size // _PANEL) * _PANEL for size in (width, rank))
            totals = torch.empty(count, padded_width + padded_rank)
            self.total = totals[:, :width]
            self.low_total = totals[:, padded_width : padded_width + rank]
            if weights.b is not None:
                blocks = -(-vocabulary // block)  # Y
                powers = self.powers = self.hidden.new_empty(blocks, count, block)
        self.products.library.functions.tinkersmith_head(
            *(count, vocabulary, width, address(self.hidden), address(weights.base)),
            *(address(self.low), rank, address(weights.b), address(weights.bias)),
            *(address(shift), block, address(sums), address(totals), address(powers)),
        )
        return sums

    def _logits_of(self, targets: torch.Tensor) -> torch.Tensor:  # (N, K) -> (N, K) in fp32
        weights = self.weights
        columns: list[torch.Tensor] = []
        for target in targets.T:
            logits = (self.hidden.float() * weights.base[target]).sum(-1)  # (N,)
            if self.low is not None and weights.b is not None:
                logits += (self.low.float() * weights.b[target]).sum(-1)
            if weights.bias is not None:
                logits += weights.bias[target]
            columns.append(logits)
        return torch.stack(columns, -1)

    def _maxima(self) -> torch.Tensor:  # (N,)
        """The largest logit of each row, for rows whose targets are far below it."""
        weights = self.weights
        largest = torch.full((len(self.hidden),), -torch.inf)
        for start in range(0, len(weights.base), _MAXIMA_BLOCK):
            block = slice(start, start + _MAXIMA_BLOCK)
            logits = (self.hidden @ weights.base[block].T).float()  # (N, W)
            if self.low is not None and weights.b is not None:
                logits += self.low @ weights.b[block].T
            if weights.bias is not None:
                logits += weights.bias[block]
            largest = largest.maximum(logits.amax(-1))
        return largest

    def backward(self, slope: torch.Tensor) -> torch.Tensor:  # (N, K) -> (N, H)
        weights, low = self.weights, self.low
        scale = slope.sum(-1, keepdim=True) / self.sums  # (N, 1)
        grad = weighted_rows(weights.base, self.targets, slope)  # (N, H)
        grad.addcmul_(self.total, scale, value=-1)
        if weights.a is None or weights.b is None or low is None:
            return grad
        grad_low = weighted_rows(weights.b, self.targets, slope)  # (N, R)
        grad_low = grad_low.addcmul_(self.low_total, scale, value=-1).to(low.dtype)
        self.grad_a += grad_low.T @ self.hidden
        scaled = (low * (weights.scaling * scale)).to(low.dtype)
        self.products.add_blocks(scaled, self.powers, -1.0, self.grad_b)
        for target, factor in zip(self.targets.T, slope.T, strict=True):
            self.grad_b.index_add_(0, target, low * (weights.scaling * factor)[:, None])
        return grad.add_(grad_low @ weights.a)
