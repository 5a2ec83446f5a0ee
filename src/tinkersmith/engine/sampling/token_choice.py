"""Logits -> one token per row, greedy or sampled by each row's own rules, and the normalisers.

Axes: B rows, V vocabulary, W tokens of a block of the vocabulary, Y blocks of the vocabulary,
K candidates of a row.
"""

import sys
from collections.abc import Sequence
from math import log

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.model.kernels import BLOCK, ExactLogits

_LOG2_E = 1 / log(2)
_SPAN = 2**20  # numbers in fp32 at a time: they stay in a CPU's caches
_NUCLEUS = 1024  # most likely tokens that top_p looks at first
_GROWTH = 4  # times as many at least, if they are too few
COLDEST = 1e-30  # below this temperature only the most likely token is left anyway


def generator(seed: int | None, number: int) -> np.random.Generator:
    """Random numbers of one sequence: by its request's seed and its number there."""
    return np.random.default_rng(None if seed is None else [seed % 2**64, number])


class UnsampledRows(Refused):
    """Nothing can be sampled for some rows, for the reason that the sentence gives."""

    def __init__(self, rows: list[int], sentence: str) -> None:
        super().__init__(sentence)
        self.rows = rows


def not_finite_logits(rows: list[int]) -> UnsampledRows:
    """The error for rows whose logits are not finite."""
    return UnsampledRows(
        rows,
        "the model's output is not finite, so nothing can be sampled: its weights are broken; "
        "use an earlier checkpoint, and a lower learning rate.",
    )


class Exponentials:
    """exp((logits - maximum) / temperature) of each row, summed in blocks of the vocabulary.

    `exact` has the sums of the logits before rounding, at temperature 1.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor | None = None,
        exact: ExactLogits | None = None,
    ) -> None:
        count, vocabulary = logits.shape
        self.logits = logits
        self.inverse = None if temperatures is None else 1 / temperatures  # (B, 1)
        blocks = -(-vocabulary // BLOCK)
        self.highest = self._highest(blocks) if exact is None else exact.highest  # (B, Y)
        self.maximum = self.highest.amax(-1, keepdim=True).float()  # (B, 1)
        if exact is not None and temperatures is None:
            self.sums = exact.sums * (exact.highest - self.maximum).exp()
            return
        # A power of two is computed faster than one of e.
        scale = _LOG2_E if self.inverse is None else self.inverse * _LOG2_E
        self.sums = torch.empty(count, blocks, device=logits.device)
        step = max(1, _SPAN // count // BLOCK) if logits.device.type == "cpu" else blocks
        buffer = torch.empty(count, step * BLOCK, device=logits.device)
        for first in range(0, blocks, step):
            last = min(first + step, blocks)
            columns = logits[:, first * BLOCK : last * BLOCK]
            gaps = buffer[:, : columns.shape[1]]
            gaps.copy_(columns).sub_(self.maximum).mul_(scale).exp2_()
            if columns.shape[1] < (last - first) * BLOCK:  # the vocabulary's end
                gaps = buffer[:, : (last - first) * BLOCK]
                gaps[:, columns.shape[1] :] = 0
            in_blocks = gaps.unflatten(1, (last - first, BLOCK))
            torch.sum(in_blocks, -1, out=self.sums[:, first:last])

    def _highest(self, blocks: int) -> torch.Tensor:
        count, vocabulary = self.logits.shape
        highest = self.logits.new_empty(count, blocks)
        whole = vocabulary // BLOCK
        in_blocks = self.logits[:, : whole * BLOCK].unflatten(1, (whole, BLOCK))
        torch.amax(in_blocks, -1, out=highest[:, :whole])
        if whole < blocks:
            torch.amax(self.logits[:, whole * BLOCK :], -1, out=highest[:, whole])
        return highest

    def normaliser(self) -> torch.Tensor:
        """(B, 1): logits less this are log-probabilities (at temperature 1)."""
        return self.maximum + self.sums.sum(-1, keepdim=True).log()

    def argmax(self) -> torch.Tensor:
        """The most likely token of each row, (B,); the first of equals."""
        block = self.highest.argmax(-1, keepdim=True)
        within = self._logits_of(block).argmax(-1, keepdim=True)
        return (block * BLOCK + within)[:, 0]

    def sample(self, uniforms: torch.Tensor) -> torch.Tensor:
        """Sample by the inverse CDF, in the order of token ids: (B,) in fp64 -> (B,)."""
        cumulative = self.sums.double().cumsum(-1)  # (B, Y)
        total = cumulative[:, -1:].contiguous()
        target = uniforms[:, None] * total
        block = _position(cumulative, target)  # (B, 1)
        before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
        gaps = self._logits_of(block).double() - self.maximum
        inner = (gaps if self.inverse is None else gaps * self.inverse).exp().cumsum(-1)
        # The block's sum may be of exact logits, while these are rounded: use the fraction of it.
        fraction = (target - before) / self.sums.double().gather(-1, block)
        return (block * BLOCK + _position(inner, fraction * inner[:, -1:]))[:, 0]

    def _logits_of(self, block: torch.Tensor) -> torch.Tensor:
        """(B, 1) -> (B, W), in fp32; minus infinity beyond the vocabulary."""
        ids = block * BLOCK + torch.arange(BLOCK, device=block.device)
        vocabulary = self.logits.shape[1]
        gathered = self.logits.gather(-1, ids.clamp(max=vocabulary - 1)).float()
        return gathered.masked_fill_(ids >= vocabulary, -torch.inf)


def _position(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first position (B, 1) above its row's target, at most the last with a probability."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.searchsorted(cumulative, target.contiguous(), right=True).minimum(last)


def choose_tokens(
    logits: torch.Tensor | None,
    requests: Sequence[SampleRequest],
    uniforms: torch.Tensor,  # (B,) fp64, in [0, 1)
    exact: ExactLogits | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # (B, V) -> (B,), (B, 1)
    """One token per row under its temperature (0: the most likely), top_k and top_p; normalisers.

    The inverse CDF is in the order of token ids, not of probability: otherwise two tokens of almost
    the same probability could change places with the last digit of a logit, and a seed would give
    other tokens. Where all rows are greedy, `exact` is enough.

    Raises:
        UnsampledRows: some rows have no probabilities, because their logits are not finite.
    """
    if exact is None:
        assert logits is not None
        plain = Exponentials(logits)
    else:
        plain = exact
    normaliser = plain.normaliser()
    finite = normaliser[:, 0].isfinite()
    if not bool(finite.all()):
        raise not_finite_logits((~finite).nonzero()[:, 0].tolist())
    greedy = [request.temperature == 0 for request in requests]
    if all(greedy):
        return plain.argmax(), normaliser
    assert logits is not None
    uniforms = uniforms.to(logits.device)
    temperatures = [
        max(request.temperature, COLDEST) if request.temperature else 1.0 for request in requests
    ]
    column = None
    if any(temperature != 1 for temperature in temperatures):
        column = torch.tensor(temperatures, device=logits.device)[:, None]
    tempered = plain
    if column is not None or exact is not None:
        tempered = Exponentials(logits, column, exact)
    assert isinstance(tempered, Exponentials)
    tokens = tempered.sample(uniforms)
    if any(greedy):
        tokens = torch.where(torch.tensor(greedy, device=tokens.device), plain.argmax(), tokens)
    for i, request in enumerate(requests):
        if not greedy[i] and (request.top_k > 0 or request.top_p < 1):
            mass = tempered.sums[i].double().sum()
            peak = tempered.maximum[i, 0]
            tokens[i] = _sample_top(logits[i], peak, mass, request, uniforms[i])
    return tokens, normaliser


def tempered_normaliser(
    logits: torch.Tensor, temperatures: torch.Tensor, exact: ExactLogits | None = None
) -> torch.Tensor:
    """(B, 1): logits / temperature less this are log-probabilities at each row's temperature."""
    powers = Exponentials(logits, temperatures, exact)
    return powers.maximum / temperatures + powers.sums.sum(-1, keepdim=True).log()


