"""Samples -> counts, warnings, and the few samples that are worth a look, with their tokens.

Everything is counted in one pass; only the chosen samples stay in memory.
"""

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tinkersmith.batches.source import Encoding
from tinkersmith.data.samples import Sample
from tinkersmith.preview.cells import Block, blocks_of, cells_of
from tinkersmith.preview.findings import (
    OF_LENGTH,
    Control,
    ProblemCounts,
    SampleProblem,
    problems_of_sequence,
    problems_of_text,
)
from tinkersmith.preview.token_texts import TokenTexts
from tinkersmith.text.tokenize import (
    UNTRAINED,
    LengthEvent,
    TokenizedSample,
    encode_samples,
    length_policy,
    spans_before,
)

FILTERS = ("longest", "cut", "multi-turn", "suspicious", "all")


@dataclass(frozen=True, slots=True)
class SequenceView:
    """A sequence as it would be without a length limit, and what is sent of it."""

    tokens: np.ndarray  # (T,) int32
    sent: TokenizedSample | None  # None: too long, so nothing of it is trained on
    event: LengthEvent | None  # what the length policy did
    train_on: str  # a value of TRAIN_ON

    @property
    def weights(self) -> np.ndarray:
        """The loss weight of each token that is sent, (length,), 0 for the first one.

        Nothing predicts the first token of a sequence, so it is never trained on.
        """
        if self.sent is None:
            return np.zeros(0, np.float32)
        weights = self.sent.weights
        weights[:1] = 0
        return weights

    @property
    def length(self) -> int:
        """How many tokens are sent."""
        return 0 if self.sent is None else len(self.sent.tokens)

    def blocks(self, sample: Sample, texts: TokenTexts) -> list[Block]:
        """The tokens turn by turn."""
        cells = cells_of(self.tokens, self.weights, self.length, texts)
        return blocks_of(sample, cells, self.train_on)


@dataclass(frozen=True, slots=True)
class SampleView:
    """A sample with the sequences that it becomes."""

    number: int  # among all samples, counted from 1
    sample: Sample
    sequences: tuple[SequenceView, ...]
    problems: tuple[SampleProblem, ...]

    @property
    def length(self) -> int:
        """The number of tokens before the length policy."""
        return sum(len(view.tokens) for view in self.sequences)

    @property
    def is_cut(self) -> bool:
        return any(view.event is not None for view in self.sequences)

    @property
    def is_multi_turn(self) -> bool:
        return is_multi_turn(self.sample)

    @property
    def is_suspicious(self) -> bool:
        """Whether something looks wrong, but for its length."""
        return any(problem.kind not in OF_LENGTH for problem in self.problems)

    def passes(self, name: str) -> bool:
        """Whether the sample belongs to a filter. The longest are found by comparing all."""
        return (
            name in ("all", "longest")
            or (name == "cut" and self.is_cut)
            or (name == "multi-turn" and self.is_multi_turn)
            or (name == "suspicious" and self.is_suspicious)
        )


@dataclass(slots=True)
class Counts:
    """Counts of all samples that were looked at."""

    samples: int = 0
    sequences: int = 0
    tokens: int = 0  # that are sent
    trained: int = 0  # of those, the ones that the loss counts
    lost: int = 0  # tokens beyond the length limit
    cut: int = 0  # sequences
    too_long: int = 0  # sequences
    multi_turn: int = 0  # samples
    suspicious: int = 0  # samples


@dataclass(frozen=True, slots=True)
class Choice:
    """Which samples to keep for a look."""

    count: int  # at most
    name: str = "all"  # one of FILTERS
    record: int | None = None  # only the records with this number
    mixed: bool = False  # with "all": also the longest, suspicious ones, and others at random
    seed: int = 0


@dataclass(slots=True)
class Examined:
    """What a pass over the data found."""

    counts: Counts = field(default_factory=Counts)
    findings: ProblemCounts = field(default_factory=ProblemCounts)
    chosen: list[SampleView] = field(default_factory=list[SampleView])  # in the order of the data


def examine_tokens(samples: Iterable[Sample], encoding: Encoding, choice: Choice) -> Examined:
    """Encode all samples as training does, count, and keep those that `choice` names."""
    control = Control.of(encoding.tokenizer, encoding.template)
    result = Examined()
    keeper = _Keeper(choice)
    untrained: list[LengthEvent] = []  # grows while the samples are encoded
    encoded = encode_samples(
        samples, encoding.template, encoding.tokenizer, encoding.settings.train_on, untrained
    )
    for number, (sample, sequences) in enumerate(encoded, start=1):
        view = _view(number, sample, sequences, encoding, control)
        if not sequences:
            reason = next(event.reason for event in untrained if event.source == sample.source)
            view = replace(
                view, problems=(*view.problems, SampleProblem("nothing trained", reason))
            )
        _count(result, view)
        keeper.offer(view)
    result.chosen = keeper.kept()
    return result


