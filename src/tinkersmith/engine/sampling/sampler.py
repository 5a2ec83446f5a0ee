"""What answers sampling requests: the engine itself, or another program that the user chose.

Greedy answers are those of `transformers.generate`; reported log-probabilities are the model's own,
before temperature.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from tinkersmith.engine.messages import Answering, SampleRequest, SampleResult
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory


class SampleBatch(Protocol):
    """Requests that are being answered together; see `Batch`."""

    @property
    def sequences(self) -> int:
        """How many sequences are not finished."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something."""
        ...

    def add(
        self,
        request: SampleRequest,
        adapter: Adapter | None,  # it does not change
    ) -> Answering: ...

    def step(self) -> list[Answering]:
        """Do some of the work; returns the requests that are finished."""
        ...


class Sampler(Protocol):
    """Answers the requests of sampling clients; the user chooses which one with --sampler."""

    groups_adapters: bool
    """Whether a batch takes requests of different adapters of its base model."""

    def batch(
        self,
        base: BaseModel,
        weights_id: str,  # of the first request
        decode: Callable[[list[int]], str] | None,  # needed where a stop is a string
    ) -> SampleBatch: ...

    def forget(self, weights_id: str) -> None:
        """Free what is held for weights that nobody samples from any more."""
        ...


class OwnSampler:
    """The engine's own `Sampler`: it holds nothing between requests."""

    groups_adapters = True

    def __init__(self) -> None:
        self._memory = CacheMemory()

    def batch(
        self, base: BaseModel, weights_id: str, decode: Callable[[list[int]], str] | None
    ) -> Batch:
        return Batch(base, decode, self._memory)

    def forget(self, weights_id: str) -> None: ...


def sample(
    base: BaseModel,
    adapter: Adapter | None,
    requests: Sequence[SampleRequest],
    decode: Callable[[list[int]], str] | None = None,
) -> list[SampleResult]:
    """Answer all requests; `decode` is needed where a stop is a string.

    A result does not depend on the other requests, beyond the last digit of a float: every
    sequence has its own random generator, seeded by (seed, its number).
    """
    batch = Batch(base, decode, CacheMemory())
    answering = [batch.add(request, adapter) for request in requests]
    while batch.sequences:
        batch.step()
    for one in answering:
        if one.error is not None:
            raise one.error
    return [one.result for one in answering]
