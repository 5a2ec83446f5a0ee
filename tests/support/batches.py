"""Batches of random datums, as the engine's training step takes them."""

import numpy as np

from tinkersmith.engine.messages import Datum


def random_datums(rng: np.random.Generator, count: int) -> list[Datum]:
    datums = []
    for length in rng.integers(2, 60, count):
        tokens = rng.integers(0, 250, length + 1)
        weights = rng.choice([0.0, 0.5, 1.0, -0.3], length).astype(np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    return datums
