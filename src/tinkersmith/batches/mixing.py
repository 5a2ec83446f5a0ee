"""The weights of DATA_FILES -> how often each epoch takes each sample.

Everything is a pure function of seed and epoch, so that a resumed run mixes as it would have. Over
k epochs a sample of a file with weight w is taken k * w times, give or take one. An epoch takes a
whole number of samples of each file, at least one, which weights of small files are rounded to.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tinkersmith.data.shuffle import shuffled
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.sources.find import look_up

_MIXING_STREAM = 2**31 + 1  # a seed that neither an epoch nor the validation set uses


@dataclass(frozen=True, slots=True)
class Share:
    """How often epochs take the samples of one name in DATA_FILES, which may be several files."""

    name: str
    samples: int
    weight: float

    @property
    def taken(self) -> int:
        """How many samples each epoch takes, those that it takes twice counted twice."""
        return max(1, round(self.samples * self.weight)) if self.samples else 0

    def times(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """How often `epoch` takes the samples at some positions, counted from 0: (N,) int64."""
        whole, rest = divmod(self.taken, self.samples)
        if not rest:
            return np.full(len(positions), whole)
        # Consecutive epochs take consecutive windows of a circle, on which neighbours lie far
        # apart: each chunk of a stream gives about the same share to every epoch.
        on_circle = positions * _step_around(self.samples) % self.samples
        return whole + ((on_circle - epoch * rest) % self.samples < rest)

    def __str__(self) -> str:
        whole, rest = divmod(self.taken, self.samples) if self.samples else (0, 0)
        if not whole:
            return f"{rest:,} of {counted(self.samples, 'sample')} of {self.name}"
        words = f"{whole:,} x {counted(self.samples, 'sample')} of {self.name}"
        return f"{words} ({rest:,} of them once more)" if rest else words


def names_of_files(weights: Mapping[str, float]) -> dict[str, str]:
    """The name in DATA_FILES that each file comes from.

    Raises:
        UserError: the weight of a name has no effect, since other names before it have its files.
    """
    try:
        by_name = look_up(list(weights)).by_name
    except UserError:  # no file is there, which the report of the data says
        return {}
    for name, paths in by_name.items():
        if not paths:
            raise UserError(
                f"DATA_FILES gives {name} the weight {weights[name]:g}, but a folder or pattern "
                "before it has the same files. Write it before that one."
            )
    return {path.as_posix(): name for name, paths in by_name.items() for path in paths}


def mixing_lines(shares: Collection[Share]) -> list[str]:
    """What an epoch takes, for the user."""
    texts = [str(share) for share in shares if share.samples]
    if not texts:
        return []
    together = sum(share.taken for share in shares)
    listed = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    lines = [f"An epoch takes {listed}: {together:,} in all, less those that are too long."]
    if any(share.samples and share.taken % share.samples for share in shares):
        lines.append("Where it takes a part of the samples, the next epoch takes other ones.")
    return lines


class MixedOrder:
    """The order of samples in memory. N: the samples to train on."""

    def __init__(self, names: Iterable[str], weights: Mapping[str, float], seed: int) -> None:
        """`names` has the name in DATA_FILES of each sample."""
        places: dict[str, list[int]] = {name: [] for name in weights}
        for index, name in enumerate(names):
            places[name].append(index)
        self._seed = seed
        self._shares = [Share(name, len(places[name]), weights[name]) for name in weights]
        self._places = [np.array(places[name], dtype=np.int64) for name in weights]
        self.count = sum(share.taken for share in self._shares)  # of an epoch
        self.epoch_order = lru_cache(maxsize=4)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """The indices that an epoch takes, in order: (count,) int64, each below N."""
        indices: list[np.ndarray] = []
        for number, (share, places) in enumerate(zip(self._shares, self._places, strict=True)):
            if share.samples:
                positions = mixed_positions(share.samples, self._seed, number)
                indices.append(np.repeat(places, share.times(positions, epoch)))
        taken = np.concatenate(indices)
        return taken[shuffled(len(taken), self._seed, epoch)]


def mixed_positions(count: int, seed: int, number: int) -> np.ndarray:
    """A position for each of `count` samples, which decides the epochs that take it: (N,)."""
    # Shuffled, since data is often written in pairs or in blocks.
    return shuffled(count, seed, _MIXING_STREAM, number)


@lru_cache(maxsize=1024)
def _step_around(n: int) -> int:
    """A number without a common factor with `n`, near its golden section."""
    step = max(1, round(n * 0.6180339887498949))
    while math.gcd(step, n) != 1:
        step += 1
    return step
