"""Large files -> batches. A background thread tokenises them chunk by chunk while they are used.

Each epoch takes the chunks in an order of its own and shuffles the samples of every `WINDOW` chunks
together. The order is a pure function of seed and step, whatever the background has done. Memory
holds one window, or two if a batch takes from both.
"""

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tinkersmith.batches.mixing import Share, mixed_positions, mixing_lines, names_of_files
from tinkersmith.batches.order import steps_per_epoch
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
from tinkersmith.data.large_files import Chunk, LargeFiles, read_chunk, scan
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.data.samples import Sample, Source
from tinkersmith.data.shuffle import shuffled
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.trained_questions import QuestionCollector
from tinkersmith.settings.fields import Settings
from tinkersmith.text.thoughts import ThoughtCounts
from tinkersmith.text.token_cache import ChunkTokens, TokenCache
from tinkersmith.text.tokenize import LengthEvent, TokenizedSample, TokenizedSamples, tokenize

WINDOW = 8  # chunks: some ten thousand samples

_Policy = tuple[int, bool]  # MAX_SEQUENCE_LENGTH, and whether longer samples are truncated


@dataclass(frozen=True, slots=True)
class SampleStream:
    """Large files after their first pass. See `DataSource`."""

    files: LargeFiles
    thoughts: ThoughtCounts
    weights: dict[str, float]  # of DATA_FILES, if any
    asked: QuestionCollector

    @property
    def first(self) -> Sample:
        return self.files.first

    def questions(self) -> QuestionCollector:
        return self.asked

    def find(self, sources: Collection[Source]) -> dict[Source, Sample]:
        wanted: dict[str, list[int]] = {}
        for source in sources:
            wanted.setdefault(source.file, []).append(source.record)
        files = {file: np.sort(np.array(records)) for file, records in wanted.items()}
        samples: dict[Source, Sample] = {}
        for chunk, after in zip(self.files.chunks, [*self.files.chunks[1:], None], strict=True):
            records = files.get(chunk.file.as_posix(), np.zeros(0, dtype=np.int64))
            same_file = after is not None and after.file == chunk.file
            ends = after.first_record if after is not None and same_file else sys.maxsize
            first, last = np.searchsorted(records, [chunk.first_record, ends])
            if first < last:
                read, _ = read_chunk(chunk)
                samples |= {sample.source: sample for sample in read if sample.source in sources}
        return samples

    def report(self, *, listed: bool = True) -> list[str]:
        return [*self.files.report(listed=listed), *self.mixing_lines()]

    def mixing_lines(self) -> list[str]:
        """What an epoch takes of each file, where DATA_FILES has weights."""
        if not self.weights:
            return []
        return mixing_lines(_Shares(self.files.chunks, self.weights, 0).by_name.values())

    def tokenized(self, encoding: Encoding, progress: Progress) -> "TokenStream":
        count = len(self.files.validation)
        with progress.doing(f"tokenising {counted(count, 'validation sample')}"):
            return TokenStream(self.files, encoding)


def open_stream(settings: Settings, progress: Progress) -> SampleStream:
    """Check all records of the data files.

    Raises:
        UserError: see `scan`.
    """
    thoughts = ThoughtCounts(train_on=settings.train_on)
    asked = QuestionCollector(settings.train_on)

    def count(sample: Sample) -> None:
        thoughts.add(sample)
        asked.add(sample)

    files = scan(
        settings.training_files,
        settings.validation_files,
        settings.validation_ratio,
        settings.seed,
        progress,
        settings.columns,
        encoding=settings.encoding,
        each=count,
    )
    return SampleStream(files, thoughts, settings.file_weights, asked)


