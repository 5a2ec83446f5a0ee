"""Hidden states -> log-probabilities of targets, losses, and the hidden states' gradient, in one go.

The logits of a chunk of rows exist only once, block of vocabulary by block, as exponentials; the
gradient is formed from them at once. No (T, V) matrix is ever held, and rows whose gradient is
zero cost no backward pass.

Axes: T packed tokens, N rows of a chunk, K targets a position, H hidden size, V vocabulary,
R rank of the adapter, W width of a block of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.lora import Adapter
from tinkersmith.engine.losses import has_gradient, token_losses
from tinkersmith.engine.messages import LossConfig


@dataclass(frozen=True, slots=True)
class HeadOutput:
    logprobs: torch.Tensor  # (T, K) fp32
    losses: torch.Tensor  # (T, K) fp32
    grad_hidden: torch.Tensor | None  # (T, H) in the base model's dtype


@dataclass(frozen=True, slots=True)
class _Weights:
    base: torch.Tensor  # (V, H)
    bias: torch.Tensor | None  # (V,)
    a: torch.Tensor | None  # (R, H)
    b: torch.Tensor | None  # (V, R)
    scaling: float


@torch.no_grad()
def head_pass(
    base: BaseModel,
    adapter: Adapter | None,
    hidden: torch.Tensor,  # (T, H)
    inputs: Mapping[str, torch.Tensor],  # target_tokens and what the loss needs, each (T, K)
    loss_fn: str,
    config: LossConfig,
    *,
    backward: bool,
    only_graded: bool = False,
) -> HeadOutput:
    """Log-probabilities and losses; if `backward`, gradients too.

    The output layer's LoRA gradients are added to the adapter's. With `only_graded`, rows without
    a gradient are not computed: their log-probabilities and losses are 0.
    """
    weights = _weights(base, adapter)
    targets = inputs["target_tokens"]
    logprobs = torch.zeros(targets.shape, device=hidden.device)
    losses = torch.zeros_like(logprobs)
    grad_hidden = torch.zeros_like(hidden) if backward else None
    grad_a = torch.zeros_like(weights.a, dtype=torch.float32) if weights.a is not None else None
    grad_b = torch.zeros_like(weights.b, dtype=torch.float32) if weights.b is not None else None
    graded = has_gradient(loss_fn, inputs)  # (T,)
    if backward or only_graded:
        groups = [(graded.nonzero()[:, 0], backward)]
        if not only_graded:
            groups.append(((~graded).nonzero()[:, 0], False))
    else:
        groups = [(torch.arange(len(hidden), device=hidden.device), False)]
    for rows, with_gradient in groups:
        for chunk in rows.split(_chunk_rows(hidden.device)):
            part = hidden[chunk]  # (N, H)
            part_inputs = {name: values[chunk] for name, values in inputs.items()}
            logits = _Logits(weights, part, part_inputs["target_tokens"], keep=with_gradient)
            logprobs[chunk] = logits.target_logprobs
            with torch.enable_grad():
                leaf = logits.target_logprobs.requires_grad_()
                part_losses = token_losses(loss_fn, leaf, part_inputs, config)
                losses[chunk] = part_losses.detach()
                if with_gradient and grad_hidden is not None:
                    (slope,) = torch.autograd.grad(part_losses.sum(), leaf)
                    grad_hidden[chunk] = logits.backward(slope, grad_a, grad_b).to(hidden.dtype)
    if backward and adapter is not None and grad_a is not None and grad_b is not None:
        add_gradient(adapter, f"{base.unembed.path}.lora_A", grad_a)
        add_gradient(adapter, f"{base.unembed.path}.lora_B", grad_b)
    return HeadOutput(logprobs, losses, grad_hidden)


def add_gradient(adapter: Adapter, name: str, gradient: torch.Tensor) -> None:
    """Add to a weight's gradient, in fp32."""
    weight = adapter.weights[name]
    if weight.grad is None:
        weight.grad = gradient.float()
    else:
        weight.grad += gradient


def _weights(base: BaseModel, adapter: Adapter | None) -> _Weights:
    layer = base.unembed
    weight = layer.weight.detach()
    bias = None if layer.base.bias is None else layer.base.bias.detach()
    if adapter is None or f"{layer.path}.lora_A" not in adapter.weights:
        return _Weights(weight, bias, None, None, 0.0)
    a, b = (adapter.weights[f"{layer.path}.lora_{side}"].detach() for side in "AB")
    return _Weights(weight, bias, a.to(weight.dtype), b.to(weight.dtype), adapter.scaling)


def _chunk_rows(device: torch.device) -> int:
    return 256 if device.type == "cpu" else 2048


def _block_width(device: torch.device) -> int:
    # On a CPU a block of logits stays in the caches between the passes over it.
    return 2048 if device.type == "cpu" else 2**31


