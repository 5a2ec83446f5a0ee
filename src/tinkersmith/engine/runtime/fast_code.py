"""A loaded model -> the same with the fastest kernels of this machine that are right.

kernels/choose.py chooses; this module compiles what it chooses from, and checks the result.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tinkersmith.engine.kernels import varlen_attention
from tinkersmith.engine.kernels.choose import Means, choose_kernels, with_torch_kernels
from tinkersmith.engine.kernels.native.build import Library, cache_folder, native_library
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.log import log
from tinkersmith.engine.model.base_model import BaseModel, RunCheck, run_now
from tinkersmith.engine.runtime.compilation import compiled_elementwise
from tinkersmith.engine.runtime.experimental import NOTHING, Experimental
from tinkersmith.engine.sampling.self_check import decoding_difference
from tinkersmith.engine.training.self_check import gradient_difference

TINY_MODEL = 20_000_000  # parameters
# How far LoRA gradients and logits may be from torch's, relative to their norm: both are rounded.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


class _WrongNumbers(Exception):
    """The C++ functions give other numbers than torch."""


def with_fast_code(
    base: BaseModel, experimental: Experimental = NOTHING, run_check: RunCheck = run_now
) -> BaseModel:
    """Give a model the fastest kernels of this machine; compiled code is kept for later starts.

    Raises:
        Refused: an experimental option is not possible for this model.
    """
    if base.dense is None:
        return experimental.with_graphs(base)
    products = experimental.products(base)
    if base.device.type == "cpu" and products is TorchProducts:
        library = native_library(cache_folder(), products=base.dtype == torch.bfloat16)
        if (
            library is not None
            and (faster := with_native_code(base, library, run_check)) is not base
        ):
            return faster
    dense = base.dense
    shape = dense.heads, dense.key_heads, dense.head_size
    varlen = varlen_attention.works(*shape, base.dtype, base.device)
    means = Means(varlen=varlen, products=products)
    # A tiny model's functions are not worth the wait for the compiler.
    if base.model.num_parameters() >= TINY_MODEL:
        means = replace(means, compiled=compiled_elementwise(base, means, cache_folder()))
    return experimental.with_graphs(replace(base, kernels=choose_kernels(base, means)))


def with_native_code(base: BaseModel, library: Library, run_check: RunCheck = run_now) -> BaseModel:
    """The model with the C++ functions, or as it is, with a warning, if they are wrong here."""
    if base.dense is None:
        return base
    kernels = choose_kernels(base, Means(library))
    # The file is named after all that the machine code depends on.
    name = Path(str(library.functions._name)).name

    def is_right(what: str, difference: Callable[..., float], instead: str) -> bool:
        def check() -> float:
            worst = difference(
                with_torch_kernels(base), lambda shallow: replace(shallow, kernels=kernels)
            )
            if not worst < _TOLERANCE[base.dtype]:
                raise _WrongNumbers(f"{instead} is off by {worst:.1e} and is not used")
            return worst

        try:
            run_check(f"{what} of {name}", check)
        except _WrongNumbers as error:
            log.warning("%s", error)
            return False
        return True

    if not is_right("gradients", gradient_difference, "native code"):
        return base
    if not is_right("decoding", decoding_difference, "native decoding"):
        plain = with_torch_kernels(base).kernels
        assert plain is not None
        kernels = replace(kernels, decoding=plain.decoding)
    return replace(base, kernels=kernels)