class TokenStream:
    """Batches of a stream, whose tokens are made in the background. See `TokenizedData`."""

    def __init__(self, files: LargeFiles, encoding: Encoding) -> None:
        settings = encoding.settings
        self._files, self._chunks = files, files.chunks
        self._seed, self._batch_size = settings.seed, settings.batch_size
        self._policy: _Policy = (encoding.max_length, encoding.truncate)
        self._cache = TokenCache(
            settings.output_dir, encoding.template, encoding.tokenizer, settings.train_on
        )
        self._held_out = tokenize(
            files.validation,
            encoding.template,
            encoding.tokenizer,
            *self._policy,
            settings.train_on,
        )
        self._shares = (
            _Shares(self._chunks, settings.file_weights, self._seed)
            if settings.file_weights
            else None
        )
        self._choices = choices_that_make_data(settings)
        self._sizes = np.array([chunk.training for chunk in self._chunks])
        self._epoch_order = lru_cache(maxsize=2)(self._shuffled_chunks)
        self._windows: dict[tuple[int, int], _Window] = {}
        self._context = encoding.context
        self._background = _Background(files, self._cache, self._policy, encoding.context)
        self.validation = self._held_out.sequences
        self.count = self._shares.count if self._shares else int(self._sizes.sum())

    def batch(self, step: int) -> list[TokenizedSample]:
        """The samples of a step. Waits until their tokens are made.

        A sample that is too long leaves its batch one smaller, so a batch may be empty.
        """
        epoch, place = divmod(step, steps_per_epoch(self.count, self._batch_size))
        windows, ends = self._epoch_order(epoch)
        first = place * self._batch_size
        used: dict[tuple[int, int], _Window] = {}
        batch: list[TokenizedSample] = []
        for position in range(first, min(first + self._batch_size, self.count)):
            number = int(np.searchsorted(ends, position, side="right"))
            if (epoch, number) not in used:
                window = self._windows.get((epoch, number))
                used[epoch, number] = window or self._load(windows[number], epoch, number)
            before = int(ends[number - 1]) if number else 0
            batch += used[epoch, number].sequences(position - before, *self._policy)
        self._windows = used
        return batch

    def digest(self) -> str:
        policy = f"{self._cache.digest} {self._policy} {self._choices}"
        digest = hashlib.sha256(policy.encode("utf-8", "backslashreplace"))
        for chunk in self._chunks:
            digest.update(f"{chunk.digest} {chunk.held_out}".encode())
        for sample in self.validation:
            digest.update(sample.tokens.tobytes())
        return digest.hexdigest()

    def start(self, run: RunFolder, first_step: int) -> None:
        """Begin to tokenise everything, beginning with what `first_step` needs."""
        epoch, place = divmod(first_step, steps_per_epoch(self.count, self._batch_size))
        windows, ends = self._epoch_order(epoch)
        number = int(np.searchsorted(ends, place * self._batch_size, side="right"))
        taken = np.concatenate([*windows[number:], *windows[:number]])
        others = np.setdiff1d(np.arange(len(self._chunks)), taken)  # which this epoch leaves out
        order = np.concatenate([taken, others]).tolist()
        run.rewrite("skipped.jsonl", self._validation_lines())
        write_duplicates(run, self._files.duplicates)
        self._background.start(run, order)

    def stop(self) -> None:
        self._background.stop()

    def trained_sources(self) -> Iterator[Source]:
        for chunk in self._chunks:
            tokens = self._cache.tokens_of(chunk)
            for place in chunk.training_places().tolist():
                rows = tokens.samples(chunk, place, *self._policy)
                if any(sample is not None for sample, _ in rows):
                    yield tokens.source(chunk, place)

    def is_complete(self) -> bool:
        return self._background.is_complete()

    def summary(self) -> DataSummary:
        return self._background.summary(self._held_out)

    def none_fits(self) -> UserError:
        """The error that every sample is too long, which is known when all are tokenised."""
        summary = self.summary()
        prompts: list[int] = []
        for chunk in self._chunks:
            tokens = self._cache.tokens_of(chunk)
            sequences = tokens.sequences_of(chunk.training_places())
            firsts = np.concatenate([[0], tokens.span_ends])[sequences]  # of their trained parts
            prompts += tokens.spans[firsts[firsts < tokens.span_ends[sequences]], 0].tolist()
        if not prompts:
            return none_trained(self.count, summary.first_events[0])
        limit, truncate = self._policy
        whole = summary.lengths.min
        return none_fits(self.count, limit, self._context, truncate, min(prompts), whole)

    def _validation_lines(self) -> list[dict[str, Any]]:
        records = [skipped.to_json() for skipped in self._files.validation_skipped]
        held_out = self._held_out
        return event_lines(records, held_out.skipped, held_out.truncated)

    def _shuffled_chunks(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The chunks of each window, and the position after each window's last sample."""
        order = shuffled(len(self._chunks), self._seed, epoch)
        sizes = self._shares.sizes(epoch) if self._shares else self._sizes
        order = order[sizes[order] > 0]
        windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]
        return windows, np.cumsum([sizes[chunks].sum() for chunks in windows])

    def _load(self, indices: np.ndarray, epoch: int, number: int) -> "_Window":
        self._background.wait_for(indices.tolist())
        numbers: list[int] = indices.tolist()
        chunks = [self._chunks[index] for index in numbers]
        places = [chunk.training_places() for chunk in chunks]
        if self._shares:
            places = [
                np.repeat(taken, self._shares.times(index, epoch))
                for taken, index in zip(places, numbers, strict=True)
            ]
        return _Window.of(chunks, places, self._cache, (self._seed, epoch, number))


