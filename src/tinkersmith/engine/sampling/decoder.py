"""What a sampler needs of a model: prefill of token runs, and decoding of rows in slots.

`LayerDecoder` works through the model's own layers; dense_decoder.py has its fast twin.

Axes: T tokens of a run, B active rows, H hidden size, V vocabulary, G key/value heads, D head size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from tinkersmith.engine.images.vision import Vision
from tinkersmith.engine.model.attention import CachedRows, KeysAndValues, PackedDocuments
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import ExactLogits
from tinkersmith.engine.model.lora import Active, Adapter, AdapterRows, adapter_runs
from tinkersmith.engine.sampling.prefixes import TokenRun
from tinkersmith.engine.training.head_pass import target_logprobs


class Decoder(Protocol):
    def prefill(
        self, runs: Sequence[TokenRun], wanted: Sequence[bool]
    ) -> list[torch.Tensor | None]:  # (T, H) of each wanted run
        """Compute the pasts of runs whose parents have theirs; no run is empty.

        Each is read with its own adapter.
        """
        ...

    def put(self, slot: int, run: TokenRun) -> None:
        """Begin a row in this slot, after the tokens up to the end of `run`."""
        ...

    def move(self, source: int, target: int) -> None: ...

    def resize(self, slots: int, /) -> None:
        """Have so many slots from now on; rows beyond them have ended."""
        ...

    def held(self) -> int:
        """Bytes of the KV cache."""
        ...

    def step(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        adapters: Sequence[Adapter | None],
        *,
        greedy: bool = False,
    ) -> tuple[torch.Tensor | None, ExactLogits | None]:
        """Read the next token of each active row; their slots are 0 to B - 1 in any order.

        Rows of one adapter must stand together. Gives the logits (B, V) of the token after it, in
        any precision, and what is known of them before they were rounded. If `greedy`, only the
        most likely token is needed: the logits may then be left out.
        """
        ...

    def logits(
        self, hidden: torch.Tensor, adapter: Adapter | None
    ) -> torch.Tensor: ...  # (T, H) -> (T, V)

    def logprobs(
        self, hidden: torch.Tensor, adapter: Adapter | None, targets: torch.Tensor
    ) -> torch.Tensor:  # (T, H), (T, K) -> (T, K)
        """The log-probabilities that training would report, up to rounding in the last digit."""
        ...


class LayerDecoder:
    """A `Decoder` through the model's own layers, for every architecture that can be loaded."""

    def __init__(self, base: BaseModel, slots: int) -> None:
        self.base, sizes = base, base.cache
        self.cache = CachedRows(sizes.attention_layers, sizes.windows, slots, base.device)
        self.shifts = Shifts(slots)
        self.held = self.cache.held

    def prefill(
        self, runs: Sequence[TokenRun], wanted: Sequence[bool]
    ) -> list[torch.Tensor | None]:
        # Layers may divide a pack as they like, so each adapter has a pack of its own.
        hidden: list[torch.Tensor | None] = [None] * len(runs)
        for adapter in dict.fromkeys(run.adapter for run in runs):
            own = [index for index, run in enumerate(runs) if run.adapter is adapter]
            states = self._read([runs[index] for index in own], adapter)
            for index, of_run in zip(own, states, strict=True):
                hidden[index] = of_run if wanted[index] else None
        return hidden

    def _read(self, runs: Sequence[TokenRun], adapter: Adapter | None) -> Sequence[torch.Tensor]:
        lengths = [len(run.tokens) for run in runs]
        pasts = joined_pasts(runs, self.cache.windows)
        states = [None if run.parent is None else run.parent.states for run in runs]
        packed = PackedDocuments(lengths, pasts=pasts, states=states, keep=True)
        if self.base.vision is None:
            positions = torch.cat(
                [
                    torch.arange(run.start, run.start + len(run.tokens), device=self.base.device)
                    for run in runs
                ]
            )
        else:
            positions = positions_of_runs(self.base.vision, runs).to(self.base.device)
        tokens = torch.tensor([token for run in runs for token in run.tokens])
        hidden = self.base.run(tokens, positions, packed, adapter).split(lengths)
        assert packed.kept is not None
        for run, (start, end), after in zip(runs, packed.bounds, packed.states, strict=True):
            run.states = after
            layers = [(key[0], value[0]) for key, value in packed.kept]
            run.past = past_of(layers, start, end, self.cache.windows)
        return hidden

    def put(self, slot: int, run: TokenRun) -> None:
        parts = [link.past for link in run.chain() if link.past is not None]
        self.cache.put(slot, run.start + len(run.tokens), parts, run.states)
        self.shifts.put(slot, run.shift)

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target)
        self.shifts.move(source, target)

    def resize(self, slots: int, /) -> None:
        self.cache.resize(slots)
        self.shifts.resize(slots)

    def step(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        adapters: Sequence[Adapter | None],
        *,
        greedy: bool = False,
    ) -> tuple[torch.Tensor, None]:
        self.cache.prepare(len(tokens))
        device = self.cache.lengths.device  # the model's own is found by a walk through it
        positions = self.cache.lengths[: len(tokens), None]
        places = torch.tensor(slots, device=device)
        ids = torch.empty_like(places)
        ids[places] = torch.tensor(tokens, device=device)
        vision = self.base.vision
        if vision is not None:
            lengths, by_slots = positions[:, 0].tolist(), ids.tolist()
            positions = self.shifts.step(vision, by_slots, lengths).to(device)
        # The model's layers take rows in the order of their slots.
        by_slot = _active(adapters, places)
        hidden = self.base.run(ids[:, None], positions, self.cache, by_slot)  # (B, H)
        self.cache.advance()
        in_order = _active(adapters, torch.arange(len(places), device=device))
        return self.base.logits(hidden[places], in_order), None

    def logits(self, hidden: torch.Tensor, adapter: Adapter | None) -> torch.Tensor:
        return self.base.logits(hidden, adapter)

    def logprobs(
        self, hidden: torch.Tensor, adapter: Adapter | None, targets: torch.Tensor
    ) -> torch.Tensor:
        return target_logprobs(self.base, adapter, hidden, targets)


