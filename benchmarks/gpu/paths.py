"""The engine's ways through a model, each switched on by itself: a base model -> the same, faster.

Nearly all that this benchmark knows of the engine's inside stands here.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from tinkersmith.engine.gpu.recorded_passes import with_recorded_passes
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.native.build import cache_folder
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime.compilation import compile_elementwise
from tinkersmith.engine.runtime.fast_code import with_fast_code

DEFAULT, TILES, VARLEN = "default", "tiles", "varlen"
COMPILED, GRAPHS, LAYERS = "compiled", "graphs", "layers"


class Unusable(Exception):
    """The engine does not take this path here; the message is its own reason."""


def default(base: BaseModel) -> BaseModel:
    """What the engine does by itself on this machine."""
    return with_fast_code(base)


def layers(base: BaseModel) -> BaseModel:
    """Through transformers' own layers and autograd, in packs."""
    return replace(base, dense=None)


def tiles(base: BaseModel) -> BaseModel:
    """The written-out pass with attention in tiles, all by torch's plain operations."""
    assert base.dense is not None
    share = base.dense.heads // base.dense.key_heads
    attention = partial(TileAttention, queries_per_key=share, dtype=base.dtype, device=base.device)
    return replace(base, dense=replace(base.dense, attention=attention))


def varlen(base: BaseModel) -> BaseModel:
    """The written-out pass with torch's variable-length FlashAttention."""
    assert base.dense is not None
    attention = partial(of_documents, device=base.device)
    return replace(base, dense=replace(base.dense, attention=attention))


def compiled(base: BaseModel) -> BaseModel:
    """With the element-wise work compiled by torch.compile."""
    with _messages() as said:
        faster = compile_elementwise(base, cache_folder())
    if faster is base:
        raise Unusable("; ".join(said) or "the engine does not compile this model")
    return faster


def graphs(base: BaseModel) -> BaseModel:
    """With passes as CUDA graphs, also where the engine finds a model too large to gain by them."""
    with _messages() as said:
        recording = with_recorded_passes(varlen(base))
    if recording.dense is None or recording.dense.recorded is None:
        raise Unusable("; ".join(said) or "the engine makes no CUDA graphs of this model")
    recording.dense.recorded._is_worth_it = lambda adapter, shape: True
    return recording


def described(base: BaseModel) -> str:
    """Which of the paths `base` takes, for a reader of the results."""
    dense = base.dense
    if dense is None:
        return "transformers' layers"
    with_varlen = getattr(dense.attention, "func", None) is of_documents
    parts = ["variable-length FlashAttention" if with_varlen else "tiles or native attention"]
    if dense.elementwise != TORCH_ELEMENTWISE:
        parts.append("compiled or native element-wise work")
    if dense.recorded is not None:
        parts.append("CUDA graphs of small passes")
    return ", ".join(parts)


def count_graphs(base: BaseModel) -> int:
    """How many CUDA graphs were made of `base`'s passes."""
    assert base.dense is not None and base.dense.recorded is not None
    return sum(made is not None for made in base.dense.recorded.passes.values())


PATHS: dict[str, Callable[[BaseModel], BaseModel]] = {
    DEFAULT: default,
    LAYERS: layers,
    TILES: tiles,
    VARLEN: varlen,
    COMPILED: compiled,
    GRAPHS: graphs,
}


@contextmanager
def _messages() -> Iterator[list[str]]:
    """What the engine logs inside the block."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("tinkersmith.engine")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
