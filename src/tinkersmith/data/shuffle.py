"""A seed -> an order of samples that is the same on every machine and numpy version."""

import numpy as np

VALIDATION_STREAM = 2**31  # keeps the shuffle that sets validation apart from those of the epochs


def shuffled(n: int, *seeds: int) -> np.ndarray:
    """(N,) int64: a permutation that only `seeds` decide."""
    # Sorting raw PCG64 output, whose stream numpy keeps for ever, unlike Generator.permutation's.
    return np.argsort(np.random.PCG64(seeds).random_raw(n), kind="stable")
