"""Prompts -> a forest of token runs, so that what several of them begin with is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tinkersmith.engine.model.attention import KeysAndValues

_WORTH = 32  # tokens that a shared run must save: a document of its own costs a little, too


@dataclass(slots=True, eq=False)
class Run:
    """Tokens that follow those of `parent`; `past` is what they left in each layer, once computed.

    A run lives as long as a prompt that waits needs it.
    """

    tokens: list[int]
    parent: "Run | None" = None
    past: KeysAndValues | None = None

    def chain(self) -> list["Run"]:
        """From the first tokens of all to this run."""
        runs: list[Run] = []
        run: Run | None = self
        while run is not None:
            runs.append(run)
            run = run.parent
        return runs[::-1]

    @property
    def start(self) -> int:
        """The position of the first token."""
        return sum(len(run.tokens) for run in self.chain()[:-1])


def shared_runs(prompts: Sequence[list[int]]) -> list[Run]:
    """The last run of each prompt; the runs before it are those of its parents.

    Sorted, prompts that begin alike stand together: a range of them shares the least that two
    neighbours in it share.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    arrays = [np.asarray(prompts[index], np.int64) for index in order]
    common = [_common(a, b) for a, b in pairwise(arrays)]
    last: list[Run] = [Run([])] * len(prompts)
    ranges: list[tuple[int, int, int, Run | None]] = [(0, len(prompts), 0, None)]
    while ranges:
        low, high, start, parent = ranges.pop()
        if high - low == 1:
            tokens = list(prompts[order[low]][start:])
            whole = parent is not None and not tokens
            last[order[low]] = parent if parent is not None and whole else Run(tokens, parent)
            continue
        shared = min(common[low : high - 1])
        if (shared - start) * (high - low - 1) >= _WORTH:
            parent = Run(list(prompts[order[low]][start:shared]), parent)
            start = shared
        bounds = [low, *(i + 1 for i in range(low, high - 1) if common[i] == shared), high]
        ranges += [(a, b, start, parent) for a, b in pairwise(bounds)]
    return last


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens are the same."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