def _view(
    number: int,
    sample: Sample,
    sequences: Sequence[tuple[np.ndarray, np.ndarray]],
    encoding: Encoding,
    control: Control,
) -> SampleView:
    problems = list(problems_of_text(sample, control))
    views: list[SequenceView] = []
    for tokens, spans in sequences:
        end, event = length_policy(
            sample.source, spans, len(tokens), encoding.max_length, encoding.truncate
        )
        sent = None
        if end:
            sent = TokenizedSample(tokens[:end], spans_before(spans, end), sample.source)
            problems += problems_of_sequence(sent.tokens, sent.spans, event is not None, control)
        else:
            problems.append(_why_left_out(spans, event, encoding))
        views.append(SequenceView(tokens, sent, event, encoding.settings.train_on))
    return SampleView(number, sample, tuple(views), tuple(problems))


def _why_left_out(
    spans: np.ndarray, event: LengthEvent | None, encoding: Encoding
) -> SampleProblem:
    """Why nothing of a sequence is sent."""
    if event is not None and event.kind == UNTRAINED:
        return SampleProblem("nothing trained", event.reason)
    is_prompt_too_long = int(spans[0, 0]) >= encoding.max_length
    return SampleProblem("too long" if is_prompt_too_long else "too long to send whole")


def _count(result: Examined, view: SampleView) -> None:
    counts = result.counts
    counts.samples += 1
    counts.sequences += len(view.sequences)
    counts.multi_turn += view.is_multi_turn
    counts.suspicious += view.is_suspicious
    for sequence in view.sequences:
        counts.tokens += sequence.length
        counts.lost += len(sequence.tokens) - sequence.length
        counts.cut += sequence.event is not None and sequence.sent is not None
        counts.too_long += sequence.sent is None
        if sequence.sent is not None:
            counts.trained += int((sequence.weights > 0).sum())
    result.findings.add_sample(view.sample, view.problems)


def is_multi_turn(sample: Sample) -> bool:
    """Whether the sample has more than one question and one answer."""
    return sum(turn.role != "system" for turn in sample.turns) > 2


class _Keeper:
    """Keeps the samples of a choice, a few at a time, while all of them pass by."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self._first: list[SampleView] = []
        self._longest: list[tuple[int, int, SampleView]] = []  # a heap, the shortest on top
        self._by_kind: dict[str, list[SampleView]] = {}
        self._random: list[SampleView] = []
        self._offered = 0
        self._chance = random.Random(choice.seed)

    def offer(self, view: SampleView) -> None:
        choice = self.choice
        if choice.record is not None and view.sample.source.record != choice.record:
            return
        if not view.passes(choice.name):
            return
        if choice.name == "longest":
            self._offer_longest(view, choice.count)
        elif not choice.mixed:
            if len(self._first) < choice.count:
                self._first.append(view)
        else:
            self._offer_mixed(view)

    def kept(self) -> list[SampleView]:
        """The chosen samples in the order of the data, the longest first if those were wanted."""
        if self.choice.name == "longest":
            longest = sorted(self._longest, key=lambda entry: (-entry[0], -entry[1]))
            return [view for _, _, view in longest]
        wanted = {view.number: view for view in self._first}
        wanted |= {view.number: view for _, _, view in self._longest}
        for views in self._by_kind.values():
            wanted |= {view.number: view for view in views}
        for view in self._random:
            if len(wanted) >= self.choice.count:
                break
            wanted[view.number] = view
        return [wanted[number] for number in sorted(wanted)][: self.choice.count]

    def _offer_longest(self, view: SampleView, count: int) -> None:
        entry = (view.length, -view.number, view)
        if len(self._longest) < count:
            heapq.heappush(self._longest, entry)
        elif entry[:2] > self._longest[0][:2]:
            heapq.heapreplace(self._longest, entry)

    def _offer_mixed(self, view: SampleView) -> None:
        """A tenth each for the first, the longest and each kind; the others are random."""
        some = max(self.choice.count // 10, 1)
        if len(self._first) < some:
            self._first.append(view)
        self._offer_longest(view, some)
        kinds = {problem.kind for problem in view.problems}
        for kind in (*kinds, *(["multi-turn"] if view.is_multi_turn else [])):
            same = self._by_kind.setdefault(kind, [])
            if len(same) < some:
                same.append(view)
        self._offered += 1
        if len(self._random) < self.choice.count:
            self._random.append(view)
        elif (place := self._chance.randrange(self._offered)) < self.choice.count:
            self._random[place] = view