class Shifts:
    """How far the position of each slot's next token is from the number of its tokens.

    Images take fewer positions than they have tokens.
    """

    def __init__(self, slots: int) -> None:
        self._shifts = [0] * slots

    def put(self, slot: int, shift: int) -> None:
        self._shifts[slot] = shift

    def move(self, source: int, target: int) -> None:
        self._shifts[target] = self._shifts[source]

    def resize(self, slots: int) -> None:
        self._shifts += [0] * (slots - len(self._shifts))
        del self._shifts[slots:]

    def after(self, lengths: Sequence[int]) -> list[int]:
        """The positions of text behind so many tokens in each of the first slots."""
        return [a + b for a, b in zip(lengths, self._shifts, strict=False)]

    def step(
        self, vision: Vision, tokens: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:  # (B, 1), or (3, B) if one of the tokens is of an image
        """The positions of tokens that are read now."""
        positions = torch.tensor(self.after(lengths))[:, None]
        if min(tokens) >= 0:
            return positions
        positions = positions[:, 0].repeat(3, 1)
        for slot, token in enumerate(tokens):
            if token < 0:
                place, shift = vision.positions([token], lengths[slot], self._shifts[slot])
                positions[:, slot], self._shifts[slot] = torch.from_numpy(place)[:, 0], shift
        return positions


def positions_of_runs(vision: Vision, runs: Sequence[TokenRun]) -> torch.Tensor:  # (3, T)
    """The positions of runs whose parents have been read; notes the runs' own shifts."""
    positions: list[torch.Tensor] = []
    for run in runs:
        before = 0 if run.parent is None else run.parent.shift
        places, run.shift = vision.positions(run.tokens, run.start, before)
        positions.append(torch.from_numpy(places))
    return torch.cat(positions, 1)


def _active(adapters: Sequence[Adapter | None], numbers: torch.Tensor) -> Active:
    """What adapters are active, for rows with these numbers in the layers' inputs, (B,)."""
    runs = adapter_runs(adapters)
    if len(runs) == 1:
        return runs[0][0]
    return [AdapterRows(adapter, numbers[rows]) for adapter, rows in runs if adapter is not None]


def joined_pasts(
    runs: Sequence[TokenRun], windows: Sequence[int | None]
) -> list[KeysAndValues | None]:
    """Keys and values of the tokens before each run that it sees; of one parent joined once."""
    joined: dict[TokenRun | None, KeysAndValues | None] = {None: None}
    for run in runs:
        if run.parent not in joined:
            chain = [link.past for link in run.chain()[:-1] if link.past is not None]
            joined[run.parent] = [
                (
                    _joined([pair[0] for pair in layer], window),
                    _joined([pair[1] for pair in layer], window),
                )
                for layer, window in zip(zip(*chain, strict=True), windows, strict=True)
            ]
    return [joined[run.parent] for run in runs]


def _joined(parts: Sequence[torch.Tensor], window: int | None) -> torch.Tensor:
    """Parts (G, any, D) end to end, the last tokens only where a window hides the others."""
    whole = torch.cat(list(parts), 1)
    return whole if window is None else whole[:, -window:]


def past_of(
    layers: KeysAndValues, start: int, end: int, windows: Sequence[int | None]
) -> KeysAndValues:
    """The past of a run, without what no later token sees.

    It is copied so that it does not hold the whole pack in memory.
    """
    past: KeysAndValues = []
    for (key, value), window in zip(layers, windows, strict=True):
        first = start if window is None else max(start, end - window)
        past.append((key[:, first:end].clone(), value[:, first:end].clone()))
    return past
