"""What jobs call on the engine thread: the torch half, as the server half sees it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tinkersmith.engine.messages import (
    Answering,
    BatchRequest,
    ImageChunk,
    LoraConfig,
    LossOutput,
    OptimParams,
    SampleRequest,
)
from tinkersmith.engine.storage.folders import TinkerPath


class ModelOperations(Protocol):
    """The models of all clients. runtime/clients.py implements it.

    Every method may raise `Refused`, whose text the client sees.
    """

    def facts(self) -> dict[str, Any]:
        """What sums depend on: device, precision, threads, versions. Any thread may call it."""
        ...

    def usage(self) -> dict[str, Any]:
        """Memory in bytes, and the tokens so far: `adapters`, `spilled_clients`, `base_models` by
        name, `gpu` (or None), `tokens` by kind. Any thread may call it."""
        ...

    # ---- training clients

    def create(
        self,
        model_id: str,
        base_name: str,
        config: LoraConfig,
        /,
        *,
        optimizer: str,
        only_graded: bool,
    ) -> None: ...

    def create_from(
        self,
        model_id: str,
        base_name: str,
        config: LoraConfig,
        path: TinkerPath | Path,
        with_optimizer: bool,
        /,
        *,
        optimizer: str,
        only_graded: bool,
    ) -> None: ...

    def get(self, model_id: str, /) -> object: ...

    def batch(self, request: BatchRequest, failure_reported: int, /) -> LossOutput: ...

    def check_step(self, model_id: str, /) -> None: ...

    def optim_step(self, model_id: str, params: OptimParams, /) -> dict[str, float]: ...

    def drop_step(self, model_id: str, /) -> dict[str, Any]:
        """Drop the gradients of a step that will not be taken."""
        ...

    def free(self, model_id: str, /) -> None: ...

    # ---- checkpoints

    def save(
        self,
        model_id: str,
        path: TinkerPath,
        /,
        *,
        optimizer: bool,
        overwrite: bool = ...,
        ttl_seconds: int | None = ...,
        user_metadata: dict[str, str] | None = ...,
        recipients: list[str] | None = ...,
    ) -> Callable[[], int]: ...

    def import_adapter(
        self, base_name: str, config: LoraConfig, folder: Path, checkpoint: Path, /
    ) -> None:
        """Write the adapter in a PEFT folder as the files of a checkpoint into a new folder."""
        ...

    def load(self, model_id: str, path: TinkerPath, optimizer: bool, /) -> None: ...

    # ---- sampling clients

    def add_sampler(
        self, sampler_id: str, base_name: str, path: TinkerPath | Path | None, /
    ) -> None: ...

    def add_snapshot(self, sampler_id: str, model_id: str, /) -> None: ...

    def free_sampler(self, sampler_id: str, /) -> None: ...

    def prompt_length(
        self, base_name: str, tokens: Sequence[int], images: Sequence[ImageChunk], /
    ) -> int:
        """How many tokens a prompt has with the images in it."""
        ...

    # ---- sampling: requests of one batch are answered together

    def weights_of(self, sampler_id: str, /) -> str: ...

    def batch_of(self, weights_id: str, /) -> str:
        """The batch that requests to these weights join."""
        ...

    def join(self, weights_id: str, request: SampleRequest, sampler_id: str, /) -> Answering: ...

    def can_sample(self, batch_id: str, /) -> bool:
        """Whether `sample_step` would do something now."""
        ...

    def sample_step(self, batch_id: str, /) -> Sequence[Answering]:
        """Sample one token of each sequence; gives the requests that are finished."""
        ...
