"""What the engine thread holds: base models, adapters in training, samplers. Torch lives here.

Every method runs on the engine thread, called by a job.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tinkersmith.engine.base_model import BaseModel, load_base_model
from tinkersmith.engine.catalogue import Catalogue
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.lora import (
    Adapter,
    adapter_state,
    load_adapter_state,
    new_adapter,
    peft_config,
    snapshot,
)
from tinkersmith.engine.losses import check_datums
from tinkersmith.engine.messages import (
    AdamParams,
    BatchRequest,
    LoraConfig,
    LossOutput,
    SampleRequest,
    SampleResult,
)
from tinkersmith.engine.optimizer import (
    AdamState,
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.sampler import check_request, sample
from tinkersmith.engine.store import Store, TinkerPath
from tinkersmith.engine.training_step import forward, forward_backward
from tinkersmith.files import new_folder, write_json

log = logging.getLogger("tinkersmith.engine")


@dataclass(frozen=True, slots=True)
class DroppedStep:
    seq_id: int  # of the forward_backward that failed
    reason: str


@dataclass(slots=True)
class TrainedModel:
    base: BaseModel
    adapter: Adapter
    optimizer: AdamState
    # The step under way lost a part: the optim_step behind it fails too, so that half a batch is
    # never applied.
    dropped: DroppedStep | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    base: BaseModel
    adapter: Adapter | None


class Models:
    def __init__(
        self, store: Store, catalogue: Catalogue, dtype: str = "auto", device: str = "auto"
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.dtype, self.device = dtype, device
        self.bases: dict[str, BaseModel] = {}
        self.trained: dict[str, TrainedModel] = {}
        self.samplers: dict[str, Sampler] = {}
        self._decoders: dict[Path, Callable[[list[int]], str]] = {}

    # ---- base models

    def base(self, name: str) -> BaseModel:
        """The base model, loaded at its first use."""
        if name not in self.bases:
            start = time.perf_counter()
            folder = self.catalogue.folder(name)
            self.bases[name] = load_base_model(name, folder, self.dtype, self.device)
            log.info(
                "loaded %s (%s, %s) in %.1f s",
                name,
                self.bases[name].dtype,
                self.bases[name].device,
                time.perf_counter() - start,
            )
        return self.bases[name]

    # ---- training clients

    def create(self, model_id: str, base_name: str, config: LoraConfig) -> None:
        base = self.base(base_name)
        adapter = new_adapter(base, config)
        self.trained[model_id] = TrainedModel(base, adapter, new_state(adapter))

    def create_from(
        self, model_id: str, base_name: str, config: LoraConfig, path: TinkerPath, optimizer: bool
    ) -> None:
        self.create(model_id, base_name, config)
        try:
            self.load(model_id, path, optimizer)
        except BaseException:
            del self.trained[model_id]
            raise

    def get(self, model_id: str) -> TrainedModel:
        if model_id not in self.trained:
            raise Refused(f"the training client {model_id} could not be created, or has ended.")
        return self.trained[model_id]

    def batch(self, request: BatchRequest, failure_told: int) -> LossOutput:
        """forward or forward_backward; if the latter fails, its step's gradients are dropped.

        `failure_told` is the last failure the client knew of when it sent this. What it sent
        before it knew belongs to the failed step; what it sends after that is a new step.
        """
        model = self.get(request.model_id)
        if model.dropped is not None and failure_told >= model.dropped.seq_id:
            model.dropped = None
            model.adapter.clear_gradients()
        try:
            if isinstance(request.datums, Refused):
                raise request.datums
            check_datums(model.base, request.datums, request.loss_fn, request.config)
            compute = forward if request.forward_only else forward_backward
            return compute(
                model.base, model.adapter, request.datums, request.loss_fn, request.config
            )
        except BaseException as error:
            if not request.forward_only:
                model.adapter.clear_gradients()
                model.dropped = model.dropped or DroppedStep(request.seq_id, str(error))
            raise

    def optim_step(self, model_id: str, params: AdamParams | Refused) -> dict[str, float]:
        model = self.get(model_id)
        if model.dropped is not None:
            dropped, model.dropped = model.dropped, None
            model.adapter.clear_gradients()
            raise Refused(
                "the step was not taken, because a forward_backward before it failed and its "
                f"gradients were dropped: {dropped.reason}"
            )
        if isinstance(params, Refused):
            raise params
        return optim_step(model.adapter, model.optimizer, params)

    def free(self, model_id: str) -> None:
        self.trained.pop(model_id, None)

    # ---- checkpoints

    def save(
        self,
        model_id: str,
        path: TinkerPath,
        *,
        optimizer: bool,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
        recipients: list[str] | None = None,
    ) -> int:
        """Write the adapter (and optimizer state) under `path`; returns its size in bytes."""
        model = self.get(model_id)
        self.store.check_new(path, overwrite)
        # The row may be of a checkpoint that lost its folder, or the other way round after a kill:
        # the folder is always replaced as a whole.
        with new_folder(self.store.weights_folder(path), overwrite=True) as folder:
            save_file(adapter_state(model.adapter), folder / "adapter_model.safetensors")
            write_json(
                folder / "adapter_config.json",
                peft_config(model.base, model.adapter, model.base.name),
            )
            if optimizer:
                save_file(state_tensors(model.optimizer), folder / "optimizer.safetensors")
        return self.store.add_checkpoint(path, user_metadata, ttl_seconds, recipients).size_bytes

    def load(self, model_id: str, path: TinkerPath, optimizer: bool) -> None:
        """Replace the adapter by a checkpoint's; its optimizer state too, or a fresh one."""
        model = self.get(model_id)
        folder = self._weights(path)
        file = folder / "optimizer.safetensors"
        if optimizer and not file.is_file():
            raise Refused(
                f"{path} holds no optimizer state; load it without, or load a state that "
                "save_state wrote (tinker://RUN/weights/NAME)."
            )
        load_adapter_state(model.adapter, load_file(folder / "adapter_model.safetensors"))
        model.adapter.clear_gradients()
        model.dropped = None
        model.optimizer = (
            load_state_tensors(model.adapter, load_file(file))
            if optimizer
            else new_state(model.adapter)
        )

    def _weights(self, path: TinkerPath) -> Path:
        self.store.checkpoint(path)
        folder = self.store.weights_folder(path)
        if not (folder / "adapter_model.safetensors").is_file():
            raise Refused(f"{path} is listed, but its files in {folder} are gone.")
        return folder

    # ---- samplers

    def add_sampler(self, sampler_id: str, base_name: str, path: TinkerPath | None) -> None:
        """A sampler on a checkpoint, or on the base model alone."""
        base = self.base(base_name)
        adapter = None
        if path is not None:
            config = self.store.run(path.run_id).lora
            adapter = new_adapter(base, config)
            tensors = load_file(self._weights(path) / "adapter_model.safetensors")
            load_adapter_state(adapter, tensors)
            adapter = snapshot(adapter)
        self.samplers[sampler_id] = Sampler(base, adapter)

    def add_snapshot(self, sampler_id: str, model_id: str) -> None:
        """A sampler on a training client's weights as they are now."""
        model = self.get(model_id)
        self.samplers[sampler_id] = Sampler(model.base, snapshot(model.adapter))

    def sample(
        self, sampler_id: str, requests: Sequence[SampleRequest]
    ) -> list[SampleResult | Refused]:
        """Answer requests together; a bad one is refused alone."""
        if sampler_id not in self.samplers:
            raise Refused(f"the sampling client {sampler_id} could not be created, or has ended.")
        sampler = self.samplers[sampler_id]
        results: list[SampleResult | Refused] = []
        good: list[SampleRequest] = []
        for request in requests:
            try:
                check_request(sampler.base, request)
                good.append(request)
                results.append(SampleResult([]))
            except Refused as refusal:
                results.append(refusal)
        answers = iter(sample(sampler.base, sampler.adapter, good, self._decoder(sampler.base)))
        return [result if isinstance(result, Refused) else next(answers) for result in results]

    def free_sampler(self, sampler_id: str) -> None:
        self.samplers.pop(sampler_id, None)

    def _decoder(self, base: BaseModel) -> Callable[[list[int]], str] | None:
        file = base.folder / "tokenizer.json"
        if not file.is_file():
            return None
        if base.folder not in self._decoders:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            self._decoders[base.folder] = lambda tokens: tokenizer.decode(
                tokens, skip_special_tokens=False
            )
        return self._decoders[base.folder]


def set_threads(count: int) -> None:
    torch.set_num_threads(count)
