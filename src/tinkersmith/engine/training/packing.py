"""Lengths of sequences -> packs: which sequences share one forward pass, without padding."""

from collections.abc import Sequence

PACK_TOKENS = 2048  # on a CPU as fast as 4096, with half of the memory; see benchmarks/
_GPU_PACK_TOKENS = 8192  # where products of 4,096 tokens are large enough already; not measured


def packs(lengths: Sequence[int], budget: int = PACK_TOKENS) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens; a longer sequence stands alone.

    First fit, the longest first: at most 11/9 of the fewest groups (Johnson 1973).
    """
    groups: list[list[int]] = []
    free: list[int] = []  # tokens of each group
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, left in enumerate(free) if left >= lengths[index]), len(groups))
        if place == len(groups):
            groups.append([])
            free.append(budget)
        groups[place].append(index)
        free[place] -= lengths[index]
    return groups


def gpu_budget(memory: float, per_token: float) -> int:
    """Tokens of a pack that leave `per_token` bytes each in half of a GPU's memory."""
    return int(min(_GPU_PACK_TOKENS, max(PACK_TOKENS, memory / 2 // per_token)))
