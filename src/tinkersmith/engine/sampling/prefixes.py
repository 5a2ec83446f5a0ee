"""Prompts -> a forest of token runs, so that a shared prefix is computed only once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.layer_states import LayerStates
from tinkersmith.engine.model.lora import Adapter

_WORTH = 32  # tokens that a shared run must save, as a run of its own has a cost, too


@dataclass(slots=True, eq=False)
class TokenRun:
    """Tokens that follow those of `parent`; `past` is their KV cache, once computed.

    A run lives as long as a waiting prompt needs it. It is of one adapter, like its parents: what
    one adapter computes is never read with another.
    """

    tokens: list[int]
    adapter: Adapter | None = None  # None: the base model alone
    parent: "TokenRun | None" = None
    past: KeysAndValues | None = None
    states: LayerStates | None = None  # of layers that have one, after the last token
    read_for: object = None  # the request for which `past` was computed
    # How far positions behind it are from numbers of tokens, for its images and those before it.
    shift: int = 0

    def chain(self) -> list["TokenRun"]:
        """All runs from the first tokens to this one."""
        runs: list[TokenRun] = []
        run: TokenRun | None = self
        while run is not None:
            runs.append(run)
            run = run.parent
        return runs[::-1]

    @property
    def start(self) -> int:
        """How many tokens are before the first."""
        return sum(len(run.tokens) for run in self.chain()[:-1])


def split_run(run: TokenRun, count: int) -> TokenRun:
    """Make the first `count` tokens of a run, which has no past yet, a run of their own before it.

    Whoever refers to `run` still has all of its tokens, now in two runs.
    """
    head = TokenRun(run.tokens[:count], run.adapter, run.parent, read_for=run.read_for)
    run.tokens, run.parent = run.tokens[count:], head
    return head


def shared_runs(prompts: Sequence[list[int]], adapter: Adapter | None = None) -> list[TokenRun]:
    """The last run of each prompt of an adapter; its parents hold the tokens before it.

    Prompts are sorted, so that those with a common prefix are neighbours. A range of prompts shares
    what the pair of neighbours shares that has the least in common. Every range is split where its
    neighbours share no more than that, until one prompt is left.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    arrays = [np.asarray(prompts[index], np.int64) for index in order]
    common = [_common(a, b) for a, b in pairwise(arrays)]
    last: list[TokenRun] = [TokenRun([])] * len(prompts)
    ranges: list[tuple[int, int, int, TokenRun | None]] = [(0, len(prompts), 0, None)]
    while ranges:
        low, high, start, parent = ranges.pop()
        if high - low == 1:
            tokens = list(prompts[order[low]][start:])
            whole = parent is not None and not tokens
            last[order[low]] = (
                parent if parent is not None and whole else TokenRun(tokens, adapter, parent)
            )
            continue
        shared = min(common[low : high - 1])
        if (shared - start) * (high - low - 1) >= _WORTH:
            parent = TokenRun(list(prompts[order[low]][start:shared]), adapter, parent)
            start = shared
        bounds = [low, *(i + 1 for i in range(low, high - 1) if common[i] == shared), high]
        ranges += [(a, b, start, parent) for a, b in pairwise(bounds)]
    return last


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """The length of the common prefix."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
