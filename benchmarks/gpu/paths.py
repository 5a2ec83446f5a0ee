"""The engine's ways through a model, each switched on by itself.

Nearly all that this benchmark knows of the engine's inside stands here.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.models import base_of
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.gpu.cuda_graphs import CudaGraphs
from tinkersmith.engine.gpu.vllm_sampler import VllmSampler
from tinkersmith.engine.kernels.choose import Means, choose_kernels, with_torch_kernels
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.native.build import cache_folder
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime.compilation import compiled_elementwise
from tinkersmith.engine.runtime.experimental import NOTHING, Experimental
from tinkersmith.engine.runtime.fast_code import with_fast_code

DEFAULT, TILES, VARLEN, COMPILED = "default", "tiles", "varlen", "compiled"
GRAPHS, FLOAT8 = "graphs", "float8"
# The engine's options, which are off unless a user asks for them.
OPTIONS = {GRAPHS: Experimental(graphs=True), FLOAT8: Experimental(float8=True)}
VLLM = Experimental(vllm=True)


def base_on(path: str, model: PreTrainedModel) -> BaseModel:
    """`model`, made with the engine's attention, as the engine computes it on one of the PATHS.

    Raises:
        Refused: the engine does not take this path here; the message is its own reason.
    """
    option = OPTIONS.get(path, NOTHING)
    option.check(model.device)
    return PATHS[path](base_of(model, option.storage()))


def _varlen(base: BaseModel) -> BaseModel:
    """With torch's variable-length FlashAttention, whether or not the engine finds it right."""
    return replace(base, kernels=choose_kernels(base, Means(varlen=True)))


def _compiled(base: BaseModel) -> BaseModel:
    """With the element-wise work compiled by torch.compile, however small the model is."""
    with _messages() as messages:
        elementwise = compiled_elementwise(base, Means(), cache_folder())
    if elementwise is None:
        raise Refused("; ".join(messages))
    return replace(base, kernels=choose_kernels(base, Means(compiled=elementwise)))


def _graphs(base: BaseModel) -> BaseModel:
    """With all training passes as CUDA graphs; a pass that cannot be captured is an error.

    The engine leaves passes that it finds too large to gain by it as they are.
    """
    base = with_fast_code(base, OPTIONS[GRAPHS])
    graphs = _graphs_of(base)
    graphs.strict = True
    graphs._is_worth_it = lambda adapter, shape: True
    return base


# DEFAULT is what the engine does by itself; TILES computes everything by torch's plain operations.
PATHS: dict[str, Callable[[BaseModel], BaseModel]] = {
    DEFAULT: with_fast_code,
    TILES: with_torch_kernels,
    VARLEN: _varlen,
    COMPILED: _compiled,
    GRAPHS: _graphs,
    FLOAT8: partial(with_fast_code, experimental=OPTIONS[FLOAT8]),
}


def described(base: BaseModel) -> str:
    """Name what computes `base`, for a reader of the results."""
    kernels = base.kernels
    if kernels is None:
        return "transformers' layers"
    with_varlen = getattr(kernels.attention, "func", None) is of_documents
    parts = ["variable-length FlashAttention" if with_varlen else "tiles or C++ attention"]
    if kernels.elementwise != TORCH_ELEMENTWISE:
        parts.append("compiled or C++ element-wise work")
    parts.append(type(kernels.products).__name__)
    if kernels.prepared is not None:
        parts.append("CUDA graphs of training passes")
    return ", ".join(parts)


def count_graphs(base: BaseModel) -> int:
    """How many CUDA graphs were captured of the training passes of a base on GRAPHS."""
    return sum(graph_pass is not None for graph_pass in _graphs_of(base).passes.values())


def _graphs_of(base: BaseModel) -> CudaGraphs:
    assert base.kernels is not None
    graphs = getattr(base.kernels.prepared, "__self__", None)
    assert isinstance(graphs, CudaGraphs)
    return graphs


def vllm_sampler(device: str) -> VllmSampler:
    """The engine's sampler through vLLM.

    Raises:
        Refused: the engine does not sample by vLLM here.
    """
    VLLM.check(torch.device(device))
    sampler = VLLM.sampler()
    assert isinstance(sampler, VllmSampler)
    return sampler


@contextmanager
def _messages() -> Iterator[list[str]]:
    """What the engine logs inside the block."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("tinkersmith.engine")
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)
