"""The losses of all samples in all epochs -> hard_samples.jsonl: what surprised the model most.

A wrong answer cannot be derived from the other samples, so that its loss stays high until it is
memorised (Arpit et al. 2017, "A Closer Look at Memorization in Deep Networks"; Pleiss et al. 2020
rank samples by what they see over all of training for the same reason). The plain loss ranks
badly: it is high for whatever was trained first. Therefore a sample is compared with the samples
that were trained beside it. Its score is the geometric mean, over the epochs, of

    (loss + FLOOR) / (median loss of the samples beside it + FLOOR)

with losses per trained token. FLOOR keeps differences between losses near 0 small.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinkersmith.batches.source import DataSource
from tinkersmith.data.samples import Sample, Source
from tinkersmith.errors import UserError
from tinkersmith.paths import seen_from_folder, seen_from_here
from tinkersmith.runs.folder import SAMPLE_LOSSES_FILE, RunFolder

HARD_SAMPLES_FILE = "hard_samples.jsonl"
BESIDE = 64  # samples, in the order of training, that a sample is compared with
FLOOR = 0.03  # nats per token
_LISTED = 10_000  # samples
_SHOWN = 200  # characters of a question and of an answer
_ENOUGH = 50  # samples, of which some can stand out
# Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers": the modified z-score.
_STANDS_OUT, _LEAST_TIMES = 3.5, 2.5


@dataclass
class _Scores:
    """What was measured of the samples of one file, by their record number."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # of logs
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))

    def add(self, records: np.ndarray, logs: np.ndarray) -> None:
        needed = int(records.max()) + 1
        if needed > len(self.sums):
            more = max(needed, 2 * len(self.sums)) - len(self.sums)
            self.sums = np.concatenate([self.sums, np.zeros(more, dtype=np.float32)])
            self.counts = np.concatenate([self.counts, np.zeros(more, dtype=np.uint32)])
        np.add.at(self.sums, records, logs)
        np.add.at(self.counts, records, 1)


@dataclass(frozen=True, slots=True)
class HardSample:
    """A sample, how surprising it was, and its mean loss per trained token in each epoch."""

    source: Source
    score: float  # how many times the loss of the samples beside it
    losses: list[float | None]  # None: it was not trained on in that epoch


@dataclass(frozen=True, slots=True)
class HardSamples:
    """The samples that surprised the model most, and how many stand out of all."""

    samples: list[HardSample]  # most surprising first
    outstanding: int
    count: int  # samples in all


def rank_samples(run: RunFolder, files: Iterable[str], listed: int = _LISTED) -> HardSamples:
    """Rank the samples of a run. Memory holds 8 bytes a sample, and the losses of those listed.

    Args:
        files: the names of the data files, as samples have them.

    Raises:
        UserError: sample_losses.jsonl is damaged.
    """
    scores: dict[str, _Scores] = {}
    epochs = 0
    for block in _blocks(run):
        epochs = max(epochs, block.epoch)
        logs = np.log(block.losses + FLOOR) - math.log(block.usual + FLOOR)
        for file in dict.fromkeys(block.files):
            places = np.array([name == file for name in block.files])
            scores.setdefault(file, _Scores()).add(block.records[places], logs[places])
    ranked = _highest(scores, listed)
    losses = _losses_of(run, {(file, record) for file, record, _ in ranked}, epochs)
    names = {seen_from_folder(run.path, file): file for file in files}
    samples = [
        HardSample(
            Source(names.get(file) or seen_from_here(run.path, file), record),
            math.exp(mean),
            losses[file, record],
        )
        for file, record, mean in ranked
    ]
    return HardSamples(samples, _outstanding(scores), sum(map(_trained, scores.values())))


def write_hard_samples(run: RunFolder, hard: HardSamples, source: DataSource) -> None:
    """Write hard_samples.jsonl, with the beginnings of questions and answers.

    Raises:
        UserError: the data has changed meanwhile.
    """
    texts = source.find({sample.source for sample in hard.samples})
    run.rewrite(HARD_SAMPLES_FILE, _lines(hard.samples, texts))