class _Logits:
    """The logits of N rows, kept (if `keep`) as exponentials below each block's own maximum."""

    def __init__(
        self, weights: _Weights, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> None:
        self.weights, self.hidden, self.targets = weights, hidden, targets
        vocabulary, count = len(weights.base), len(hidden)
        width = min(_block_width(hidden.device), vocabulary)
        self.bounds = [
            (start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)
        ]
        # (N, R)
        self.low = None if weights.a is None else hidden @ weights.a.T
        # Each block's in one piece of memory, hence not one (N, V) matrix.
        self.kept: list[torch.Tensor] = []
        maxima = hidden.new_empty(len(self.bounds), count, dtype=torch.float32)
        sums = torch.empty_like(maxima)
        picked = torch.empty(targets.numel(), device=hidden.device)
        order = targets.flatten().argsort()  # of (row, target) pairs
        ordered = targets.flatten()[order]
        starts = torch.tensor([start for start, _ in self.bounds], device=hidden.device)
        splits = [*torch.searchsorted(ordered, starts).tolist(), len(ordered)]
        logits = hidden.new_empty(count, width)
        exponentials = torch.empty(count, width, device=hidden.device)
        for index, (start, end) in enumerate(self.bounds):
            block = logits[:, : end - start]
            self._block(start, end, out=block)
            if splits[index] < splits[index + 1]:
                pairs = order[splits[index] : splits[index + 1]]
                rows = pairs.div(targets.shape[1], rounding_mode="floor")
                columns = ordered[splits[index] : splits[index + 1]] - start
                picked[pairs] = block[rows, columns].float()
            largest = block.amax(-1, keepdim=True).float()  # (N, 1)
            exponential = exponentials[:, : end - start]
            torch.sub(block, largest, out=exponential).exp_()
            maxima[index] = largest[:, 0]
            torch.sum(exponential, -1, out=sums[index])
            if keep:
                self.kept.append(exponential.to(hidden.dtype, copy=True))
        normaliser = (maxima + sums.log()).logsumexp(0)  # (N,)
        self.target_logprobs = picked.view(targets.shape) - normaliser[:, None]  # (N, K)
        # What turns a kept exponential into a probability: (blocks, N)
        self.factors = (maxima - normaliser).exp_()

    def _block(self, start: int, end: int, out: torch.Tensor) -> None:
        """Logits of tokens start to end: (N, end - start)."""
        weights = self.weights
        torch.mm(self.hidden, weights.base[start:end].T, out=out)
        if weights.bias is not None:
            out.add_(weights.bias[start:end])
        if weights.b is not None and self.low is not None:
            out.addmm_(self.low, weights.b[start:end].T, alpha=weights.scaling)

    def backward(
        self, slope: torch.Tensor, grad_a: torch.Tensor | None, grad_b: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient of hidden (N, H), fp32, for d loss / d target log-probability (N, K).

        d loss / d logits = sum_k slope_k (onehot(target_k) - softmax).
        """
        weights, dtype = self.weights, self.hidden.dtype
        total = slope.sum(-1)  # (N,)
        grad = _weighted_rows(weights.base, self.targets, slope)  # (N, H)
        grad_low = None
        if weights.b is not None:
            grad_low = _weighted_rows(weights.b, self.targets, slope)  # (N, R)
        for (start, end), kept, factor in zip(self.bounds, self.kept, self.factors, strict=True):
            scale = (factor * total)[:, None]  # (N, 1)
            grad.sub_((kept @ weights.base[start:end]).float().mul_(scale))
            if weights.b is not None and grad_low is not None and self.low is not None:
                grad_low.sub_((kept @ weights.b[start:end]).float().mul_(scale))
                if grad_b is not None:
                    scaled = (self.low * (-weights.scaling * scale)).to(dtype)
                    grad_b[start:end] += kept.T @ scaled
        if grad_low is None or weights.a is None or self.low is None:
            return grad
        grad_low *= weights.scaling
        if grad_a is not None:
            grad_a += grad_low.to(dtype).T @ self.hidden
        if grad_b is not None:
            pairs = (self.low[:, None] * (slope * weights.scaling)[..., None]).flatten(0, 1)
            grad_b.index_add_(0, self.targets.flatten(), pairs.float())
        return grad.add_(grad_low.to(dtype) @ weights.a)


def _weighted_rows(
    matrix: torch.Tensor, indices: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    """sum_k factors_k matrix[indices_k]: (V, D), (N, K), (N, K) -> (N, D) in fp32."""
    total = matrix.new_zeros(len(indices), matrix.shape[1], dtype=torch.float32)
    for column, factor in zip(indices.T, factors.T, strict=True):
        total.addcmul_(matrix[column].float(), factor[:, None])
    return total
