"""Frozen weights to sample from, each once for all its sampling clients, and running batches."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from tinkersmith.engine.messages import Answering
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.sampler import SampleBatch


@dataclass(slots=True)
class Weights:
    """A frozen adapter to sample from, or the base model alone."""

    id: str
    # Weights of equal identity are equal. None: nothing is known of them.
    identity: Hashable
    base_name: str
    adapter: Adapter | None
    users: set[str] = field(default_factory=set[str])  # sampling clients
    answering: int = 0  # requests that are not finished

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = self.adapter.weights if self.adapter else {}
        return {f"weight.{name}": weight.detach() for name, weight in weights.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        if self.adapter is not None:
            for name, weight in self.adapter.weights.items():
                weight.data = tensors[f"weight.{name}"].to(weight.device)

    def clear(self) -> None:
        if self.adapter is not None:
            self.adapter.clear()


@dataclass(slots=True)
class RunningBatch:
    """Requests that are being answered together, of some weights of one base model."""

    base_name: str
    batch: SampleBatch
    weights: dict[Answering, Weights] = field(default_factory=dict[Answering, Weights])
    # Finished before the next step was asked for, as the base model's memory was needed.
    finished: list[Answering] = field(default_factory=list[Answering])
