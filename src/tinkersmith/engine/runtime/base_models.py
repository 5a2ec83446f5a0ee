"""The base models that are loaded: each at its first use, the least lately used unloaded for room.

Everything here runs on the engine thread, between two uses of a model: whoever needs one asks for
it by name every time, and keeps no reference, or gives it up when it is told of the unloading.
"""

import gc
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.memory import free_memory, return_freed_memory
from tinkersmith.engine.hardware.processor import multiplies_bf16
from tinkersmith.engine.hardware.threads import ThreadChoice, requested_threads
from tinkersmith.engine.kernels.native.build import cache_folder, start_building
from tinkersmith.engine.log import log
from tinkersmith.engine.model.base_model import (
    BaseModel,
    load_base_model,
    memory_of_weights,
    parameter_count,
)
from tinkersmith.engine.runtime.experimental import NOTHING, Experimental
from tinkersmith.engine.runtime.fast_code import TINY_MODEL, with_fast_code
from tinkersmith.engine.runtime.remembered_checks import RememberedChecks, facts_of_model
from tinkersmith.engine.storage.catalogue import Catalogue

_SPARE = 1.1  # of the weights' memory is asked for: a model has some besides
# A folder is read once: the number is asked for with every piece of work.
_parameters_of = lru_cache(parameter_count)


class BaseModels:
    def __init__(
        self,
        catalogue: Catalogue,
        dtype: str = "auto",
        device: str = "auto",
        threads: int = 0,  # 0: OMP_NUM_THREADS, or the engine's choice
        experimental: Experimental = NOTHING,
        before_unload: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.catalogue, self.dtype = catalogue, dtype
        self.threads = ThreadChoice(requested_threads(threads, os.environ))
        self.device, self.experimental = choose_device(device), experimental
        self._before_unload = before_unload
        self._loaded: OrderedDict[str, BaseModel] = OrderedDict()  # the least lately used first
        self._bytes: dict[str, int] = {}  # of each loaded model's weights

    def get(self, name: str) -> BaseModel:
        """The model of that name, loaded if it is not there.

        Raises:
            Refused: there is no such model, it cannot be trained here, or there is no room.
        """
        if name not in self._loaded:
            threads = torch.get_num_threads()
            try:
                self._loaded[name] = self._load(name)
            finally:
                set_threads(threads)  # those of the work for which the model is loaded
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def dtypes(self) -> dict[str, str]:
        """The precision of each loaded model. Any thread may call it."""
        return {name: str(base.dtype) for name, base in list(self._loaded.items())}

    def memory(self) -> dict[str, int]:
        """Bytes of the weights of each loaded model. Any thread may call it."""
        return dict(self._bytes)

    def threads_for(self, name: str) -> int:
        """How many threads to begin work on this model with, as busy as the machine is now."""
        return self.threads.number(small=_parameters_of(self.catalogue.folder(name)) < TINY_MODEL)

    def _load(self, name: str) -> BaseModel:
        start = time.perf_counter()
        folder = self.catalogue.folder(name)
        storage = self.experimental.storage()
        needed = memory_of_weights(folder, self.dtype, self.device, storage)
        self._make_room(name, int(_SPARE * needed))
        if self.device == "cpu" and needed == torch.bfloat16.itemsize * _parameters_of(folder):
            start_building(cache_folder(), products=True)  # while the weights are read
        set_threads(self.threads_for(name))  # the checks at loading compute, too
        run_check = RememberedChecks(
            cache_folder() / "checks",
            facts_of_model(folder, storage.name if storage else self.dtype, self.device),
        )
        base = load_base_model(name, folder, self.dtype, self.device, storage, run_check)
        seconds = time.perf_counter() - start
        dtype = base.model.dtype if storage is None else storage.name
        if base.dtype != base.model.dtype:
            dtype = f"{dtype}, computed in {base.dtype}"
        log.info("loaded %s (%s, %s) in %.1f s", name, dtype, base.device, seconds)
        if base.device.type == "cpu" and base.dtype == torch.bfloat16 and not multiplies_bf16():
            log.warning(
                "this processor has no instructions for bfloat16, so %s will be slow; "
                "--dtype float32 is faster and needs twice the memory",
                name,
            )
        base = with_fast_code(base, self.experimental, run_check)
        self._bytes[name] = _bytes_of(base)
        self.catalogue.contexts[name] = base.max_context
        return base

    def _make_room(self, name: str, needed: int) -> None:
        device = torch.device(self.device)
        while (free := free_memory(device)) < needed and self._loaded:
            idle = next(iter(self._loaded))
            self._before_unload(idle)
            del self._loaded[idle], self._bytes[idle]
            gc.collect()  # a model's modules refer to each other
            return_freed_memory()
            log.info("unloaded %s to make room for %s; it is loaded again when used", idle, name)
        if free < needed:
            raise Refused(
                f"{name} needs about {needed / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are "
                "free; end other programs, or use a smaller model."
            )


def _bytes_of(base: BaseModel) -> int:
    """Bytes of a model's weights. Tensors that share their memory count once."""
    tensors = [*base.model.parameters(), *base.model.buffers()]
    if base.vision is not None:
        tensors += [*base.vision.tower.parameters(), *base.vision.tower.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def set_threads(number: int) -> None:
    """Let torch and the C++ functions compute with so many threads from now on."""
    if number != torch.get_num_threads():
        torch.set_num_threads(number)


def choose_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
