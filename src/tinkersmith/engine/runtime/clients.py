"""The clients that the engine thread holds: adapters in training, and snapshots to sample from.

Every method runs on the engine thread, called by a job.
"""

import itertools
import platform
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.processor import processor_name
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import (
    ADAMW,
    DIMUON,
    Answering,
    BatchRequest,
    Datum,
    ImageChunk,
    LoraConfig,
    LossOutput,
    OptimParams,
    SampleRequest,
)
from tinkersmith.engine.model.adapters import (
    NotFinite,
    load_adapter_state,
    load_finite,
    new_adapter,
    not_finite,
    save_adapter,
    snapshot,
)
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.base_models import BaseModels, set_threads
from tinkersmith.engine.runtime.experimental import NOTHING, Experimental
from tinkersmith.engine.runtime.sampling_weights import RunningBatch, Weights
from tinkersmith.engine.runtime.spill import SpillFolder
from tinkersmith.engine.sampling.checks import (
    TOKENIZER,
    check_request,
    fitted,
    with_prompt_images,
)
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.store import CheckedCheckpoint, Store, damage_sentence, disk_errors
from tinkersmith.engine.training.checks import check_datums, ignored_inputs, with_datum_images
from tinkersmith.engine.training.losses import TRUNCATED_AT
from tinkersmith.engine.training.optimizer import (
    OptimizerState,
    has_gradients,
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.training.step import forward, forward_backward
from tinkersmith.fingerprint import base_fingerprint
from tinkersmith.peft_format import ADAPTER_WEIGHTS
from tinkersmith.version import __version__

OPTIMIZER = "optimizer.safetensors"
_THREADS = "threads"  # in the metadata of a saved optimizer state
TOKEN_KINDS = ("trained", "forward", "prompt", "sampled")
ADAPTER_MEMORY = 4 * 2**30  # bytes of adapters and optimizer states in memory


@dataclass(frozen=True, slots=True)
class DroppedStep:
    seq_id: int  # of the forward_backward that failed
    reason: str


@dataclass(slots=True)
class TrainingClient:
    """An adapter in training, with its optimizer."""

    base_name: str
    adapter: Adapter
    optimizer: OptimizerState
    # CPU threads of all its steps. Sums can depend on the number: a run that is resumed keeps it,
    # however busy the machine is then, and so gives the same losses to the last bit.
    threads: int
    # The client does not read log-probabilities of positions without a weight; they are 0.
    only_graded: bool = False
    # A batch of the step under way failed: the optim_step behind it fails too, so that half a step
    # is never applied.
    dropped: DroppedStep | None = None
    version: object = field(default_factory=object)  # another one whenever the weights change
    notes: set[str] = field(default_factory=set[str])  # logged once each

    def tensors(self) -> dict[str, torch.Tensor]:
        tensors = _named("state", state_tensors(self.optimizer))
        for name, weight in self.adapter.weights.items():
            tensors[f"weight.{name}"] = weight.detach()
            if weight.grad is not None:
                tensors[f"gradient.{name}"] = weight.grad
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in self.adapter.weights.items():
            weight.data = tensors[f"weight.{name}"].to(weight.device)
            gradient = tensors.get(f"gradient.{name}")
            weight.grad = None if gradient is None else gradient.to(weight.device)
        state = _with_prefix(tensors, "state")
        self.optimizer = load_state_tensors(self.adapter, state, self.optimizer.kind)

    def clear(self) -> None:
        self.adapter.clear()
        self.optimizer.clear()


class Models:
    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        dtype: str = "auto",
        device: str = "auto",
        threads: int = 0,  # 0: by the size of the models
        adapter_memory: int = ADAPTER_MEMORY,
        experimental: Experimental = NOTHING,
        allow_changed_base: bool = False,
        tempered_logprobs: bool = False,
    ) -> None:
        self.store = store
        self.tempered_logprobs = tempered_logprobs
        self._cut: set[str] = set()  # sampling clients whose first cut of max_tokens is logged
        self.allow_changed_base = allow_changed_base
        self.bases = BaseModels(
            catalogue, dtype, device, threads, experimental, before_unload=self._finish_batches
        )
        self.training: dict[str, TrainingClient] = {}
        self.sampling: dict[str, str] = {}  # sampling client -> weights
        self.weights: dict[str, Weights] = {}
        self._batches: dict[str, RunningBatch] = {}
        self._numbers = itertools.count()
        self.sampler = experimental.sampler()
        self.adapter_memory = adapter_memory
        self.spilled = SpillFolder(store.folder / "idle")
        # Bytes of each training client and of weights to sample from whose tensors are in memory,
        # the least recently used first.
        self._held: OrderedDict[str, int] = OrderedDict()
        self._decoders: dict[Path, Callable[[list[int]], str]] = {}
        self._tokens = Counter[str]()  # by what was done with them

    def facts(self) -> dict[str, Any]:
        device = torch.device(self.bases.device)
        is_gpu = device.type == "cuda"
        return {
            "device": self.bases.device,
            "processor": torch.cuda.get_device_name(device) if is_gpu else processor_name(),
            "engine": __version__,
            "torch": torch.__version__,
            "dtypes": self.bases.dtypes(),
            "threads": {name: client.threads for name, client in list(self.training.items())},
        }

    def usage(self) -> dict[str, Any]:
        held = list(self._held.values())
        return {
            "adapters": sum(held),
            "spilled_clients": max(len(self.training) + len(self.weights) - len(held), 0),
            "base_models": self.bases.memory(),
            "gpu": _gpu_memory(torch.device(self.bases.device)),
            "tokens": {kind: self._tokens[kind] for kind in TOKEN_KINDS},
        }

    # ---- training clients

    def create(
        self,
        model_id: str,
        base_name: str,
        config: LoraConfig,
        *,
        optimizer: str = ADAMW,
        only_graded: bool = False,
    ) -> None:
        adapter = new_adapter(self.bases.get(base_name), config)
        threads = self.bases.threads_for(base_name)
        self.training[model_id] = TrainingClient(
            base_name, adapter, new_state(adapter, optimizer), threads, only_graded
        )
        self._use(model_id)
        log.info(
            "training client %s on %s, rank %d, CPU threads: %d",
            *(model_id, base_name, config.rank, threads),
        )
        if optimizer == DIMUON:
            log.warning(
                "%s: Tinker publishes no formula of dimuon: this engine steps along the matrix "
                "sign of the averaged gradient, without a preconditioner or a correction for the "
                "rank",
                model_id,
            )

    def create_from(
        self,
        model_id: str,
        base_name: str,
        config: LoraConfig,
        path: TinkerPath | Path,
        with_optimizer: bool,
        *,
        optimizer: str = ADAMW,
        only_graded: bool = False,
    ) -> None:
        self.create(model_id, base_name, config, optimizer=optimizer, only_graded=only_graded)
        try:
            self.load(model_id, path, with_optimizer)
        except BaseException:
            self.free(model_id)
            raise

    def get(self, model_id: str) -> TrainingClient:
        if model_id not in self.training:
            raise Refused(f"the training client {model_id} could not be created, or has ended.")
        self._use(model_id)
        set_threads(self.training[model_id].threads)
        return self.training[model_id]

    def batch(self, request: BatchRequest, failure_told: int) -> LossOutput:
        """Compute forward or forward_backward; if the latter fails, drop its step's gradients.

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
            base = self.bases.get(model.base_name)
            datums = with_datum_images(base, request.datums)
            check_datums(base, datums, request.loss_fn, request.config)
            self._note_loss(request.model_id, model, datums, request.loss_fn)
            compute = forward if request.forward_only else forward_backward
            output = compute(
                base,
                model.adapter,
                datums,
                request.loss_fn,
                request.config,
                only_graded=model.only_graded,
            )
            kind = "forward" if request.forward_only else "trained"
            self._tokens[kind] += sum(len(datum.tokens) for datum in datums)
            return output
        except BaseException as error:
            if not request.forward_only:
                model.adapter.clear_gradients()
                model.dropped = model.dropped or DroppedStep(request.seq_id, str(error))
            raise

    def _note_loss(
        self, model_id: str, model: TrainingClient, datums: Sequence[Datum], loss_fn: str
    ) -> None:
        """Log, once for each client, what a user of this loss may not expect."""
        notes = [
            f"{loss_fn} does not use loss_fn_inputs[{name!r}]; they change nothing"
            for name in ignored_inputs(datums, loss_fn)
        ]
        if loss_fn == "stable_reinforce":
            notes.append(
                "Tinker publishes no formula of stable_reinforce: this engine takes REINFORCE with "
                f"importance weights that are cut at {TRUNCATED_AT:g}"
            )
        for note in notes:
            self._note(model_id, model, note)

    def _note(self, model_id: str, model: TrainingClient, note: str) -> None:
        if note not in model.notes:
            model.notes.add(note)
            log.warning("%s: %s", model_id, note)

    def check_step(self, model_id: str) -> None:
        """Check that the step under way can be applied.

        Raises:
            Refused: a forward_backward of it failed; its gradients are dropped.
        """
        model = self.get(model_id)
        if model.dropped is not None:
            dropped, model.dropped = model.dropped, None
            model.adapter.clear_gradients()
            raise Refused(
                "the step was not taken, because a forward_backward before it failed and its "
                f"gradients were dropped: {dropped.reason}"
            )

    def optim_step(self, model_id: str, params: OptimParams) -> dict[str, float]:
        model = self.get(model_id)
        if not has_gradients(model.adapter):
            self._note(
                model_id,
                model,
                "an optim_step without gradients changes nothing: no forward_backward came before "
                "it, or the last optim_step has used its gradients",
            )
        model.version = object()
        return optim_step(model.adapter, model.optimizer, params)

    def drop_step(self, model_id: str) -> dict[str, Any]:
        model = self.training.get(model_id)
        if model is not None:  # else its creation was dropped, too
            model.adapter.clear_gradients()
            model.dropped = None
        return {}

    def free(self, model_id: str) -> None:
        self.training.pop(model_id, None)
        self._forget(model_id)

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
    ) -> Callable[[], int]:
        """Write the adapter (and optimizer state) under `path`.

        Returns what completes the checkpoint and gives its size in bytes. It may run on any thread:
        it hashes the files, and waits for the disk and the database.

        Raises:
            Refused: a number is not finite: a later checkpoint must not hide that a run diverged.
        """
        model = self.get(model_id)
        self.store.check_new(path, overwrite)
        start = time.perf_counter()
        base = self.bases.get(model.base_name)
        state = state_tensors(model.optimizer) if optimizer else {}
        for tensors in (model.adapter.weights, state):
            if (name := not_finite(tensors)) is not None:
                raise Refused(
                    f"{path} was not saved: {name} holds numbers that are not finite, so the "
                    "training has diverged. Earlier checkpoints are unchanged: go on from one of "
                    "them, with a lower learning rate."
                )
        facts = {
            "base_model": base.name,
            "base_fingerprint": fingerprint_of(base.folder),
            "rank": model.adapter.config.rank,
            "versions": _versions(),
            "dtype": str(base.dtype).removeprefix("torch."),
            "device": base.device.type,
        }
        with disk_errors(self.store.folder), ExitStack() as stack:
            new = stack.enter_context(
                self.store.new_checkpoint(path, facts, user_metadata, ttl_seconds, recipients)
            )
            save_adapter(base, model.adapter, new.folder)
            if optimizer:
                metadata = {_THREADS: str(model.threads)}
                save_file(state, new.folder / OPTIMIZER, metadata=metadata)
            rest = stack.pop_all()

        def finish() -> int:
            with disk_errors(self.store.folder):
                rest.close()
            seconds = time.perf_counter() - start
            log.info("saved %s (%.1f MB) in %.2f s", path, new.size_bytes / 1e6, seconds)
            return new.size_bytes

        return finish

    def import_adapter(
        self, base_name: str, config: LoraConfig, folder: Path, checkpoint: Path
    ) -> None:
        """Write the adapter in a PEFT folder as the files of a checkpoint into a new folder.

        Raises:
            Refused: the folder does not hold finite weights that fit such an adapter.
        """
        base = self.bases.get(base_name)
        adapter = read_exported_adapter(base, folder, config)
        checkpoint.mkdir()
        with disk_errors(self.store.folder):
            save_adapter(base, adapter, checkpoint)

    def load(self, model_id: str, path: TinkerPath | Path, optimizer: bool) -> None:
        """Replace the adapter by that of a checkpoint or of a PEFT folder.

        The optimizer's state becomes that of the checkpoint, or a fresh one.
        """
        model = self.get(model_id)
        base = self.bases.get(model.base_name)
        if isinstance(path, Path):
            adapter = read_exported_adapter(base, path, model.adapter.config)
            model.adapter, model.dropped = adapter, None
            model.optimizer = new_state(adapter, model.optimizer.kind)
            model.version = object()
            return
        folder = self._checked(path, base, optimizer).folder
        file = folder / OPTIMIZER
        if optimizer and not file.is_file():
            raise Refused(
                f"{path} holds no optimizer state; load it without, or load a state that "
                "save_state wrote (tinker://RUN/weights/NAME)."
            )
        # Into a new adapter, so that a checkpoint that does not fit leaves the old one whole.
        adapter = new_adapter(base, model.adapter.config)
        kind = model.optimizer.kind
        state = new_state(adapter, kind)
        with _reading(path, ADAPTER_WEIGHTS):
            load_adapter_state(adapter, load_finite(folder / ADAPTER_WEIGHTS))
        if optimizer:
            with _reading(path, OPTIMIZER):
                state = load_state_tensors(adapter, load_finite(file), kind)
        model.adapter, model.optimizer, model.dropped = adapter, state, None
        model.version = object()
        if optimizer and (threads := _threads_of(file)):
            model.threads = self.bases.threads.kept(threads)

    def _checked(self, path: TinkerPath, base: BaseModel, optimizer: bool) -> CheckedCheckpoint:
        """A checkpoint whose files are as they were saved, for this base model.

        Raises:
            Refused: a file is damaged, or the weights of the base model are others now.
        """
        read = [ADAPTER_WEIGHTS, OPTIMIZER] if optimizer else [ADAPTER_WEIGHTS]
        checked = self.store.checked(path, read)
        if not (checked.folder / ADAPTER_WEIGHTS).is_file():
            raise Refused(damage_sentence(path, ADAPTER_WEIGHTS, "the file is gone"))
        saved = (checked.manifest or {}).get("base_fingerprint")
        if saved is not None and saved != fingerprint_of(base.folder):
            if not self.allow_changed_base:
                raise Refused(
                    f"the weights of {base.name} in {base.folder} are not those that {path} was "
                    "trained on. Put the old ones back, or start the engine with "
                    "--allow-changed-base."
                )
            log.warning(
                "%s is used with other weights of %s than it was trained on", path, base.name
            )
        return checked

    # ---- sampling clients

    def prompt_length(
        self, base_name: str, tokens: Sequence[int], images: Sequence[ImageChunk]
    ) -> int:
        """How many tokens a prompt has with the images in it."""
        base = self.bases.get(base_name)
        return len(with_prompt_images(base, SampleRequest(list(tokens), chunks=images)).prompt)

    def add_sampler(self, sampler_id: str, base_name: str, path: TinkerPath | Path | None) -> None:
        """Create a sampling client on a checkpoint, a PEFT folder, or the base model alone."""
        base = self.bases.get(base_name)
        if path is None:
            self._add_client(sampler_id, ("base", base_name), base_name, lambda: None)
            return
        if isinstance(path, Path):
            folder = path
            self._add_client(
                sampler_id,
                ("folder", base_name, str(folder)),
                base_name,
                lambda: read_exported_adapter(base, folder),
            )
            return
        config = self.store.run(path.run_id).lora
        checked = self._checked(path, base, optimizer=False)
        identity = None
        if checked.manifest is not None:
            sha256 = checked.manifest["files"][ADAPTER_WEIGHTS]["sha256"]
            identity = ("checkpoint", base_name, config, sha256)

        def load() -> Adapter:
            adapter = new_adapter(base, config)
            with _reading(path, ADAPTER_WEIGHTS):
                load_adapter_state(adapter, load_finite(checked.folder / ADAPTER_WEIGHTS))
            return adapter

        self._add_client(sampler_id, identity, base_name, load)

    def add_snapshot(self, sampler_id: str, model_id: str) -> None:
        """Create a sampling client on a training client's weights as they are now."""
        model = self.get(model_id)
        identity = ("snapshot", model.version)
        self._add_client(sampler_id, identity, model.base_name, lambda: snapshot(model.adapter))

    def _add_client(
        self,
        sampler_id: str,
        identity: Hashable,
        base_name: str,
        load: Callable[[], Adapter | None],
    ) -> None:
        """A sampling client of these weights, which are loaded if no other client has them."""
        same = [one for one in self.weights.values() if identity and one.identity == identity]
        if same:
            [weights] = same
        else:
            weights = Weights(f"weights:{next(self._numbers)}", identity, base_name, load())
            self.weights[weights.id] = weights
        weights.users.add(sampler_id)
        self.sampling[sampler_id] = weights.id
        self._use(weights.id)

    def weights_of(self, sampler_id: str) -> str:
        """The id of the weights that a sampling client samples from.

        Raises:
            Refused: there is no such client, or it has ended.
        """
        if sampler_id not in self.sampling:
            raise Refused(f"the sampling client {sampler_id} could not be created, or has ended.")
        return self.sampling[sampler_id]

    def batch_of(self, weights_id: str) -> str:
        """The id of the batch that requests to these weights join.

        It is one for all weights of a base model, if they can share a batch.
        """
        base_name = self.weights[weights_id].base_name
        return f"base:{base_name}" if self.sampler.groups_adapters else weights_id

    def join(self, weights_id: str, request: SampleRequest, sampler_id: str) -> Answering:
        """Let a request join those of its batch that are being answered.

        `sampler_id` is the client that sent it.

        Raises:
            Refused: something is wrong with the request.
        """
        weights = self.weights[weights_id]
        base = self.bases.get(weights.base_name)
        request = with_prompt_images(base, request)
        check_request(base, request)
        wanted, request = request.max_tokens, fitted(base, request)
        if request.max_tokens != wanted and sampler_id not in self._cut:
            self._cut.add(sampler_id)
            log.warning(
                "%s: max_tokens %s is beyond the context: a prompt of %d tokens leaves %d of %d "
                "(this client's later requests are cut without a word)",
                *(sampler_id, wanted, len(request.prompt), request.max_tokens, base.max_context),
            )
        if self.tempered_logprobs:
            request = replace(request, tempered_logprobs=True)
        if not weights.answering:
            self._use(weights_id)
        batch_id = self.batch_of(weights_id)
        running = self._batches.get(batch_id)
        if running is None:
            batch = self.sampler.batch(base, weights_id, self._decoder(base))
            running = self._batches[batch_id] = RunningBatch(weights.base_name, batch)
        answering = running.batch.add(request, weights.adapter)
        if request.progress is not None:
            request.progress.prompt_tokens = len(request.prompt)
        running.weights[answering] = weights
        weights.answering += 1
        return answering

    def can_sample(self, batch_id: str) -> bool:
        """Whether `sample_step` would do something now."""
        running = self._batches.get(batch_id)
        return running is not None and (bool(running.finished) or running.batch.is_ready)

    def sample_step(self, batch_id: str) -> list[Answering]:
        """Sample one token of each sequence of a batch; gives the finished requests."""
        running = self._batches[batch_id]
        if running.batch.sequences:
            self.bases.get(running.base_name)  # so that it is not the least lately used one
            self._step(running)
        finished, running.finished = running.finished, []
        for answering in finished:
            weights = running.weights.pop(answering)
            weights.answering -= 1
            self._use(weights.id)  # so that it is not the least lately used one
            self._drop_unused(weights)
        if not running.weights:
            del self._batches[batch_id]
        return finished

    def _step(self, running: RunningBatch) -> None:
        # Looked up for each step: under a steady load a batch never ends.
        set_threads(self.bases.threads_for(running.base_name))
        finished = running.batch.step()
        running.finished += finished
        for answering in finished:
            if answering.error is None:
                self._tokens["prompt"] += len(answering.request.prompt)
                self._tokens["sampled"] += sum(
                    len(sequence.tokens) for sequence in answering.result.sequences
                )

    def _finish_batches(self, base_name: str) -> None:
        """Answer all that samples from a base model, which is about to be unloaded."""

        def running() -> list[RunningBatch]:
            return [one for one in self._batches.values() if one.batch.sequences]

        threads = torch.get_num_threads()
        while any(one.base_name == base_name for one in running()):
            for one in running():  # those of other models may have the memory that it waits for
                self._step(one)
        set_threads(threads)

    def free_sampler(self, sampler_id: str) -> None:
        self._cut.discard(sampler_id)
        if sampler_id in self.sampling:
            weights = self.weights[self.sampling.pop(sampler_id)]
            weights.users.discard(sampler_id)
            self._drop_unused(weights)

    def _drop_unused(self, weights: Weights) -> None:
        if weights.users or weights.answering:
            return
        del self.weights[weights.id]
        self.sampler.forget(weights.id)
        self._forget(weights.id)

    # ---- memory

    def _use(self, name: str) -> None:
        """Load tensors into memory; others, least recently used first, are spilled."""
        client = self.training.get(name) or self.weights[name]
        if name not in self._held:
            if self.spilled.has(name):
                client.restore(self.spilled.take(name))
            tensors = client.tensors().values()
            # The gradients of a training client come and go: they are always counted.
            factor = 4 / 3 if isinstance(client, TrainingClient) else 1
            self._held[name] = int(factor * sum(tensor.nbytes for tensor in tensors))
        self._held.move_to_end(name)
        for other in [other for other in self._held if other != name]:
            if sum(self._held.values()) <= self.adapter_memory:
                break
            if other not in self.weights or not self.weights[other].answering:
                self._spill(other)

    def _spill(self, name: str) -> None:
        client = self.training.get(name) or self.weights[name]
        tensors = client.tensors()
        if tensors:  # the base model alone has none
            self.spilled.put(name, {key: tensor.cpu() for key, tensor in tensors.items()})
            client.clear()
            log.info("%s is idle: spilled to disk", name)
        del self._held[name]

    def _forget(self, name: str) -> None:
        self._held.pop(name, None)
        self.spilled.drop(name)

    def _decoder(self, base: BaseModel) -> Callable[[list[int]], str] | None:
        file = base.folder / TOKENIZER
        if not file.is_file():
            return None
        if base.folder not in self._decoders:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            self._decoders[base.folder] = lambda tokens: tokenizer.decode(
                tokens, skip_special_tokens=False
            )
        return self._decoders[base.folder]


