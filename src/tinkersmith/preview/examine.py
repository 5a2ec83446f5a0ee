"""Samples -> counts, warnings, and the few samples that are worth a look, with their tokens.

Everything is counted in one pass; only the chosen samples stay in memory.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from tinkersmith.batches.source import Encoding
from tinkersmith.data.samples import Sample
from tinkersmith.preview.cells import Block, blocks_of, cells_of
from tinkersmith.preview.epoch import EpochCounts, FileCounts, epoch_counts
from tinkersmith.preview.findings import (
    OF_LENGTH,
    SAME_ANSWER_SHARE,
    Control,
    ProblemCounts,
    SameAnswer,
    SampleProblem,
    answer_hash,
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
        """Whether something is to be checked."""
        return bool(self.problems)

    @property
    def has_wrong_content(self) -> bool:
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
    files: dict[str, FileCounts] = field(default_factory=dict[str, FileCounts])
    epoch: EpochCounts | None = None  # where DATA_FILES has weights
    chosen: list[SampleView] = field(default_factory=list[SampleView])  # in the order of the data
    untrained: list[LengthEvent] = field(default_factory=list[LengthEvent])  # without a sequence


def examine_tokens(samples: Iterable[Sample], encoding: Encoding, choice: Choice) -> Examined:
    """Encode all samples as training does, count, and keep those that `choice` names."""
    control = Control.of(encoding.tokenizer, encoding.template)
    result = Examined()
    keeper = _Keeper(choice)
    suspicious_answers: Counter[int] = Counter()
    without = 0  # samples without a sequence so far
    encoded = encode_samples(  # `untrained` grows meanwhile
        samples,
        encoding.template,
        encoding.tokenizer,
        encoding.settings.train_on,
        result.untrained,
    )
    for number, (sample, sequences) in enumerate(encoded, start=1):
        view = _view(number, sample, sequences, encoding, control)
        if not sequences:
            reason = result.untrained[without].reason
            without += 1
            view = replace(
                view, problems=(*view.problems, SampleProblem("nothing trained", reason))
            )
        _count(result, view)
        if view.is_suspicious:
            suspicious_answers[answer_hash(sample)] += 1
        keeper.offer(view)
    same = result.findings.same_answer()
    result.chosen = keeper.kept(same)
    result.epoch = epoch_counts(result.files, encoding.settings.file_weights)
    if same is not None:
        result.counts.suspicious += same.count - suspicious_answers[same.hash]
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
    sent = [sequence for sequence in view.sequences if sequence.sent is not None]
    if sent:  # training leaves out samples of which nothing is
        file = result.files.setdefault(view.sample.source.file, FileCounts())
        file.samples += 1
        file.sequences += len(sent)
        file.tokens += sum(sequence.length for sequence in sent)
        file.trained += sum(int((sequence.weights > 0).sum()) for sequence in sent)
    result.findings.add_sample(view.sample, view.problems)


def _with_same_answer(view: SampleView, same: SameAnswer | None) -> SampleView:
    """The sample, with a problem if it has the answer of too many."""
    if same is None or answer_hash(view.sample) != same.hash:
        return view
    problem = SampleProblem("same answer", same.share)
    return replace(view, problems=(*view.problems, problem))


def is_multi_turn(sample: Sample) -> bool:
    """Whether the sample has more than one question and one answer."""
    return sum(turn.role != "system" for turn in sample.turns) > 2


class _SameAnswers:
    """The answers that may be those of more than SAME_ANSWER_SHARE of all samples.

    Misra & Gries 1982, "Finding repeated elements": with k counters, every answer of more than
    1 / (k + 1) of the samples is among them at the end.
    """

    _COUNTERS = int(1 / SAME_ANSWER_SHARE)

    def __init__(self, longest: int) -> None:
        self.longest = longest  # the most samples that are kept of an answer
        self._scores: dict[int, int] = {}
        self._views: dict[int, list[SampleView]] = {}

    def offer(self, view: SampleView) -> None:
        answer = answer_hash(view.sample)
        if answer in self._scores or len(self._scores) < self._COUNTERS:
            self._scores[answer] = self._scores.get(answer, 0) + 1
            views = self._views.setdefault(answer, [])
            if len(views) < self.longest:
                views.append(view)
            return
        self._scores = {key: score - 1 for key, score in self._scores.items() if score > 1}
        self._views = {key: views for key, views in self._views.items() if key in self._scores}

    def views(self, same: SameAnswer | None) -> list[SampleView]:
        """The samples that have this answer."""
        return [] if same is None else self._views.get(same.hash, [])


class _Keeper:
    """Keeps the samples of a choice, a few at a time, while all of them pass by."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self._first: list[SampleView] = []
        self._longest: list[tuple[int, int, SampleView]] = []  # a heap, the shortest on top
        self._by_kind: dict[str, list[SampleView]] = {}
        self._suspicious: list[SampleView] = []
        self._same = _SameAnswers(choice.count)
        self._random: list[SampleView] = []
        self._offered = 0
        self._chance = random.Random(choice.seed)

    def offer(self, view: SampleView) -> None:
        choice = self.choice
        if choice.record is not None and view.sample.source.record != choice.record:
            return
        if choice.name == "suspicious" or choice.mixed:
            self._same.offer(view)
        if not view.passes(choice.name):
            return
        if choice.name == "longest":
            self._offer_longest(view, choice.count)
        elif not choice.mixed:
            if len(self._first) < choice.count:
                self._first.append(view)
        else:
            self._offer_mixed(view)

    def kept(self, same: SameAnswer | None) -> list[SampleView]:
        """The chosen samples in the order of the data, the longest first if those were wanted.

        Args:
            same: the answer of too many samples, which is a problem of each of them.
        """
        if self.choice.name == "longest":
            ordered = sorted(self._longest, key=lambda entry: (-entry[0], -entry[1]))
            return [_with_same_answer(view, same) for _, _, view in ordered]
        by_worth = chain(
            self._first,
            (view for _, _, view in self._longest),
            *self._by_kind.values(),
            sorted([*self._suspicious, *self._same.views(same)], key=lambda view: view.number),
            self._random,
        )
        if not self.choice.mixed:  # the first ones of the data
            by_worth = sorted(by_worth, key=lambda view: view.number)
        wanted: dict[int, SampleView] = {}
        for view in by_worth:
            if len(wanted) >= self.choice.count:
                break
            wanted[view.number] = _with_same_answer(view, same)
        return [wanted[number] for number in sorted(wanted)]

    def _offer_longest(self, view: SampleView, count: int) -> None:
        entry = (view.length, -view.number, view)
        if len(self._longest) < count:
            heapq.heappush(self._longest, entry)
        elif entry[:2] > self._longest[0][:2]:
            heapq.heapreplace(self._longest, entry)

    def _offer_mixed(self, view: SampleView) -> None:
        """A tenth each for the first, the longest and each kind, then what else looks wrong.

        The others are random, those that are only too long among them: they may be many.
        """
        some = max(self.choice.count // 10, 1)
        if len(self._first) < some:
            self._first.append(view)
        self._offer_longest(view, some)
        kinds = {problem.kind for problem in view.problems}
        for kind in (*kinds, *(["multi-turn"] if view.is_multi_turn else [])):
            same = self._by_kind.setdefault(kind, [])
            if len(same) < some:
                same.append(view)
        if view.has_wrong_content and len(self._suspicious) < self.choice.count:
            self._suspicious.append(view)
        self._offered += 1
        if len(self._random) < self.choice.count:
            self._random.append(view)
        elif (place := self._chance.randrange(self._offered)) < self.choice.count:
            self._random[place] = view
