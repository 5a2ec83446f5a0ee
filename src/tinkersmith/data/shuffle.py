"""A seed -> an order of samples that is the same on every machine and numpy version."""

import numpy as np

VALIDATION_STREAM = 2**31  # a seed that no epoch uses: the shuffle that chooses validation samples


def shuffled(n: int, *seeds: int) -> np.ndarray:
    """A permutation of `n` indices that only `seeds` decide: (N,) int64."""
    # Raw PCG64 output is the same in every numpy version, unlike Generator.permutation.
    return np.argsort(np.random.PCG64(seeds).random_raw(n), kind="stable")
