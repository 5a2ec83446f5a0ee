"""What became of a run's samples: counts, lines of skipped.jsonl and duplicates.jsonl."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tinkersmith.data.duplicates import DUPLICATES_FILE, Duplicates
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.runs.folder import RunFolder
from tinkersmith.text.tokenize import LengthEvent


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Counts of all samples. The skipped and truncated ones are listed in skipped.jsonl."""

    lengths: LengthStatistics  # of the training sequences, before the length policy
    training: int  # samples to train on
    sequences: int  # that they are rendered as: at least one for each
    validation: int  # samples to measure
    too_long: int  # samples of which no sequence is left
    untrained: int  # samples that nothing can be trained on
    truncated: int  # sequences that are cut
    unusable: int  # records
    events: int  # sequences that are cut or too long, and the samples that are untrained
    first_events: list[LengthEvent]  # at most 10


def event_lines(
    skipped_records: Sequence[dict[str, Any]],
    too_long: Sequence[LengthEvent],
    truncated: Sequence[LengthEvent],
    untrained: Sequence[LengthEvent] = (),
) -> list[dict[str, Any]]:
    """The lines of skipped.jsonl: every sample that is skipped or truncated."""
    return [
        *({"kind": "bad record", **record} for record in skipped_records),
        *({"kind": "too long", **event.to_json()} for event in too_long),
        *({"kind": "truncated", **event.to_json()} for event in truncated),
        *({"kind": "untrained", **event.to_json()} for event in untrained),
    ]


def write_duplicates(run: RunFolder, per_set: Iterable[Duplicates]) -> None:
    """List every duplicate in a file of the run, if there are any."""
    lines = chain.from_iterable(duplicates.lines() for duplicates in per_set)
    write = run.rewrite
    while some := list(islice(lines, 10_000)):  # the file may be as large as the data
        write(DUPLICATES_FILE, some)
        write = run.append


def none_fits(count: int, max_length: int, untrained: Sequence[LengthEvent] = ()) -> UserError:
    """The error that not one of `count` samples can be trained on: most are too long."""
    if untrained and len(untrained) >= count:
        return UserError(
            f"Not one of {counted(count, 'sample')} can be trained on. {untrained[0].source}: "
            f"{untrained[0].reason}."
        )
    return UserError(
        f"Not one of {counted(count, 'sample')} fits into {max_length:,} tokens. Raise "
        "MAX_SEQUENCE_LENGTH, set TRUNCATE_LONG_SEQUENCES = True, or shorten the samples."
    )
