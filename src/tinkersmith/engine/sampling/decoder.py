"""What a sampler needs of a model: runs of tokens prefilled, rows in slots decoded step by step.

`LayerDecoder` works through the model's own layers; dense_decoding.py has its fast twin.

Axes: T tokens of a run, B active rows, H hidden size, V vocabulary, G key/value heads, D head size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from tinkersmith.engine.model.attention import CachedRows, KeysAndValues, PackedDocuments
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import ExactLogits
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.prefixes import Run
from tinkersmith.engine.training.head_pass import target_logprobs


class Decoder(Protocol):
    shares: bool  # runs can have parents

    def prefill(
        self, runs: Sequence[Run], wanted: Sequence[bool]
    ) -> list[torch.Tensor | None]:  # (T, H) of each wanted run
        """Computes the pasts of runs whose parents have theirs; none is empty."""
        ...

    def put(self, slot: int, run: Run) -> None:
        """Lets a row begin in this slot, after the tokens up to the end of `run`."""
        ...

    def move(self, source: int, target: int) -> None: ...

    def step(
        self, tokens: Sequence[int], *, greedy: bool = False
    ) -> tuple[torch.Tensor | None, ExactLogits | None]:
        """The next token of each active row, slots 0 to B - 1, is read: (B, V) logits of the one
        after it, in any precision, and what is known of them before they were rounded; the latter
        alone may do if `greedy`, that is if nothing but the likeliest token is wanted."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...  # (T, H) -> (T, V)

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:  # (T, H), (T, K) -> (T, K)
        """Those that training would report, to the last digit but one."""
        ...


class LayerDecoder:
    """For every architecture that can be loaded."""

    shares = False

    def __init__(self, base: BaseModel, adapter: Adapter | None, slots: int) -> None:
        self.base, self.adapter = base, adapter
        self.cache = CachedRows(base.layers, slots, base.device)

    def prefill(self, runs: Sequence[Run], wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        lengths = [len(run.tokens) for run in runs]
        packed = PackedDocuments(lengths, keep=True)
        positions = torch.cat([torch.arange(n, device=self.base.device) for n in lengths])
        tokens = torch.tensor([token for run in runs for token in run.tokens])
        hidden = self.base.run(tokens, positions, packed, self.adapter).split(lengths)
        assert packed.kept is not None
        for run, (start, end) in zip(runs, packed.bounds, strict=True):
            run.past = past_of([(key[0], value[0]) for key, value in packed.kept], start, end)
        return [part if one else None for part, one in zip(hidden, wanted, strict=True)]

    def put(self, slot: int, run: Run) -> None:
        self.cache.put(slot, run.past)

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target)

    def step(self, tokens: Sequence[int], *, greedy: bool = False) -> tuple[torch.Tensor, None]:
        self.cache.prepare(len(tokens))
        positions = self.cache.lengths[: len(tokens), None]
        ids = torch.tensor(tokens, device=self.base.device)[:, None]
        hidden = self.base.run(ids, positions, self.cache, self.adapter)  # (B, H)
        self.cache.advance()
        return self.logits(hidden), None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base.logits(hidden, self.adapter)

    def logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return target_logprobs(self.base, self.adapter, hidden, targets)


def past_of(layers: KeysAndValues, start: int, end: int) -> KeysAndValues:
    """Copies, so that a run does not hold the pack in which it was computed."""
    return [(key[:, start:end].clone(), value[:, start:end].clone()) for key, value in layers]
