"""Files that fit into memory -> tokenised training and validation sets."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from tinkersmith.batches.mixing import MixedOrder, Share, mixing_lines, names_of_files
from tinkersmith.batches.order import batch_indices, steps_per_epoch
from tinkersmith.batches.source import Encoding, choices_that_make_data
from tinkersmith.batches.summary import (
    DataSummary,
    Outcome,
    event_lines,
    none_fits,
    none_trained,
    outcome_of,
    write_duplicates,
)
from tinkersmith.data.duplicates import Duplicates, find_duplicates
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.data.report import (
    Tally,
    duplicate_lines,
    note_lines,
    read_lines,
    skipped_lines,
    validation_lines,
)
from tinkersmith.data.samples import Sample, Source, overlap
from tinkersmith.data.shuffle import VALIDATION_STREAM, shuffled
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.trained_questions import QuestionCollector
from tinkersmith.settings.fields import Settings
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.thoughts import ThoughtCounts, count_thoughts
from tinkersmith.text.tokenize import (
    UNTRAINED,
    LengthEvent,
    TokenizedSample,
    TokenizedSamples,
    encode_samples,
    tokenize,
)


@dataclass(frozen=True)
class SamplesInMemory:
    """The samples of the files, before a tokenizer is known. See `DataSource`."""

    training: list[Sample]
    validation: list[Sample]
    loaded: list[LoadedSamples]  # of DATA_FILES, and of VALIDATION_FILES if there are any
    weights: dict[str, float] = field(default_factory=dict[str, float])  # of DATA_FILES, if any
    train_on: str = "all"
    _tokenized: dict[str, tuple[TokenizedSamples, TokenizedSamples]] = field(
        default_factory=dict[str, "tuple[TokenizedSamples, TokenizedSamples]"],
        repr=False,
        compare=False,
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def duplicates(self) -> list[Duplicates]:
        """The duplicates in each of `loaded`."""
        return [find_duplicates(loaded.samples) for loaded in self.loaded]

    @property
    def first(self) -> Sample:
        return self.training[0]

    @property
    def thoughts(self) -> ThoughtCounts:
        return self._thoughts

    @cached_property
    def _thoughts(self) -> ThoughtCounts:
        return count_thoughts(self.training, self.train_on)

    def questions(self) -> QuestionCollector:
        collector = QuestionCollector(self.train_on)
        for sample in self.training:
            collector.add(sample)
        return collector

    def find(self, sources: Collection[Source]) -> dict[Source, Sample]:
        return {sample.source: sample for sample in self.training if sample.source in sources}

    def report(self, *, listed: bool = True) -> list[str]:
        counts = {file: count for loaded in self.loaded for file, count in loaded.counts.items()}
        missing = [file for loaded in self.loaded for file in loaded.missing_files]
        skipped = [record for loaded in self.loaded for record in loaded.skipped]
        shared = len(overlap(self.training, self.validation)) if self.validation else 0
        tally = Tally.together(loaded.tally for loaded in self.loaded)
        return [
            *(sentence for loaded in self.loaded for sentence in loaded.said),
            *read_lines(counts, missing, tally.shapes),
            *note_lines(tally.notes),
            *skipped_lines(skipped, len(skipped), "skipped.jsonl" if listed else ""),
            *duplicate_lines(self.duplicates, listed=listed),
            *validation_lines(len(self.validation), shared),
            *self.mixing_lines(),
        ]

    def mixing_lines(self) -> list[str]:
        """What an epoch takes of each file, where DATA_FILES has weights."""
        if not self.weights:
            return []
        names = names_of_files(self.weights)
        counts = Counter(names[sample.source.file] for sample in self.training)
        return mixing_lines(
            [Share(name, counts[name], weight) for name, weight in self.weights.items()]
        )

    def tokenized(self, encoding: Encoding, progress: Progress) -> "TokensInMemory":
        how = (
            encoding.template,
            encoding.tokenizer,
            encoding.max_length,
            encoding.truncate,
            encoding.settings.train_on,
        )
        training, validation = self._tokens(how, progress)
        if not training.samples:
            untrained = [event for event in training.skipped if event.kind == UNTRAINED]
            raise self._none_fits(encoding, untrained)
        mixed = None
        if self.weights:
            names = names_of_files(self.weights)
            files = (names[sequences[0].source.file] for sequences in training.samples)
            mixed = MixedOrder(files, self.weights, encoding.settings.seed)
        return TokensInMemory(
            training=training.samples,
            validation=validation.sequences,
            mixed=mixed,
            outcomes=(outcome_of(training), outcome_of(validation)),
            lengths=LengthStatistics.of(
                training.lengths, "tokens", encoding.max_length, encoding.context
            ),
            truncated=[*training.truncated, *validation.truncated],
            skipped=[*training.skipped, *validation.skipped],
            skipped_records=[
                record.to_json() for loaded in self.loaded for record in loaded.skipped
            ],
            duplicates=self.duplicates,
            settings=encoding.settings,
        )

    def _tokens(
        self, how: tuple[PromptTemplate, TextTokenizer, int, bool, str], progress: Progress
    ) -> tuple[TokenizedSamples, TokenizedSamples]:
        """The tokens of both sets. Runs of one process that encode alike share them."""
        template, tokenizer, *rest = how
        known_by = json.dumps([template.to_json(), tokenizer.digest, *rest])
        count = len(self.training) + len(self.validation)
        with self._lock:
            if known_by not in self._tokenized:
                with progress.doing(f"tokenising {counted(count, 'sample')}"):
                    both = tokenize(self.training, *how), tokenize(self.validation, *how)
                self._tokenized[known_by] = both
            return self._tokenized[known_by]

    def _none_fits(self, encoding: Encoding, untrained: Sequence[LengthEvent]) -> UserError:
        if len(untrained) == len(self.training):
            return none_trained(len(untrained), untrained[0])
        sequences = [
            (int(spans[0, 0]), len(tokens))
            for _, sequences in encode_samples(
                self.training, encoding.template, encoding.tokenizer, encoding.settings.train_on
            )
            for tokens, spans in sequences
            if len(spans)
        ]
        return none_fits(
            len(self.training),
            encoding.max_length,
            encoding.context,
            encoding.truncate,
            prompt=min(prompt for prompt, _ in sequences),
            whole=min(whole for _, whole in sequences),
        )


@dataclass(frozen=True, slots=True)
class TokensInMemory:
    """All batches of a run. See `TokenizedData`."""

    training: list[tuple[TokenizedSample, ...]]  # the sequences of each sample
    validation: list[TokenizedSample]
    mixed: MixedOrder | None  # where DATA_FILES has weights
    outcomes: tuple[Outcome, Outcome]  # of training and validation
    lengths: LengthStatistics
    truncated: list[LengthEvent]
    skipped: list[LengthEvent]
    skipped_records: list[dict[str, Any]]
    duplicates: list[Duplicates]
    settings: Settings

    @property
    def count(self) -> int:
        return self.mixed.count if self.mixed else len(self.training)

    def batch(self, step: int) -> list[TokenizedSample]:
        size = self.settings.batch_size
        if self.mixed is None:
            indices = batch_indices(len(self.training), size, self.settings.seed, step)
        else:
            epoch, place = divmod(step, steps_per_epoch(self.count, size))
            indices = self.mixed.epoch_order(epoch)[place * size : (place + 1) * size]
        wanted: list[int] = indices.tolist()
        return [sequence for index in wanted for sequence in self.training[index]]

    def start(self, run: RunFolder, first_step: int) -> None:
        write_json(run.file("lengths.json"), self.lengths.to_json())
        lines = event_lines(self.skipped_records, self.skipped, self.truncated)
        run.rewrite("skipped.jsonl", lines)
        write_duplicates(run, self.duplicates)

    def stop(self) -> None:
        """Nothing runs in the background."""

    def trained_sources(self) -> Iterator[Source]:
        return (sequences[0].source for sequences in self.training)

    def is_complete(self) -> bool:
        return True

    def summary(self) -> DataSummary:
        return DataSummary.of(
            self.lengths,
            *self.outcomes,
            unusable=len(self.skipped_records),
            first_events=[*self.skipped, *self.truncated],
        )

    def digest(self) -> str:
        digest = hashlib.sha256(choices_that_make_data(self.settings).encode())
        for sample in chain(chain.from_iterable(self.training), self.validation):
            digest.update(np.array([len(sample.tokens), *sample.spans.ravel()]).tobytes())
            digest.update(sample.tokens.tobytes())
        return digest.hexdigest()


def read_into_memory(settings: Settings) -> SamplesInMemory:
    """Read the files and set the validation samples apart.

    Raises:
        UserError: see `load_samples`; or validation leaves nothing to train on.
    """
    training = load_samples(settings.training_files, settings.columns, settings.encoding)
    if settings.validation_files:
        validation = load_samples(settings.validation_files, settings.columns, settings.encoding)
        return SamplesInMemory(
            training.samples,
            validation.samples,
            [training, validation],
            settings.file_weights,
            settings.train_on,
        )
    count = len(training.samples)
    held_out_count = round(count * settings.validation_ratio)
    if settings.validation_ratio and not 0 < held_out_count < count:
        raise UserError(
            f"VALIDATION_RATIO {settings.validation_ratio} of {counted(count, 'sample')} leaves "
            f"{held_out_count} for validation; give more data, or set VALIDATION_FILES."
        )
    order = shuffled(count, settings.seed, VALIDATION_STREAM)
    held_out = set(order[:held_out_count].tolist())
    return SamplesInMemory(
        [sample for index, sample in enumerate(training.samples) if index not in held_out],
        [training.samples[index] for index in sorted(held_out)],
        [training],
        settings.file_weights,
        settings.train_on,
    )
