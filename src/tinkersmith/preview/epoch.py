"""Counts of each data file and the weights of DATA_FILES -> what an epoch takes of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinkersmith.batches.mixing import Share, names_of_files
from tinkersmith.plurals import counted


@dataclass(slots=True)
class FileCounts:
    """Counts of a file's samples of which something is trained on."""

    samples: int = 0
    sequences: int = 0
    tokens: int = 0  # that are sent
    trained: int = 0  # of those


@dataclass(frozen=True, slots=True)
class EpochCounts:
    """What an epoch takes, a sample that it takes twice counted twice."""

    samples: int
    sequences: int
    tokens: int
    trained: int
    exact: bool  # whether each epoch takes the same samples; else these are means

    def __str__(self) -> str:
        share = self.trained / self.tokens if self.tokens else 0.0
        about = "" if self.exact else "about "
        return (
            f"With the weights of DATA_FILES, an epoch takes {counted(self.samples, 'sample')}, "
            f"{about}{counted(self.sequences, 'sequence')} and {counted(self.tokens, 'token')}, "
            f"{self.trained:,} of them trained ({share:.1%})"
        )


def epoch_counts(
    files: Mapping[str, FileCounts], weights: Mapping[str, float]
) -> EpochCounts | None:
    """What an epoch takes of the files; None where DATA_FILES has no weights.

    Args:
        files: by the names that samples give as their source.
    """
    if not weights:
        return None
    names = names_of_files(weights)
    by_name = {name: FileCounts() for name in weights}
    for file, counts in files.items():
        together = by_name[names[file]]
        together.samples += counts.samples
        together.sequences += counts.sequences
        together.tokens += counts.tokens
        together.trained += counts.trained
    samples, exact = 0, True
    sums = [0.0, 0.0, 0.0]
    for name, counts in by_name.items():
        share = Share(name, counts.samples, weights[name])
        if not share.samples:
            continue
        samples += share.taken
        exact = exact and share.taken % share.samples == 0
        times = share.taken / share.samples
        for place, count in enumerate((counts.sequences, counts.tokens, counts.trained)):
            sums[place] += count * times
    sequences, tokens, trained = map(round, sums)
    return EpochCounts(samples, sequences, tokens, trained, exact)
