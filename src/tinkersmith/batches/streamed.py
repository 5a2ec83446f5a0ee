"""Large files -> batches. A background thread tokenises them chunk by chunk while they are used.

Each epoch takes the chunks in an order of its own and shuffles the samples of every `WINDOW` chunks
together. The order is a pure function of seed and step, whatever the background has done. Memory
holds one window, or two if a batch takes from both.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.source import Encoding
from tinkersmith.batches.summary import DataSummary, event_lines, write_duplicates
from tinkersmith.data.large_files import Chunk, LargeFiles, scan
from tinkersmith.data.lengths import LengthStatistics
from tinkersmith.data.samples import Sample
from tinkersmith.data.shuffle import shuffled
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.text.token_cache import ChunkTokens, TokenCache
from tinkersmith.text.tokenize import LengthEvent, TokenizedSample, TokenizedSamples, tokenize

WINDOW = 8  # chunks: some ten thousand samples

_Policy = tuple[int, bool]  # MAX_SEQUENCE_LENGTH, and whether longer samples are truncated


@dataclass(frozen=True, slots=True)
class SampleStream:
    """Large files after their first pass. See `DataSource`."""

    files: LargeFiles

    @property
    def first(self) -> Sample:
        return self.files.first

    def report(self) -> list[str]:
        return self.files.report()

    def tokenized(self, encoding: Encoding, progress: Progress) -> "TokenStream":
        count = len(self.files.validation)
        with progress.doing(f"tokenising {counted(count, 'validation sample')}"):
            return TokenStream(self.files, encoding)


def open_stream(settings: Settings, progress: Progress) -> SampleStream:
    """Check all records of the data files.

    Raises:
        UserError: see `scan`.
    """
    return SampleStream(
        scan(
            settings.training_files,
            settings.validation_files,
            settings.validation_ratio,
            settings.seed,
            progress,
        )
    )


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
        self._sizes = np.array([chunk.training for chunk in self._chunks])
        self._epoch_order = lru_cache(maxsize=2)(self._shuffled_chunks)
        self._windows: dict[tuple[int, int], _Window] = {}
        self._background = _Background(files, self._cache, self._policy)
        self.validation = self._held_out.sequences
        self.count = int(self._sizes.sum())

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
        digest = hashlib.sha256(f"{self._cache.digest} {self._policy}".encode())
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
        order = np.concatenate([*windows[number:], *windows[:number]]).tolist()
        run.rewrite("skipped.jsonl", self._validation_lines())
        write_duplicates(run, self._files.duplicates)
        self._background.start(run, order)

    def stop(self) -> None:
        self._background.stop()

    def is_complete(self) -> bool:
        return self._background.is_complete()

    def summary(self) -> DataSummary:
        return self._background.summary(self._held_out)

    def _validation_lines(self) -> list[dict[str, Any]]:
        records = [skipped.to_json() for skipped in self._files.validation_skipped]
        return event_lines(records, self._held_out.skipped, self._held_out.truncated)

    def _shuffled_chunks(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The chunks of each window, and the position after each window's last sample."""
        order = shuffled(len(self._chunks), self._seed, epoch)
        windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]
        return windows, np.cumsum([self._sizes[chunks].sum() for chunks in windows])

    def _load(self, indices: np.ndarray, epoch: int, number: int) -> "_Window":
        self._background.wait_for(indices.tolist())
        chunks = [self._chunks[int(index)] for index in indices]
        return _Window.of(chunks, self._cache, (self._seed, epoch, number))


@dataclass(frozen=True, slots=True)
class _Window:
    chunks: list[Chunk]
    tokens: list[ChunkTokens]
    places: np.ndarray  # (N, 2): (chunk, place in it) of each sample, in the shuffled order

    @classmethod
    def of(cls, chunks: list[Chunk], cache: TokenCache, seeds: tuple[int, ...]) -> "_Window":
        pairs = [
            np.stack([np.full(chunk.training, index), chunk.training_places()], axis=1)
            for index, chunk in enumerate(chunks)
        ]
        places = np.concatenate(pairs)
        return cls(
            chunks,
            [cache.tokens_of(chunk) for chunk in chunks],
            places[shuffled(len(places), *seeds)],
        )

    def sequences(self, position: int, limit: int, truncate: bool) -> list[TokenizedSample]:
        """What is left of the sample at a position of the window; nothing if it is too long."""
        index, place = int(self.places[position, 0]), int(self.places[position, 1])
        rows = self.tokens[index].samples(self.chunks[index], place, limit, truncate)
        return [sample for sample, _ in rows if sample is not None]


class _Background:
    """Tokenises all chunks in a thread of its own.

    Only that thread counts lengths and appends to skipped.jsonl; its counts are read when
    `is_complete`.
    """

    def __init__(self, files: LargeFiles, cache: TokenCache, policy: _Policy) -> None:
        self._files, self._cache, self._policy = files, cache, policy
        self._lengths: Counter[int] = Counter()
        self._first_events: list[LengthEvent] = []
        self._too_long = self._truncated = self._left_out = self._sequences = 0
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
        return DataSummary(
            lengths=self._statistics(),
            training=sum(chunk.training for chunk in self._files.chunks) - self._left_out,
            sequences=self._sequences,
            validation=len(held_out.samples),
            too_long=self._too_long + len(held_out.skipped),
            truncated=self._truncated + len(held_out.truncated),
            unusable=self._files.skipped_count + len(self._files.validation_skipped),
            first_events=[*self._first_events, *held_out.skipped, *held_out.truncated][:10],
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
        sequences = tokens.sequences_of(places)
        lengths = tokens.lengths[sequences]
        self._lengths.update(lengths.tolist())
        self._sequences += len(lengths)
        events: list[LengthEvent] = []
        over = np.unique(
            np.searchsorted(tokens.firsts, sequences[lengths > self._policy[0]], side="right") - 1
        )
        for place in over.tolist():
            rows = list(tokens.samples(chunk, place, *self._policy))
            events += [event for _, event in rows if event is not None]
            self._left_out += all(sample is None for sample, _ in rows)
            self._sequences -= sum(sample is None for sample, _ in rows)
        too_long = [event for event in events if not event.after]
        truncated = [event for event in events if event.after]
        self._too_long += len(too_long)
        self._truncated += len(truncated)
        self._first_events += events[: 10 - len(self._first_events)]
        return event_lines(tokens.bad_records(chunk), too_long, truncated)

    def _statistics(self) -> LengthStatistics:
        values = np.array(sorted(self._lengths), dtype=np.int64)
        counts = np.array([self._lengths[length] for length in values.tolist()], dtype=np.int64)
        return LengthStatistics.of_counts(values, counts, "tokens", self._policy[0])
