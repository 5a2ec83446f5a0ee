"""Settings -> tokenised training and validation sets; whatever is left out is named."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinkersmith.data.copies import COPIES_FILE, Copies, find_copies
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.data.samples import LoadedSamples, Sample, load_samples, overlap
from tinkersmith.data.shuffle import VALIDATION_STREAM, shuffled
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings import Settings
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.tokenize import LengthEvent, TokenizedSample, tokenize
from tinkersmith.text.tokenizer import TextTokenizer
from tinkersmith.training.batches import batch_indices
from tinkersmith.training.summary import DataSummary, event_lines, none_fits, write_copies


@dataclass(frozen=True)
class RawData:
    """What the files hold, before a tokenizer is known."""

    training: list[Sample]
    validation: list[Sample]
    loaded: list[LoadedSamples]  # of DATA_FILES, and of VALIDATION_FILES if there are any

    @cached_property
    def copies(self) -> list[Copies]:
        """In each of `loaded`."""
        return [find_copies(one.samples) for one in self.loaded]

    @property
    def first(self) -> Sample:
        return self.training[0]

    def report(self) -> list[str]:
        """What was read, line by line, for the user."""
        lines = []
        for loaded, copies in zip(self.loaded, self.copies, strict=True):
            lines += [f"  {count:,} samples from {file}" for file, count in loaded.counts.items()]
            lines += [
                f"  Warning: {file} does not exist; going on without it."
                for file in loaded.missing_files
            ]
            lines += [f"  Skipped {skipped}" for skipped in loaded.skipped[:10]]
            if len(loaded.skipped) > 10:
                more = len(loaded.skipped) - 10
                lines.append(f"  ... and {more:,} more; all of them are in skipped.jsonl.")
            if copies:
                lines.append(f"  {copies}; all of them are in {COPIES_FILE}.")
        if self.validation:
            lines.append(f"  {len(self.validation):,} of them are kept for validation.")
            shared = len(overlap(self.training, self.validation))
            if shared:
                lines.append(
                    f"  Warning: {shared:,} validation samples ask what a training sample asks; "
                    "the validation loss will look too good."
                )
        return lines


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the loop trains on where the files fit into memory; see also `StreamedData`."""

    training: list[TokenizedSample]
    validation: list[TokenizedSample]
    lengths: LengthStatistics
    truncated: list[LengthEvent]
    too_long: list[LengthEvent]
    skipped_records: list[dict[str, Any]]
    copies: list[Copies]
    batch_size: int
    seed: int

    @property
    def count(self) -> int:
        return len(self.training)

    def batch(self, step: int) -> list[TokenizedSample]:
        indices = batch_indices(len(self.training), self.batch_size, self.seed, step)
        return [self.training[index] for index in indices]

    def start(self, run: RunFolder, first_step: int) -> None:
        """Write down what became of the samples."""
        write_json(run.file("lengths.json"), self.lengths.to_json())
        lines = event_lines(self.skipped_records, self.too_long, self.truncated)
        run.rewrite("skipped.jsonl", lines)
        write_copies(run, self.copies)

    def stop(self) -> None:
        """Nothing runs in the background."""

    def summary(self, wait: bool) -> DataSummary:
        return DataSummary(
            lengths=self.lengths,
            training=len(self.training),
            too_long=len(self.too_long),
            truncated=len(self.truncated),
            unusable=len(self.skipped_records),
            first_events=[*self.too_long, *self.truncated][:10],
        )

    def digest(self) -> str:
        """Changes when any token of the data does; a resumed run must find the same."""
        digest = hashlib.sha256()
        for sample in [*self.training, *self.validation]:
            digest.update(np.array([len(sample.tokens), sample.prompt_length]).tobytes())
            digest.update(sample.tokens.tobytes())
        return digest.hexdigest()


def read_data(settings: Settings) -> RawData:
    """Read the files and set the validation samples apart.

    Raises:
        UserError: see `load_samples`; or validation leaves nothing to train on.
    """
    training = load_samples(settings.data_files)
    if settings.validation_files:
        validation = load_samples(settings.validation_files)
        return RawData(training.samples, validation.samples, [training, validation])
    count = len(training.samples)
    kept = round(count * settings.validation_ratio)
    if settings.validation_ratio and not 0 < kept < count:
        raise UserError(
            f"VALIDATION_RATIO {settings.validation_ratio} of {count} samples leaves {kept} for "
            "validation; give more data, or set VALIDATION_FILES."
        )
    order = shuffled(count, settings.seed, VALIDATION_STREAM)
    held_out = set(order[:kept].tolist())
    return RawData(
        [sample for index, sample in enumerate(training.samples) if index not in held_out],
        [training.samples[index] for index in sorted(held_out)],
        [training],
    )


def tokenize_data(
    raw: RawData,
    settings: Settings,
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    max_length: int,
) -> TrainingData:
    """Tokens under the length policy.

    Raises:
        UserError: no training sample fits.
    """
    truncate = settings.truncate_long_sequences
    training = tokenize(raw.training, template, tokenizer, max_length, truncate)
    validation = tokenize(raw.validation, template, tokenizer, max_length, truncate)
    if not training.samples:
        raise none_fits(len(raw.training), max_length)
    return TrainingData(
        training=training.samples,
        validation=validation.samples,
        lengths=LengthStatistics.of(training.lengths, "tokens", max_length),
        truncated=[*training.truncated, *validation.truncated],
        too_long=[*training.skipped, *validation.skipped],
        skipped_records=[skipped.to_json() for one in raw.loaded for skipped in one.skipped],
        copies=raw.copies,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
