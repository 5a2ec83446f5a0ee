"""Hidden states -> log-probabilities of targets, losses, and the hidden states' gradient at once.

The logits of a chunk of rows exist only once, block of vocabulary by block, as exponentials; the
gradient is formed from them at once. No (T, V) matrix is ever held, and rows whose gradient is
zero cost no backward pass.

Axes: T packed tokens, N rows of a chunk, K targets a position, H hidden size, V vocabulary,
R rank of the adapter, W width of a block of the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.lora import Adapter
from tinkersmith.engine.losses import has_gradient, token_losses
from tinkersmith.engine.messages import LossConfig

CPU_BLOCK = (512, 2048)  # N and W: the best of six by measurement


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
    head = _Head(weights, hidden.device)
    for rows, with_gradient in _groups(has_gradient(loss_fn, inputs), backward, only_graded):
        for chunk in rows.split(head.rows):
            part_inputs = {name: values[chunk] for name, values in inputs.items()}
            leaf = head.logprobs(hidden[chunk], part_inputs["target_tokens"], keep=with_gradient)
            logprobs[chunk] = leaf
            with torch.enable_grad():
                part_losses = token_losses(loss_fn, leaf.requires_grad_(), part_inputs, config)
                losses[chunk] = part_losses.detach()
                if with_gradient and grad_hidden is not None:
                    (slope,) = torch.autograd.grad(part_losses.sum(), leaf)
                    grad_hidden[chunk] = head.backward(slope).to(hidden.dtype)
    if backward and adapter is not None and weights.a is not None:
        add_gradient(adapter, f"{base.unembed.path}.lora_A", head.grad_a)
        add_gradient(adapter, f"{base.unembed.path}.lora_B", head.grad_b)
    return HeadOutput(logprobs, losses, grad_hidden)


def _groups(
    graded: torch.Tensor, backward: bool, only_graded: bool
) -> list[tuple[torch.Tensor, bool]]:
    """Which rows to compute, and whether with their gradient."""
    if not backward and not only_graded:
        return [(torch.arange(len(graded), device=graded.device), False)]
    groups = [(graded.nonzero()[:, 0], backward)]
    if not only_graded:
        groups.append(((~graded).nonzero()[:, 0], False))
    return groups


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


class _Head:
    """The output layer and its soft-max for some rows at a time, block by block of tokens.

    A block is kept as exponentials below its own largest logit; factors make probabilities of
    them once the whole row's normaliser is known.
    """

    def __init__(self, weights: _Weights, device: torch.device) -> None:
        self.weights = weights
        vocabulary, dtype = len(weights.base), weights.base.dtype
        # On a CPU a block of logits stays in the caches between the passes over it.
        self.rows, width = CPU_BLOCK if device.type == "cpu" else (2048, vocabulary)
        width = min(width, vocabulary)
        starts = list(range(0, vocabulary, width))
        self.bounds = [(start, min(start + width, vocabulary)) for start in starts]
        self.starts = torch.tensor(starts, device=device)
        # Buffers, as fresh memory for every block would cost more than the work in it.
        self.block = torch.empty(self.rows * width, dtype=dtype, device=device)
        self.exponentials = torch.empty(self.rows * width, device=device)
        self.kept = torch.empty(0, dtype=dtype, device=device)
        self.grad_a = _zeros_like(weights.a)
        self.grad_b = _zeros_like(weights.b)

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:  # (N, H), (N, K) -> (N, K)
        self.hidden, self.targets = hidden, targets
        weights, count = self.weights, len(hidden)
        if keep and not len(self.kept):
            self.kept = self.block.new_empty(len(self.bounds), len(self.block))
        self.low = hidden if weights.a is None else hidden @ weights.a.T  # (N, R)
        maxima = torch.empty(len(self.bounds), count, device=hidden.device)
        sums = torch.empty_like(maxima)
        picked = torch.empty(targets.numel(), device=hidden.device)
        order = targets.flatten().argsort()  # of (row, target) pairs
        ordered = targets.flatten()[order]
        splits = [*torch.searchsorted(ordered, self.starts).tolist(), len(ordered)]
        for index, (start, end) in enumerate(self.bounds):
            block = _view(self.block, count, end - start)
            self._logits(start, end, out=block)
            first, last = splits[index : index + 2]
            if first < last:
                pairs = order[first:last]
                rows = pairs.div(targets.shape[1], rounding_mode="floor")
                picked[pairs] = block[rows, ordered[first:last] - start].float()
            largest = block.amax(-1, keepdim=True).float()  # (N, 1)
            exponentials = _view(self.exponentials, count, end - start).copy_(block)
            exponentials.sub_(largest).exp_()
            maxima[index] = largest[:, 0]
            torch.sum(exponentials, -1, out=sums[index])
            if keep:
                _view(self.kept[index], count, end - start).copy_(exponentials)
        normaliser = (maxima + sums.log()).logsumexp(0)  # (N,)
        self.factors = (maxima - normaliser).exp_()  # (blocks, N)
        return picked.view(targets.shape) - normaliser[:, None]

    def _logits(self, start: int, end: int, out: torch.Tensor) -> None:
        """Of tokens start to end: (N, end - start)."""
        weights = self.weights
        torch.mm(self.hidden, weights.base[start:end].T, out=out)
        if weights.bias is not None:
            out.add_(weights.bias[start:end])
        if weights.b is not None:
            out.addmm_(self.low, weights.b[start:end].T, alpha=weights.scaling)

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """d loss / d log-probability (N, K) of the last rows -> d loss / d hidden (N, H), fp32.

        d loss / d logits = sum_k slope_k (onehot(target_k) - softmax).
        """
        weights, hidden, low = self.weights, self.hidden, self.low
        total = slope.sum(-1)  # (N,)
        grad = _weighted_rows(weights.base, self.targets, slope)  # (N, H)
        grad_low = None if weights.b is None else _weighted_rows(weights.b, self.targets, slope)
        for (start, end), kept, factor in zip(self.bounds, self.kept, self.factors, strict=True):
            kept = _view(kept, len(hidden), end - start)
            scale = (factor * total)[:, None]  # (N, 1)
            grad.sub_((kept @ weights.base[start:end]).float().mul_(scale))
            if weights.b is not None and grad_low is not None:
                grad_low.sub_((kept @ weights.b[start:end]).float().mul_(scale))
                scaled = (low * (-weights.scaling * scale)).to(low.dtype)  # (N, R)
                self.grad_b[start:end] += kept.T @ scaled
        if weights.a is None or grad_low is None:
            return grad
        grad_low = (grad_low * weights.scaling).to(low.dtype)
        self.grad_a += grad_low.T @ hidden
        for targets, factor in zip(self.targets.T, slope.T, strict=True):
            self.grad_b.index_add_(0, targets, low * (weights.scaling * factor)[:, None])
        return grad.add_(grad_low @ weights.a)


def _view(buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The beginning of a flat buffer as a (rows, columns) matrix in one piece."""
    return buffer[: rows * columns].view(rows, columns)


def _zeros_like(matrix: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros(0) if matrix is None else torch.zeros_like(matrix, dtype=torch.float32)


def _weighted_rows(
    matrix: torch.Tensor, indices: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    """sum_k factors_k matrix[indices_k]: (V, D), (N, K), (N, K) -> (N, D) in fp32."""
    total = matrix.new_zeros(len(indices), matrix.shape[1], dtype=torch.float32)
    for column, factor in zip(indices.T, factors.T, strict=True):
        total.addcmul_(matrix[column].float(), factor[:, None])
    return total