@dataclass(frozen=True, slots=True)
class _Window:
    chunks: list[Chunk]
    tokens: list[ChunkTokens]
    places: np.ndarray  # (N, 2): (chunk, place in it) of each sample, in the shuffled order

    @classmethod
    def of(
        cls,
        chunks: list[Chunk],
        places: list[np.ndarray],
        cache: TokenCache,
        seeds: tuple[int, ...],
    ) -> "_Window":
        """`places` has those of each chunk's samples that the epoch takes."""
        pairs = np.concatenate(
            [
                np.stack([np.full(len(taken), index), taken], axis=1)
                for index, taken in enumerate(places)
            ]
        )
        return cls(
            chunks,
            [cache.tokens_of(chunk) for chunk in chunks],
            pairs[shuffled(len(pairs), *seeds)],
        )

    def sequences(self, position: int, limit: int, truncate: bool) -> list[TokenizedSample]:
        """What is left of the sample at a position of the window; nothing if it is too long."""
        index, place = int(self.places[position, 0]), int(self.places[position, 1])
        rows = self.tokens[index].samples(self.chunks[index], place, limit, truncate)
        return [sample for sample, _ in rows if sample is not None]


class _Shares:
    """How often epochs take the samples of each chunk, by the weights of DATA_FILES."""

    def __init__(self, chunks: list[Chunk], weights: dict[str, float], seed: int) -> None:
        names = names_of_files(weights)
        counts = dict.fromkeys(weights, 0)
        self._chunks, self._seed = chunks, seed
        self._names: list[str] = []  # of each chunk
        self._firsts: list[int] = []  # the position of each chunk's first sample
        for chunk in chunks:
            name = names[chunk.file.as_posix()]
            self._names.append(name)
            self._firsts.append(counts[name])
            counts[name] += chunk.training
        self.by_name = {name: Share(name, counts[name], weights[name]) for name in weights}
        self.count = sum(share.taken for share in self.by_name.values())  # of an epoch

    def times(self, index: int, epoch: int) -> np.ndarray:
        """How often an epoch takes each training sample of a chunk: (N,) int64."""
        positions = mixed_positions(self._chunks[index].training, self._seed, index)
        return self.by_name[self._names[index]].times(self._firsts[index] + positions, epoch)

    def sizes(self, epoch: int) -> np.ndarray:
        """How many samples an epoch takes of each chunk."""
        return np.array([self.times(index, epoch).sum() for index in range(len(self._chunks))])


