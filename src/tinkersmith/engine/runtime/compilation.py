"""Compile a model's element-wise functions at loading, so that no training step waits for it.

The machine code is kept on disk, where a later start reads it. Without a compiler the functions run
uncompiled, somewhat slower.
"""

import os
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from tinkersmith.engine.kernels.choose import Means, choose_kernels
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import Elementwise
from tinkersmith.engine.training.step import forward, forward_backward

# Tokens of the passes that show all sizes to the compiler: less than a block of rows, another such
# number, and several blocks.
_LENGTHS = (130, 300, 1600)
# Their loops are slow unless the head size is a constant: compiled anew for every other size.
_CONSTANT_SIZES = ("split_heads", "split_heads_backward")
_PROGRAMS = 64  # of one function, for all models; beyond that it runs uncompiled


def compiled_elementwise(base: BaseModel, means: Means, folder: Path) -> Elementwise | None:
    """Compiled functions for a model's dense path, kept under `folder`; None if that fails.

    `means` is what the model's kernels are otherwise made from.
    """
    start = time.perf_counter()
    # Only this user may write there: the code in it is run.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes of their own
    plain = TORCH_ELEMENTWISE
    compiled = {
        name: torch.compile(getattr(plain, name), dynamic=None if name in _CONSTANT_SIZES else True)
        for name in (field.name for field in fields(plain))
    }
    elementwise = Elementwise(**compiled)
    kernels = choose_kernels(base, replace(means, compiled=elementwise))
    try:
        _configure(base.device)
        _warm_up(replace(base, kernels=kernels))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("training runs without compiled functions, somewhat slower: %s", reason[0])
        return None
    log.info("compiled the element-wise work in %.1f s", time.perf_counter() - start)
    return elementwise


def _configure(device: torch.device) -> None:
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    dynamo.recompile_limit = _PROGRAMS
    if device.type == "cpu":  # otherwise today's number of threads would be compiled in
        inductor.cpp.dynamic_threads = True


def _warm_up(base: BaseModel) -> None:
    """Run passes through the first two layers that use every function in every form."""
    assert base.dense is not None
    base = replace(base, dense=replace(base.dense, layers=base.dense.layers[:2], longest=None))
    adapter = new_adapter(base, LoraConfig(1, 0, train_unembed=False))
    for length in _LENGTHS:
        tokens = np.arange(min(length, base.max_context)) % base.vocab_size
        weights = (np.arange(len(tokens)) < 300).astype(np.float32)
        datums = [Datum(tokens, {"target_tokens": tokens, "weights": weights})]
        for only_graded in (False, True):
            forward(base, adapter, datums, "cross_entropy", {}, only_graded=only_graded)
            forward_backward(base, adapter, datums, "cross_entropy", {}, only_graded=only_graded)