def _sample_top(
    logits: torch.Tensor,  # (V,)
    maximum: torch.Tensor,  # ()
    mass: torch.Tensor,  # (): the sum of exp((logits - maximum) / temperature)
    request: SampleRequest,
    uniform: torch.Tensor,  # ()
) -> torch.Tensor:  # ()
    """Sample from the tokens within top_k, and within top_p of the mass that is left."""
    vocabulary = len(logits)
    limit = min(request.top_k, vocabulary) if request.top_k > 0 else vocabulary
    count = limit if request.top_k > 0 else min(limit, _NUCLEUS)
    while True:
        if count < vocabulary:
            # Ties with the last of them are included: equals are in the order of their ids.
            ids = (logits >= logits.topk(count).values[-1]).nonzero()[:, 0]
        else:
            ids = torch.arange(vocabulary, device=logits.device)
        gaps = logits[ids].float() - maximum
        weights = (gaps.double() / max(request.temperature, COLDEST)).exp()
        order = gaps.sort(descending=True, stable=True).indices[:limit]
        ordered = weights[order]
        cumulative = ordered.cumsum(-1)
        whole = cumulative[-1] if request.top_k > 0 else mass
        # The smallest set of most likely tokens whose mass reaches top_p: a token stays if the mass
        # before it has not reached it yet.
        missing = float(request.top_p * whole - cumulative[-1])
        if count == limit or missing <= 0:
            break
        # None of those that are missing is more likely than the last.
        needed = count + missing / max(float(ordered[-1]), sys.float_info.min)
        wanted = max(_GROWTH * count, 2 * needed)
        # The choice of most of them costs as much as to order all.
        count = int(wanted) if _GROWTH * wanted < limit else limit
    nucleus = order[cumulative - ordered < request.top_p * whole].sort().values
    inner = weights[nucleus].cumsum(-1)[None]
    place = _position(inner, (uniform * inner[0, -1]).view(1, 1))
    return ids[nucleus[place[0, 0]]]


def sample_alternatives(
    logits: torch.Tensor, temperature: float, uniforms: torch.Tensor
) -> torch.Tensor:
    """A token from logits (B, V) at this temperature for each uniform number of (B, K)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand(uniforms.shape)
    # The largest logit is subtracted first, so that nothing overflows.
    gaps = logits.double() - logits.amax(-1, keepdim=True)
    cumulative = (gaps / temperature).softmax(-1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    sampled = torch.searchsorted(cumulative, uniforms * total, right=True)
    return sampled.minimum(torch.searchsorted(cumulative, total))