class _Background:
    """Tokenises all chunks in a thread of its own.

    Only that thread counts lengths and appends to skipped.jsonl; its counts are read when
    `is_complete`.
    """

    def __init__(
        self, files: LargeFiles, cache: TokenCache, policy: _Policy, context: int | None
    ) -> None:
        self._files, self._cache, self._policy = files, cache, policy
        self._context = context
        self._lengths: Counter[int] = Counter()
        self._first_events: list[LengthEvent] = []
        self._outcome = Outcome()
        self._done: set[int] = set()
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()  # guards the three above
        self._thread: threading.Thread | None = None

    def start(self, run: RunFolder, order: list[int]) -> None:
        """Begin with the chunks in `order`, and write to `run` what becomes of their samples."""
        self._thread = threading.Thread(
            target=self._tokenise, args=(run, order), name="tokenise", daemon=True
        )
        self._thread.start()

    def wait_for(self, indices: Iterable[int]) -> None:
        """Wait until these chunks are tokenised.

        Raises:
            UserError: a chunk cannot be read any more.
        """
        wanted = set(indices)
        with self._changed:
            self._changed.wait_for(lambda: self._error or wanted <= self._done)
            if self._error is not None:
                raise self._error

    def is_complete(self) -> bool:
        with self._changed:
            return len(self._done) == len(self._files.chunks)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def summary(self, held_out: TokenizedSamples) -> DataSummary:
        """Counts of all samples, those for validation included."""
        self.wait_for(range(len(self._files.chunks)))
        return DataSummary.of(
            self._statistics(),
            self._outcome,
            outcome_of(held_out),
            unusable=self._files.skipped_count + len(self._files.validation_skipped),
            first_events=[*self._first_events, *held_out.skipped, *held_out.truncated],
        )

    def _tokenise(self, run: RunFolder, order: list[int]) -> None:
        try:
            for index in order:
                chunk = self._files.chunks[index]
                tokens = self._cache.tokens_of(chunk)
                run.append("skipped.jsonl", self._apply_policy(chunk, tokens))
                if index == order[-1]:
                    write_json(run.file("lengths.json"), self._statistics().to_json())
                with self._changed:
                    self._done.add(index)
                    self._changed.notify_all()
                    if self._stopped:
                        return
        except BaseException as error:  # `wait_for` raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _apply_policy(self, chunk: Chunk, tokens: ChunkTokens) -> list[dict[str, Any]]:
        """Count the chunk's lengths, and return its lines of skipped.jsonl."""
        places = chunk.training_places()
        self._lengths.update(tokens.lengths[tokens.sequences_of(places)].tolist())
        acted_on = tokens.acted_on(self._policy[0])[places]
        whole = tokens.sequences_of(places[~acted_on])
        self._outcome.fitting += int((~acted_on).sum())
        self._outcome.sequences += len(whole)
        self._outcome.trained_tokens += int(tokens.trained_tokens[whole].sum())
        events: list[LengthEvent] = []
        for place in places[acted_on].tolist():
            rows = list(tokens.samples(chunk, place, *self._policy))
            of_sample = [event for _, event in rows if event is not None]
            self._outcome.add([left for left, _ in rows if left is not None], of_sample)
            events += of_sample
        self._first_events += events[: 10 - len(self._first_events)]
        skipped = [event for event in events if not event.after]
        truncated = [event for event in events if event.after]
        return event_lines(tokens.bad_records(chunk), skipped, truncated)

    def _statistics(self) -> LengthStatistics:
        values = np.array(sorted(self._lengths), dtype=np.int64)
        counts = np.array([self._lengths[length] for length in values.tolist()], dtype=np.int64)
        limit = self._policy[0]
        return LengthStatistics.of_counts(values, counts, "tokens", limit, self._context)