def _gpu_memory(device: torch.device) -> dict[str, Any] | None:
    """The GPU's name and memory in bytes; `allocated` is by tensors of this process."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "total": total,
        "free": free,
        "reserved": torch.cuda.memory_reserved(device),
        "allocated": torch.cuda.memory_allocated(device),
    }


@contextmanager
def _reading(path: TinkerPath, file: str) -> Generator[None]:
    """Say of which checkpoint a file is that cannot be loaded.

    Raises:
        Refused: it is damaged, or does not fit the adapter.
    """
    try:
        yield
    except Refused as refusal:
        raise Refused(f"{file} of {path}: {refusal}") from None
    except NotFinite as reason:
        raise Refused(damage_sentence(path, file, str(reason))) from None
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if "out of memory" in str(error).lower():
            raise
        reason = f"it is not a whole safetensors file of such a state ({error})"
        raise Refused(damage_sentence(path, file, reason)) from None


def _threads_of(state: Path) -> int:
    """The CPU threads of the steps that led to a saved optimizer state; 0 if it does not say."""
    with safe_open(state, "pt") as tensors:
        number = (tensors.metadata() or {}).get(_THREADS, "")
    return int(number) if number.isdecimal() else 0


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of a base model's folder, computed again only when a file has changed."""
    files = sorted(folder.iterdir())
    facts = tuple((file.name, *_size_and_time(file)) for file in files if file.is_file())
    return _fingerprint(folder, facts)


@lru_cache(64)
def _fingerprint(folder: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    return base_fingerprint(folder)


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(1)
def _versions() -> dict[str, str]:
    return {
        "tinkersmith": __version__,
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
        "python": platform.python_version(),
    }


def _named(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{kind}.{name}": tensor for name, tensor in tensors.items()}


def _with_prefix(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{kind}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}.")
    }
