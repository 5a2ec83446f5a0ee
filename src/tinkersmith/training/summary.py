"""What became of a run's samples: counts, lines of skipped.jsonl and duplicates.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tinkersmith.data.copies import COPIES_FILE, Copies
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import RunFolder
from tinkersmith.text.tokenize import LengthEvent


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What became of the samples; each that was not trained on whole is in skipped.jsonl."""

    lengths: LengthStatistics  # of the training samples, before the length policy
    training: int  # samples to train on
    too_long: int
    truncated: int
    unusable: int  # records
    first_events: list[LengthEvent]  # at most 10


def event_lines(
    skipped_records: list[dict[str, Any]],
    too_long: list[LengthEvent],
    truncated: list[LengthEvent],
) -> list[dict[str, Any]]:
    """The lines of skipped.jsonl: every sample that was not trained on whole."""
    return [
        *({"kind": "bad record", **record} for record in skipped_records),
        *({"kind": "too long", **event.to_json()} for event in too_long),
        *({"kind": "truncated", **event.to_json()} for event in truncated),
    ]


def write_copies(run: RunFolder, copies: Iterable[Copies]) -> None:
    """Name every copy in a file of the run, if there are any."""
    lines = chain.from_iterable(one.lines() for one in copies)
    written = False
    while part := list(islice(lines, 10_000)):  # the file may be as large as the data
        (run.append if written else run.rewrite)(COPIES_FILE, part)
        written = True


def none_fits(count: int, max_length: int) -> UserError:
    return UserError(
        f"Not one of {count:,} samples fits into {max_length:,} tokens. Raise "
        "MAX_SEQUENCE_LENGTH, set TRUNCATE_LONG_SEQUENCES = True, or shorten the samples."
    )
