"""Sequences -> packs: which of them share one forward pass, with no padding between them."""

from collections.abc import Sequence

PACK_TOKENS = 2048  # on a CPU as fast as 4096, with half of the memory; see benchmarks/


def packs(lengths: Sequence[int], budget: int = PACK_TOKENS) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens; a longer sequence stands alone.

    First fit, the longest first: at most 11/9 of the fewest groups (Johnson 1973).
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(budget)
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups
