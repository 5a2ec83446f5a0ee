"""Epochs, shuffling, batches and the learning rate: pure functions of seed and step.

A resumed run asks for the same step and gets the same batch. Steps are counted from 0.
"""

import math
from functools import lru_cache

import numpy as np

from tinkersmith.data.shuffle import shuffled


def steps_per_epoch(n: int, batch_size: int) -> int:
    """How many batches hold `n` samples; the last one may be short."""
    return -(-n // batch_size)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The indices of the samples that a step trains on: (B,) int64, each below `n`.

    Each epoch has a permutation of its own; its last batch may be short.
    """
    epoch, place = divmod(step, steps_per_epoch(n, batch_size))
    return _epoch_order(n, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def learning_rate_at(
    step: int, total_steps: int, peak: float, schedule: str, warmup_ratio: float
) -> float:
    """The learning rate of a step: linear warmup to `peak`, then what `schedule` says.

    Args:
        step: counted from 0.
        schedule: "constant", or "linear" or "cosine" decay that ends near 0.
        warmup_ratio: the share of all steps that warm up.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    left = max(total_steps - step, 0) / max(total_steps - warmup, 1)  # 1 at the peak, 0 at the end
    if schedule == "linear":
        return peak * left
    return peak * 0.5 * (1 - math.cos(math.pi * left))


@lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    order = shuffled(n, seed, epoch)  # (N,)
    order.flags.writeable = False
    return order
