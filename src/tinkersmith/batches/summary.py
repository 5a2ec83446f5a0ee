"""What became of a run's samples: counts, lines of skipped.jsonl and duplicates.jsonl."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tinkersmith.data.duplicates import DUPLICATES_FILE, Duplicates
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.runs.folder import RunFolder
from tinkersmith.text.tokenize import TOO_LONG, LengthEvent, TokenizedSample, TokenizedSamples


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Counts of all samples. The skipped and truncated ones are listed in skipped.jsonl."""

    lengths: LengthStatistics  # of the training sequences, before the length policy
    training: int  # samples to train on
    validation: int  # samples to measure
    too_long: int  # samples of which no sequence is left
    untrained: int  # samples in which nothing is trained on
    truncated: int  # samples of which a sequence is cut
    training_truncated: int  # those of `training`
    unusable: int  # records
    sequences: int  # that the samples to train on are rendered as: at least one for each
    trained_tokens: int  # in them
    validation_sequences: int
    cut_sequences: int
    skipped_sequences: int
    events: int  # of the length policy
    first_events: list[LengthEvent]  # at most 10

    @classmethod
    def of(
        cls,
        lengths: LengthStatistics,
        training: "Outcome",
        validation: "Outcome",
        unusable: int,
        first_events: list[LengthEvent],
    ) -> "DataSummary":
        return cls(
            lengths=lengths,
            training=training.fitting,
            validation=validation.fitting,
            too_long=training.too_long + validation.too_long,
            untrained=training.untrained + validation.untrained,
            truncated=training.truncated + validation.truncated,
            training_truncated=training.truncated,
            unusable=unusable,
            sequences=training.sequences,
            trained_tokens=training.trained_tokens,
            validation_sequences=validation.sequences,
            cut_sequences=training.cut_sequences + validation.cut_sequences,
            skipped_sequences=training.skipped_sequences + validation.skipped_sequences,
            events=training.events + validation.events,
            first_events=first_events[:10],
        )

    @property
    def records(self) -> int:
        """All records that were read."""
        return self.training + self.validation + self.too_long + self.untrained + self.unusable

    @property
    def has_sequences(self) -> bool:
        """Whether there are more or fewer sequences than samples."""
        sequences = self.sequences + self.validation_sequences + self.skipped_sequences
        return sequences != self.records - self.unusable


@dataclass(slots=True)
class Outcome:
    """What the length policy made of some samples, and of the sequences that they are."""

    fitting: int = 0  # samples of which at least one sequence is left
    too_long: int = 0
    untrained: int = 0
    truncated: int = 0  # of `fitting`
    sequences: int = 0  # that are left
    trained_tokens: int = 0
    cut_sequences: int = 0  # of `sequences`
    skipped_sequences: int = 0
    events: int = 0

    def add(self, left: Sequence[TokenizedSample], events: Sequence[LengthEvent]) -> None:
        """Count a sample: the sequences that are left of it, and what became of the others."""
        cut = sum(event.after > 0 for event in events)
        self.events += len(events)
        self.cut_sequences += cut
        self.skipped_sequences += sum(event.before > 0 for event in events) - cut
        self.sequences += len(left)
        self.trained_tokens += sum(sequence.completion_length for sequence in left)
        if left:
            self.fitting += 1
            self.truncated += cut > 0
        elif any(event.kind == TOO_LONG for event in events):
            self.too_long += 1
        else:
            self.untrained += 1


def outcome_of(data: TokenizedSamples) -> Outcome:
    """The counts of samples in memory."""
    events: dict[Source, list[LengthEvent]] = {}
    for event in (*data.truncated, *data.skipped):
        events.setdefault(event.source, []).append(event)
    outcome = Outcome()
    for sequences in data.samples:
        outcome.add(sequences, events.pop(sequences[0].source, ()))
    for skipped in events.values():
        outcome.add((), skipped)
    return outcome


def event_lines(
    skipped_records: Sequence[dict[str, Any]],
    skipped: Sequence[LengthEvent],
    truncated: Sequence[LengthEvent],
) -> list[dict[str, Any]]:
    """The lines of skipped.jsonl: every sample that is skipped or truncated."""
    return [
        *({"kind": "bad record", **record} for record in skipped_records),
        *({"kind": event.kind, **event.to_json()} for event in skipped),
        *({"kind": event.kind, **event.to_json()} for event in truncated),
    ]


def write_duplicates(run: RunFolder, per_set: Iterable[Duplicates]) -> None:
    """List every duplicate in a file of the run, if there are any."""
    lines = chain.from_iterable(duplicates.lines() for duplicates in per_set)
    write = run.rewrite
    while some := list(islice(lines, 10_000)):  # the file may be as large as the data
        write(DUPLICATES_FILE, some)
        write = run.append


def none_trained(count: int, first: LengthEvent) -> UserError:
    """The error that nothing of any sample can be trained on."""
    advice = ""
    if "chat template" in first.reason:
        advice = ' Change the data, or set PROMPT_TEMPLATE to "instruction".'
    return UserError(
        f"Not one of {counted(count, 'sample')} can be trained on. {first.source}: "
        f"{first.reason}.{advice}"
    )


def none_fits(
    count: int, max_length: int, context: int | None, truncate: bool, prompt: int, whole: int
) -> UserError:
    """The error that not one of `count` samples is short enough, with what can be done.

    Args:
        context: the tokens that the model holds; None where that is not known.
        truncate: TRUNCATE_LONG_SEQUENCES; answers are cut, so that only prompts are too long.
        prompt: the tokens of the shortest prompt.
        whole: the tokens of the shortest sample.
    """
    most = max_length if context is None else context
    needed = prompt + 1 if truncate else whole
    remedies: list[str] = []
    if context is None or needed <= most > max_length:
        limit = "" if context is None else f" (the model holds {most:,})"
        remedies.append(f"raise MAX_SEQUENCE_LENGTH to at least {needed:,}{limit}")
    if not truncate and prompt < max_length:
        remedies.append("set TRUNCATE_LONG_SEQUENCES = True")
    if not remedies and context is not None:
        remedies.append("choose a BASE_MODEL that holds more")
    remedies.append("shorten the prompts" if truncate or prompt >= most else "shorten the samples")
    shortest = (
        f"even the shortest prompt has {prompt:,}" if truncate else f"the shortest has {whole:,}"
    )
    holds = ", which is all that the model holds" if max_length == context else ""
    remedy = ", or ".join([", ".join(remedies[:-1]), remedies[-1]] if remedies[:-1] else remedies)
    return UserError(
        f"Not one of {counted(count, 'sample')} fits into {max_length:,} tokens{holds}: "
        f"{shortest}. {remedy[0].upper()}{remedy[1:]}."
    )