def hard_samples_line(hard: HardSamples) -> str:
    """One sentence of advice; "" where no sample stands out."""
    if not hard.outstanding:
        return ""
    first = hard.samples[0]
    loss = next(loss for loss in reversed(first.losses) if loss is not None)
    many = "1 of them stands" if hard.outstanding == 1 else f"{hard.outstanding:,} of them stand"
    return (
        f"{HARD_SAMPLES_FILE} lists the samples that surprised the model most; {many} out. The "
        f"first: {first.source} (loss {loss:.3g}, {first.score:,.0f} times that of others). "
        "Look at these samples first when you search for wrong answers."
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Samples that were trained one after the other, with their usual loss."""

    epoch: int
    files: list[str]
    records: np.ndarray
    losses: np.ndarray  # float64, nats per token
    usual: float  # the median of these, or of the last BESIDE at the end of an epoch


def _blocks(run: RunFolder) -> Iterator[_Block]:
    epoch, held, former = 0, list[_Entry](), list[_Entry]()
    for line_epoch, entries in _lines_of(run):
        if line_epoch != epoch:
            if held:
                yield _block(epoch, held, [*former, *held][-BESIDE:])
            epoch, held, former = line_epoch, [], []
        held += entries
        if len(held) >= BESIDE:
            yield _block(epoch, held, held)
            held, former = [], held
    if held:
        yield _block(epoch, held, [*former, *held][-BESIDE:])


_Entry = tuple[str, int, float]  # file, record, loss


def _lines_of(run: RunFolder) -> Iterator[tuple[int, list[_Entry]]]:
    """The epoch and the entries of each line of sample_losses.jsonl.

    Raises:
        UserError: a line is damaged.
    """
    for number, line in enumerate(run.each_line(SAMPLE_LOSSES_FILE), start=1):
        try:
            entries = [
                (file, int(record), float(loss))
                for file, rows in line["losses"].items()
                for record, _, loss in rows
            ]
            yield int(line["epoch"]), entries
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{run.file(SAMPLE_LOSSES_FILE)}, line {number} is damaged: it holds no epoch with "
                "losses. Remove that line."
            ) from None


def _block(epoch: int, entries: list[_Entry], beside: list[_Entry]) -> _Block:
    files, records, losses = zip(*entries, strict=True)
    usual = float(np.median([loss for _, _, loss in beside]))
    return _Block(epoch, list(files), np.array(records), np.array(losses, dtype=np.float64), usual)


def _highest(scores: Mapping[str, _Scores], listed: int) -> list[tuple[str, int, float]]:
    """File, record and mean logarithm of the most surprising samples; ties in the files' order."""
    candidates: list[tuple[str, int, float]] = []
    for file, score in scores.items():
        records, means = _means(score)
        order = np.argsort(-means, kind="stable")[:listed]
        candidates += [(file, int(records[place]), float(means[place])) for place in order]
    return sorted(candidates, key=lambda entry: (-entry[2], entry[0], entry[1]))[:listed]


def _means(score: _Scores) -> tuple[np.ndarray, np.ndarray]:
    records = np.flatnonzero(score.counts)
    return records, score.sums[records] / score.counts[records]


def _trained(score: _Scores) -> int:
    return int(np.count_nonzero(score.counts))


def _outstanding(scores: Mapping[str, _Scores]) -> int:
    """How many samples are far from the others, by the modified z-score of their logarithms."""
    means = np.concatenate([np.zeros(0), *(_means(score)[1] for score in scores.values())])
    if len(means) < _ENOUGH:
        return 0
    middle = np.median(means)
    spread = max(float(np.median(np.abs(means - middle))), 1e-6)
    is_far = 0.6745 * (means - middle) / spread > _STANDS_OUT
    return int(np.count_nonzero(is_far & (means > math.log(_LEAST_TIMES))))


def _losses_of(
    run: RunFolder, wanted: set[tuple[str, int]], epochs: int
) -> dict[tuple[str, int], list[float | None]]:
    """The losses of these samples in each epoch; a sample that came twice has its mean."""
    sums: dict[tuple[str, int], list[tuple[float, int]]] = {
        key: [(0.0, 0)] * epochs for key in wanted
    }
    for epoch, entries in _lines_of(run):
        for file, record, loss in entries:
            if (file, record) in wanted:
                total, count = sums[file, record][epoch - 1]
                sums[file, record][epoch - 1] = (total + loss, count + 1)
    return {
        key: [round(total / count, 5) if count else None for total, count in row]
        for key, row in sums.items()
    }


def _lines(
    samples: Iterable[HardSample], texts: Mapping[Source, Sample]
) -> Iterator[dict[str, Any]]:
    for rank, hard in enumerate(samples, start=1):
        known = [loss for loss in hard.losses if loss is not None]
        question, answer = _beginnings(texts[hard.source]) if hard.source in texts else ("", "")
        yield {
            "rank": rank,
            "file": hard.source.file,
            "record": hard.source.record,
            "score": round(hard.score, 3),
            "losses": hard.losses,
            "fall": round(known[0] - known[-1], 5),
            "question": question,
            "answer": answer,
        }


def _beginnings(sample: Sample) -> tuple[str, str]:
    return _beginning(last_question(sample)), _beginning(sample.output)


def last_question(sample: Sample) -> str:
    """What the sample's last answer replies to: the turns since the answer before it."""
    turns: list[str] = []
    for turn in reversed(sample.context):
        if turn.role not in ("user", "tool"):
            break
        turns.insert(0, "\n".join(text for text in (turn.text, turn.input) if text))
    return "\n".join(turns)


def _beginning(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
