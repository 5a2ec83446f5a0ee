"""Some steps on a scratch adapter -> how long a run takes.

The scratch adapter is never saved. On a server that bills, its steps are billed like any others.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinkersmith.batches.source import TokenizedData
from tinkersmith.forecast.workload import Workload
from tinkersmith.progress import Clock
from tinkersmith.service.answers import optim_params, to_datum
from tinkersmith.service.connection import Service
from tinkersmith.settings.fields import Settings

LEAST_STEPS = 3  # steps of the scratch adapter
_WARM = 2  # steps that are not measured: the model is loaded, and memory is asked for
_ENOUGH = 3.0  # seconds of measured steps
_MOST = 24  # measured steps
_AHEAD = 2  # steps that training submits ahead
# A forward pass takes about a third of a step; an answer's token takes longer than a trained one.
_FORWARD = 0.4


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast steps were."""

    seconds: float  # of the measured steps
    tokens: int  # in them
    steps: int
    trained: int = 0  # tokens of all steps of the scratch adapter, which a server bills

    def of(self, work: Workload, steps: int, first: int = 0) -> float | None:
        """The seconds of the steps from `first` on, without sampling; None: not counted."""
        trained = work.trained_tokens(steps, first)
        if trained is None:
            return self.seconds / self.steps * (steps - first)
        measured = work.measurements(steps) - work.measurements(first)
        read = measured * (work.validation_tokens + work.prompt_tokens)
        return (trained + _FORWARD * read) * self.seconds / max(self.tokens, 1)

    def steps_within(self, work: Workload, budget: float, steps: int, first: int = 0) -> int:
        """How many of the steps from `first` on fit into `budget` seconds."""
        low, high = first, steps
        while low < high:
            middle = (low + high + 1) // 2
            if (self.of(work, middle, first) or 0.0) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


def measured_pace(
    service: Service,
    settings: Settings,
    data: TokenizedData,
    steps: int,
    clock: Clock = time.monotonic,
    most: int | None = None,
) -> Pace:
    """Train a scratch adapter for some steps as the run will, and take the time.

    Args:
        most: tokens after which no further step is sent, beside the first `LEAST_STEPS`.

    Raises:
        UserError: see `Service.wait`.
    """
    doing = "measuring the time of a step"
    with service.progress.doing(doing):
        client = service.create_training_client(settings)
        batches = [data.batch(step) for step in range(min(steps, _WARM + _MOST))]
        batches = [batch for batch in batches if batch]
        if len(batches) <= _WARM:  # so short a run is measured on batches that it repeats
            batches = (batches * (_WARM + 1))[: _WARM + len(batches)]

        def submit(batch: list[Any]) -> tuple[int, Any, Any]:
            completion = sum(sample.completion_length for sample in batch)
            datums = [to_datum(sample, 1 / completion) for sample in batch]
            return (
                _tokens_of([batch]),
                client.forward_backward(datums, "cross_entropy"),
                client.optim_step(optim_params(settings, 0.0)),
            )

        def wait(step: tuple[int, Any, Any]) -> int:
            service.wait(step[1], doing)
            service.wait(step[2], doing)
            return step[0]

        for batch in batches[:_WARM]:
            wait(submit(batch))
        sent = _tokens_of(batches[:_WARM])
        begun, tokens, done = clock(), 0, 0
        pending: list[tuple[int, Any, Any]] = []
        for number, batch in enumerate(batches[_WARM:], start=_WARM + 1):
            following = sent + _tokens_of([batch])
            if clock() - begun > _ENOUGH:
                break
            if most is not None and number > LEAST_STEPS and following > most:
                break
            sent = following
            pending.append(submit(batch))
            if len(pending) >= _AHEAD:
                tokens, done = tokens + wait(pending.pop(0)), done + 1
        for step in pending:
            tokens, done = tokens + wait(step), done + 1
        return Pace(clock() - begun, tokens, done, sent)


def _tokens_of(batches: Sequence[Sequence[Any]]) -> int:
    return sum(len(sample.tokens) for batch in batches for sample in batch)


def shown_duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
