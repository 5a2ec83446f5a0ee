"""Sequences -> packs: which of them share one forward pass, with no padding between them."""

from collections.abc import Sequence

PACK_TOKENS = 4096  # a good size on CPU; see benchmarks/


def packs(lengths: Sequence[int], budget: int = PACK_TOKENS) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, in order; a longer sequence stands alone."""
    groups: list[list[int]] = []
    filled = 0
    for index, length in enumerate(lengths):
        if not groups or filled + length > budget:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += length
    return groups
