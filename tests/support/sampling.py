"""Sampling through `ModelOperations`, and operations that sample nothing but count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.engine.messages import Answering, SampleRequest, SampleResult
from tinkersmith.engine.scheduling.operations import ModelOperations


def answers(
    models: ModelOperations, sampler_id: str, requests: Sequence[SampleRequest]
) -> list[SampleResult | BaseException]:
    """Results of requests that join together; in place of each that fails, its error."""
    weights_id, joined = models.weights_of(sampler_id), list[Answering | BaseException]()
    for request in requests:
        try:
            joined.append(models.join(weights_id, request, sampler_id))
        except Exception as error:
            joined.append(error)
    missing = {one for one in joined if isinstance(one, Answering)}
    batch_id = models.batch_of(weights_id)
    while missing:
        missing -= set(models.sample_step(batch_id))
    return [(one.error or one.result) if isinstance(one, Answering) else one for one in joined]


@dataclass
class CountingModels:
    """Operations whose requests need as many steps as their max_tokens.

    A request with the seed 3 fails. `step` is called in each step with its requests.
    """

    weights: Callable[[str], str] = lambda sampler_id: sampler_id
    step: Callable[[str, list[SampleRequest]], None] = lambda weights_id, requests: None
    running: dict[str, dict[Answering, int]] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def weights_of(self, sampler_id: str) -> str:
        return self.weights(sampler_id)

    def batch_of(self, weights_id: str) -> str:
        return weights_id

    def join(self, weights_id: str, request: SampleRequest, sampler_id: str) -> Answering:
        answering = Answering(request, SampleResult([]))
        self.running.setdefault(weights_id, {})[answering] = request.max_tokens or 1
        return answering

    def can_sample(self, weights_id: str) -> bool:
        return bool(self.running.get(weights_id))

    def sample_step(self, weights_id: str) -> list[Answering]:
        running = self.running[weights_id]
        self.step(weights_id, [one.request for one in running])
        finished: list[Answering] = []
        for answering in list(running):
            running[answering] -= 1
            if answering.request.seed == 3:
                answering.error = RuntimeError("bad request")
            if not running[answering] or answering.error or answering.gives_up:
                del running[answering]
                finished.append(answering)
        return finished

    def free(self, name: str) -> None:
        self.freed.append(name)

    free_sampler = free

    def drop_step(self, name: str) -> dict[str, Any]:
        self.dropped.append(name)
        return {}

    def facts(self) -> dict[str, Any]:
        return {}
