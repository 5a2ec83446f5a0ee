"""Whether a model's kernels decode as plain torch does: compared when the model is loaded."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun

_LENGTHS = (40, 1, 25)  # tokens before the first step
_STEPS = 4


@torch.no_grad()
def decoding_difference(base: BaseModel, faster: Callable[[BaseModel], BaseModel]) -> float:
    """Relative difference of the logits of a few steps, and of what is known of them.

    Only the first layer and the output layer are computed.

    `base` has plain kernels, and `faster` gives it others.
    """
    assert base.dense is not None
    shallow = replace(base, dense=replace(base.dense, layers=base.dense.layers[:1], longest=None))
    theirs, ours = (_logits(model) for model in (shallow, faster(shallow)))
    return float((ours - theirs).norm() / theirs.norm())


def _logits(base: BaseModel) -> torch.Tensor:
    rng = np.random.default_rng(0)
    decoder = DenseDecoder(base, len(_LENGTHS))
    runs = [TokenRun(rng.integers(0, base.vocab_size, length).tolist()) for length in _LENGTHS]
    decoder.prefill(runs, [False] * len(runs))
    for slot, run in enumerate(runs):
        decoder.put(slot, run)
    logits: list[torch.Tensor] = []
    for _ in range(_STEPS):
        tokens = rng.integers(0, base.vocab_size, len(runs)).tolist()
        step, exact = decoder.step(tokens, range(len(runs)), [None] * len(runs))
        assert step is not None
        step = step.float()
        normaliser = step.logsumexp(-1, keepdim=True) if exact is None else exact.normaliser()
        logits.append(torch.cat((step, normaliser), -1))
    return torch.cat(logits)
