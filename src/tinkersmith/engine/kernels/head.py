"""The output layer and its soft-max by torch, block by block of the vocabulary.

Axes: N rows of a chunk, K targets of a position, H hidden size, V vocabulary, W tokens of a block
of the vocabulary, R rank of the adapter.
"""

import torch

from tinkersmith.engine.model import dtype_cast
from tinkersmith.engine.model.kernels import ROW_STEP, Elementwise, HeadWeights, pad_rows

CPU_BLOCK = (256, 2048)  # N and W: the best of eight by measurement
_LARGEST = 1e30  # of a sum of exponentials: products with it are finite in bf16, too


class TorchHead:
    """A `Head` by torch, on every device.

    Logits are kept as exponentials above a shift, one for each row. Where they are used, the row's
    normaliser makes probabilities of them.
    """

    def __init__(
        self,
        weights: HeadWeights,
        dtype: torch.dtype,  # of the hidden states
        device: torch.device,
        elementwise: Elementwise,
    ) -> None:
        self.weights, self.elementwise = weights, elementwise
        self.vocabulary = len(weights.base)
        # On a CPU a block of logits stays in the caches between the passes over it.
        self.rows, width = CPU_BLOCK if device.type == "cpu" else (2048, self.vocabulary)
        if weights.base.dtype != dtype:
            self.rows *= 2  # the cast of the weights costs the same for any number of rows
        width = min(width, self.vocabulary)
        starts = list(range(0, self.vocabulary, width))
        self.bounds = [(start, min(start + width, self.vocabulary)) for start in starts]
        self.starts = torch.tensor(starts, device=device)
        self.buffer_rows = self.rows + -self.rows % ROW_STEP
        self.block = torch.empty(self.buffer_rows * width, dtype=dtype, device=device)
        self.exponentials = torch.empty(0, dtype=dtype, device=device)
        self.grad_a = _zeros_like(weights.a)
        self.grad_b = _zeros_like(weights.b)

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:  # (N, H), (N, K) -> (N, K)
        count = len(hidden)
        if keep and not len(self.exponentials):
            self.exponentials = self.block.new_empty(self.buffer_rows * self.vocabulary)
        # Few shapes of products occur, as oneDNN compiles a kernel for each.
        self.hidden, self.targets = pad_rows(hidden), pad_rows(targets)
        weights = self.weights
        self.low = self.hidden if weights.a is None else self.hidden @ weights.a.T  # (N, R)
        shift = self._logits(*self.bounds[0]).amax(-1, keepdim=True).float()  # (N, 1)
        picked, sums = self._soft_max(shift, keep)
        if not bool((sums[:count] < _LARGEST).all()):
            maxima = [self._logits(*bound).amax(-1, keepdim=True) for bound in self.bounds]
            shift = torch.cat(maxima, -1).amax(-1, keepdim=True).float()
            picked, sums = self._soft_max(shift, keep)
        self.sums, self.shift, self.picked = sums, shift, picked
        return (picked - shift - sums.log())[:count]

    def _soft_max(self, shift: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets' logits (N, K) and the sums of exponentials (N, 1); keeps the latter."""
        count, targets = len(self.hidden), self.targets
        exponentials = _view(self.exponentials, count, self.vocabulary) if keep else None
        sums = torch.empty(len(self.bounds), count, device=shift.device)
        picked = torch.empty(targets.numel(), device=shift.device)
        order = targets.flatten().argsort()  # of (row, target) pairs
        ordered = targets.flatten()[order]
        splits = [*torch.searchsorted(ordered, self.starts).tolist(), len(ordered)]
        for index, (start, end) in enumerate(self.bounds):
            block = self._logits(start, end)
            first, last = splits[index : index + 2]
            if first < last:
                pairs = order[first:last]
                rows = pairs.div(targets.shape[1], rounding_mode="floor")
                picked[pairs] = block[rows, ordered[first:last] - start].float()
            self.elementwise.exponentials(
                block,
                shift,
                sums[index],
                None if exponentials is None else exponentials[:, start:end],
            )
        return picked.view(targets.shape), sums.sum(0)[:, None]

    def _logits(self, start: int, end: int) -> torch.Tensor:
        """The logits of tokens start to end: (N, end - start), in a buffer."""
        weights = self.weights
        block = _view(self.block, len(self.hidden), end - start)
        dtype_cast.linear_product(self.hidden, weights.base[start:end], block)
        if weights.bias is not None:
            block.add_(weights.bias[start:end])
        if weights.b is not None:
            block.addmm_(self.low, weights.b[start:end].T)
        if weights.softcap is not None:
            block.div_(weights.softcap).tanh_().mul_(weights.softcap)
        return block

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        weights, low, count = self.weights, self.low, len(slope)
        slope = pad_rows(slope)
        exponentials = _view(self.exponentials, len(slope), self.vocabulary)
        scale = slope.sum(-1, keepdim=True) / self.sums  # (N, 1)
        if weights.softcap is not None:
            slope = slope * (1 - (self.picked / weights.softcap).square())
            self._cap_gradients(exponentials, weights.softcap)
        grad = weighted_rows(weights.base, self.targets, slope)  # (N, H)
        grad.sub_(dtype_cast.input_gradient(exponentials, weights.base).float().mul_(scale))
        if weights.a is None or weights.b is None:
            return grad[:count]
        grad_low = weighted_rows(weights.b, self.targets, slope)  # (N, R)
        grad_low = grad_low.sub_((exponentials @ weights.b).float().mul_(scale)).to(low.dtype)
        self.grad_a += grad_low.T @ self.hidden
        self.grad_b -= exponentials.T @ (low * (weights.scaling * scale)).to(low.dtype)
        for targets, factor in zip(self.targets.T, slope.T, strict=True):
            self.grad_b.index_add_(0, targets, low * (weights.scaling * factor)[:, None])
        return grad.add_(grad_low @ weights.a)[:count]

    def _cap_gradients(self, exponentials: torch.Tensor, softcap: float) -> None:  # (N, V)
        """Multiply the exponentials by the slope of soft-capping, block by block."""
        for start, end in self.bounds:
            block = exponentials[:, start:end]
            # The logits again: where an exponential is 0, any finite slope leaves it so.
            logits = block.float().log().clamp_(min=-softcap * 2).add_(self.shift)
            block.mul_((1 - (logits / softcap).square_()).clamp_(min=0))


def _view(buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The beginning of a flat buffer as a (rows, columns) matrix in one piece."""
    return buffer[: rows * columns].view(rows, columns)


def _zeros_like(matrix: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros(0) if matrix is None else torch.zeros_like(matrix, dtype=torch.float32)


def weighted_rows(
    matrix: torch.Tensor, indices: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    """sum_k factors_k matrix[indices_k]: (V, H), (N, K), (N, K) -> (N, H) in fp32; or R for H."""
    total = matrix.new_zeros(len(indices), matrix.shape[1], dtype=torch.float32)
    for column, factor in zip(indices.T, factors.T, strict=True):
        total.addcmul_(matrix[column].float(), factor[:, None])
    return total
