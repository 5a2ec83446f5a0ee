"""The output layer in bf16, its logits and its hidden states' gradient in one pass (see head.py).

Axes: N rows, K targets a position, H hidden size, V vocabulary, R rank of the adapter.
"""

import torch

from tinkersmith.engine.kernels.head import weighted_rows
from tinkersmith.engine.kernels.native.kernels import NativeProducts, address
from tinkersmith.engine.model.kernels import HeadWeights

_ROWS = 4096
_KEPT_ROWS = 512  # where exponentials are kept, for the gradient of the layer's own LoRA
_LARGEST = 1e30  # of a sum of exponentials: products with it are finite
_BLOCK = 4096
_BLOCK_NUMBERS = 2**19  # of the weights that are used at a time: a core's cache holds them
_PANEL = 64  # tokens, or numbers, that the products take at a time


class NativeHead:
    def __init__(self, weights: HeadWeights, products: NativeProducts) -> None:
        self.weights, self.products = weights, products
        self.rows = _ROWS if weights.a is None else _KEPT_ROWS
        self.grad_a, self.grad_b = (
            torch.zeros(0) if part is None else torch.zeros(part.shape)
            for part in (weights.a, weights.b)
        )

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool) -> torch.Tensor:
        weights = self.weights
        self.hidden, self.targets = hidden.contiguous(), targets
        self.low = None if weights.a is None else hidden @ weights.a.T  # (N, R)
        picked = self._logits_of(targets)  # (N, K)
        # Near the largest logit if the model has learnt anything, and exp(0) is in the sum.
        sums = self._pass(shift := picked.amax(-1), keep)
        if not bool((sums < _LARGEST).all()):
            sums = self._pass(shift := self._maxima(), keep)
        self.sums = sums[:, None]
        return picked - shift[:, None] - self.sums.log()

    def _pass(self, shift: torch.Tensor, keep: bool) -> torch.Tensor:
        """The sums (N,) of e = exp(logits - shift); keeps e weight (N, H) and e b (N, R)."""
        weights, (count, width) = self.weights, self.hidden.shape
        vocabulary, rank = len(weights.base), 0 if weights.b is None else weights.b.shape[1]
        block = min(1024, max(_PANEL, _BLOCK_NUMBERS // width // _PANEL * _PANEL))  # tokens
        sums = torch.empty(count)
        room = kept = None
        if keep:
            wide, low_wide = (-(-size // _PANEL) * _PANEL for size in (width, rank))
            room = torch.empty(count, wide + low_wide)
            self.total, self.low_total = room[:, :width], room[:, wide : wide + rank]
            if weights.b is not None:
                blocks = -(-vocabulary // block)
                kept = self.kept = self.hidden.new_empty(blocks, count, block)
        self.products.library.functions.tinkersmith_head(
            *(count, vocabulary, width, address(self.hidden), address(weights.base)),
            *(address(self.low), rank, address(weights.b), address(weights.bias)),
            *(address(shift), block, address(sums), address(room), address(kept)),
        )
        return sums

    def _logits_of(self, targets: torch.Tensor) -> torch.Tensor:
        """(N, K) tokens -> (N, K) in fp32."""
        weights = self.weights
        columns = []
        for target in targets.T:
            logits = (self.hidden.float() * weights.base[target]).sum(-1)
            if self.low is not None and weights.b is not None:
                logits += (self.low.float() * weights.b[target]).sum(-1)
            if weights.bias is not None:
                logits += weights.bias[target]
            columns.append(logits)
        return torch.stack(columns, -1)

    def _maxima(self) -> torch.Tensor:
        """The largest logit of each row, (N,): needed where the targets' are far below it."""
        weights = self.weights
        largest = torch.full((len(self.hidden),), -torch.inf)
        for start in range(0, len(weights.base), _BLOCK):
            block = slice(start, start + _BLOCK)
            logits = (self.hidden @ weights.base[block].T).float()
            if self.low is not None and weights.b is not None:
                logits += self.low @ weights.b[block].T
            if weights.bias is not None:
                logits += weights.bias[block]
            largest = largest.maximum(logits.amax(-1))
        return largest

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        weights, low = self.weights, self.low
        scale = slope.sum(-1, keepdim=True) / self.sums  # (N, 1)
        grad = weighted_rows(weights.base, self.targets, slope)
        grad.addcmul_(self.total, scale, value=-1)
        if weights.a is None or weights.b is None or low is None:
            return grad
        grad_low = weighted_rows(weights.b, self.targets, slope)  # (N, R)
        grad_low = grad_low.addcmul_(self.low_total, scale, value=-1).to(low.dtype)
        self.grad_a += grad_low.T @ self.hidden
        scaled = (low * (weights.scaling * scale)).to(low.dtype)
        self.products.add_blocks(scaled, self.kept, -1.0, self.grad_b)
        for target, factor in zip(self.targets.T, slope.T, strict=True):
            self.grad_b.index_add_(0, target, low * (weights.scaling * factor)[:, None])
        return grad.add_(grad_low @ weights.a)
