"""The engine's ways through a model, each switched on by itself: a base model -> the same, faster.

Nearly all that this benchmark knows of the engine's inside stands here.
"""

from collections.abc import Callable
from dataclasses import replace

from tinkersmith.engine.gpu.cuda_graphs import CudaGraphs, with_cuda_graphs
from tinkersmith.engine.kernels.choose import Means, choose_kernels, with_torch_kernels
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.native.build import cache_folder
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime.compilation import compiled_elementwise
from tinkersmith.engine.runtime.experimental import Experimental
from tinkersmith.engine.runtime.fast_code import with_fast_code

DEFAULT, TILES, VARLEN = "default", "tiles", "varlen"
COMPILED, GRAPHS, LAYERS = "compiled", "graphs", "layers"


class Unusable(Exception):
    """The engine does not take this path here."""


def default(base: BaseModel) -> BaseModel:
    """The path that the engine takes by itself on this machine."""
    return with_fast_code(base)


def float8(base: BaseModel) -> BaseModel:
    """The engine's path for a base whose layers are stored in 8 bits."""
    return with_fast_code(base, Experimental(float8=True))


def layers(base: BaseModel) -> BaseModel:
    """Through transformers' own layers and autograd, in packs."""
    return replace(base, dense=None, kernels=None)


def tiles(base: BaseModel) -> BaseModel:
    """The written-out pass with attention in tiles, all by torch's plain operations."""
    return with_torch_kernels(base)


def varlen(base: BaseModel) -> BaseModel:
    """The written-out pass with torch's variable-length FlashAttention."""
    return replace(base, kernels=choose_kernels(base, Means(varlen=True)))


def compiled(base: BaseModel) -> BaseModel:
    """With the element-wise work compiled by torch.compile, and attention in tiles."""
    return _compiled(base, Means())


def varlen_compiled(base: BaseModel) -> BaseModel:
    """With variable-length FlashAttention and the element-wise work compiled."""
    return _compiled(base, Means(varlen=True))


def graphs(base: BaseModel) -> BaseModel:
    """With passes as CUDA graphs, also where the engine finds a model too large to gain by them.

    Raises:
        Refused: the engine cannot make them here, or their gradients are wrong.
    """
    capturing = with_cuda_graphs(base if base.kernels is not None else varlen(base))
    _graphs_of(capturing)._is_worth_it = lambda adapter, shape: True
    return capturing


def count_graphs(base: BaseModel) -> int:
    """How many of `base`'s passes were captured as CUDA graphs."""
    return sum(captured is not None for captured in _graphs_of(base).passes.values())


def described(base: BaseModel) -> str:
    """Name the parts that compute `base`, for a reader of the results."""
    kernels = base.kernels
    if kernels is None:
        return "transformers' layers"
    with_varlen = getattr(kernels.attention, "func", None) is of_documents
    parts = ["variable-length FlashAttention" if with_varlen else "tiles or C++ attention"]
    if kernels.elementwise != TORCH_ELEMENTWISE:
        parts.append("compiled or C++ element-wise work")
    parts.append(type(kernels.products).__name__)
    if kernels.prepared is not None:
        parts.append("CUDA graphs")
    return ", ".join(parts)


def _compiled(base: BaseModel, means: Means) -> BaseModel:
    elementwise = compiled_elementwise(base, means, cache_folder())
    if elementwise is None:
        raise Unusable("the element-wise work cannot be compiled; the log says why")
    return replace(base, kernels=choose_kernels(base, replace(means, compiled=elementwise)))


def _graphs_of(base: BaseModel) -> CudaGraphs:
    assert base.kernels is not None and base.kernels.prepared is not None
    return base.kernels.prepared.__self__  # type: ignore[attr-defined] # its method `begin`


PATHS: dict[str, Callable[[BaseModel], BaseModel]] = {
    DEFAULT: default,
    LAYERS: layers,
    TILES: tiles,
    VARLEN: varlen,
    COMPILED: compiled,
    GRAPHS: graphs,
}
