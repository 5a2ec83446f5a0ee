"""Tokenised data and settings -> what each step of a run sends to the server.

Pure functions of the settings, the data and the step: a rehearsal, a run and a resumed run get the
same. This module sends nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkersmith.batches.order import learning_rate_at
from tinkersmith.batches.source import TokenizedData
from tinkersmith.service.answers import optim_params, to_datum
from tinkersmith.settings.fields import Settings
from tinkersmith.text.tokenize import TokenizedSample

if TYPE_CHECKING:
    import tinker

LOSS = "cross_entropy"
_VALIDATION_BATCH = 64  # samples per forward request


@dataclass(frozen=True, slots=True)
class StepRequest:
    """What a step sends."""

    number: int  # counted from 0
    batch: list[TokenizedSample]
    datums: "list[tinker.Datum]"
    learning_rate: float
    params: "tinker.types.OptimParams"
    tokens: int
    completion_tokens: int


def step_request(
    data: TokenizedData, settings: Settings, total_steps: int, number: int
) -> StepRequest | None:
    """What step `number`, counted from 0, sends; None if every sample of its batch is too long."""
    batch = data.batch(number)
    if not batch:
        return None
    completion_tokens = sum(sample.completion_length for sample in batch)
    rate = learning_rate_at(
        number, total_steps, settings.learning_rate, settings.lr_schedule, settings.warmup_ratio
    )
    return StepRequest(
        number=number,
        batch=batch,
        # The server sums over tokens. Weights that add up to 1 make that the mean, so that the
        # loss and GRAD_CLIP_NORM mean the same for short and long batches.
        datums=[to_datum(sample, 1 / completion_tokens) for sample in batch],
        learning_rate=rate,
        params=optim_params(settings, rate),
        tokens=sum(len(sample.tokens) for sample in batch),
        completion_tokens=completion_tokens,
    )


def validation_requests(data: TokenizedData) -> "list[list[tinker.Datum]]":
    """The datums of each request that measures the validation loss."""
    samples = data.validation
    return [
        [to_datum(sample) for sample in samples[start : start + _VALIDATION_BATCH]]
        for start in range(0, len(samples), _VALIDATION_BATCH)
    ]
