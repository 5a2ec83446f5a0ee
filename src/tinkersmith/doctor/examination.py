"""Samples -> findings: what may be wrong with them, and what they have in common.

Samples come one after another, so their files need not fit into memory: about 400 bytes are kept of
each, and their texts in a temporary file. This module does not read files or print.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tinkersmith.data.duplicates import DuplicateFinder
from tinkersmith.data.near_duplicates import NearPair, without_near_duplicates
from tinkersmith.data.samples import Sample, Source
from tinkersmith.doctor.answers import in_an_exchange
from tinkersmith.doctor.findings import FINDING_KINDS, DataFinding, as_json
from tinkersmith.doctor.markup import in_an_answer, in_any_text
from tinkersmith.doctor.outliers import Lengths, Scripts
from tinkersmith.doctor.repeats import Contradiction, Leaks, Repeats
from tinkersmith.doctor.texts import (
    Frame,
    TextStore,
    answer_text,
    beginning,
    ending,
    exchanges_of,
    question_text,
    where_they_differ,
    without_thought,
)
from tinkersmith.doctor.truncation import EndsOfAnswers, what_is_open
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress

FRAME_FROM = 2000  # samples, the first ones, which show what questions have in common


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found."""

    samples: int
    findings: dict[str, list[DataFinding]]  # every kind that was looked for
    left_out: dict[str, set[Source]]  # kind -> the samples that --drop leaves out
    clusters: int  # of near-duplicates

    @property
    def count(self) -> int:
        return sum(map(len, self.findings.values()))


def examine_data(
    samples: Iterable[Sample],
    test: Sequence[Sample],
    threshold: float,
    seed: int,
    progress: Progress,
) -> Examination:
    """Look at all samples.

    Args:
        samples: file by file.
        test: samples that should not be trained on.
        threshold: the Jaccard index of 5-grams from which on texts are near-duplicates.
        seed: decides the hash functions of the search for near-duplicates.
    """
    remaining = iter(samples)
    first = [sample for sample, _ in zip(remaining, range(FRAME_FROM), strict=False)]
    with progress.doing("looking at the samples") as task:
        looks = _Looks(first, test, threshold, seed)
        try:
            for number, sample in enumerate(_after(first, remaining), start=1):
                looks.add(sample)
                if number % 1000 == 0:
                    progress.reached(task, f"Looked at {counted(number, 'sample')}", 0.0)
            with progress.doing("comparing the samples"):
                return looks.result()
        finally:
            looks.close()


def _after(first: list[Sample], remaining: Iterator[Sample]) -> Iterator[Sample]:
    while first:
        yield first.pop(0)
    yield from remaining


class _Looks:
    """What is kept of the samples that were looked at."""

    def __init__(
        self, first: Sequence[Sample], test: Sequence[Sample], threshold: float, seed: int
    ) -> None:
        frame = Frame(question_text(sample) for sample in first)
        self._store = TextStore()
        self._test = test
        self._files: list[str] = []
        self._file_numbers, self._records = array("I"), array("I")
        self._exact = DuplicateFinder()
        self._repeats = Repeats(self._store, frame, threshold, seed)
        self._leaks = Leaks(test, self._store, frame, threshold, seed) if test else None
        self._ends, self._scripts = EndsOfAnswers(), Scripts()
        self._lengths = {name: Lengths(name) for name in ("question", "answer")}
        self._findings: dict[str, list[DataFinding]] = {
            kind: [] for kind in FINDING_KINDS if test or kind != "leakage"
        }

    def add(self, sample: Sample) -> None:
        if not self._files or self._files[-1] != sample.source.file:
            self._files.append(sample.source.file)
        self._file_numbers.append(len(self._files) - 1)
        self._records.append(sample.source.record)
        question, answer = question_text(sample), answer_text(sample)
        self._store.add(question, answer)
        self._exact.add(sample)
        self._repeats.add(sample, question, answer)
        if self._leaks is not None:
            self._leaks.add(sample)
        last_answer = without_thought(sample.output)
        self._ends.add(last_answer if sample.context else "")
        self._scripts.add(question, last_answer)
        self._lengths["question"].add(question)
        self._lengths["answer"].add(answer)
        seen: set[str] = set()  # a kind is reported once for a sample
        for kind, reason in self._problems_of(sample):
            if kind not in seen:
                seen.add(kind)
                self._findings[kind].append(DataFinding(kind, sample.source, reason))

    def _problems_of(self, sample: Sample) -> Iterator[tuple[str, str]]:
        if sample.turns[-1].role == "text":
            yield from in_any_text(sample.output, sample.output)
            return
        everything = "\n".join(
            text for turn in sample.turns for text in (turn.text, turn.input) if text
        )
        for turn in sample.turns:
            if turn.role == "tool":  # what a tool returns is what it is
                continue
            for text in (turn.text, turn.input, turn.thought):
                if text:
                    yield from in_any_text(text, everything)
        for exchange in exchanges_of(sample):
            yield from in_an_exchange(exchange)
            yield from in_an_answer(exchange.answer, everything)
            if what := what_is_open(exchange.answer):
                yield "truncated", f"{what}: {ending(exchange.answer)}"

    def result(self) -> Examination:
        exact = self._exact_duplicates()
        pairs, clusters = self._repeats.near_duplicates(exact)
        self._near_duplicates(pairs, clusters)
        contradictions = self._contradictions()
        self._leakage()
        self._outliers()
        left_out = {
            kind: {finding.source for finding in findings}
            for kind, findings in self._findings.items()
        }
        near = without_near_duplicates(pairs)
        near.update(number for number, first in exact.items() if first in near)
        left_out["near-duplicates"] = set(map(self._source, near))
        for contradiction in contradictions:  # nobody knows which of the two is right
            left_out["contradictions"].add(self._source(contradiction.first))
        return Examination(len(self._records), self._findings, left_out, len(clusters))

    def close(self) -> None:
        self._store.close()

    def _source(self, number: int) -> Source:
        return Source(self._files[self._file_numbers[number]], self._records[number])

    def _report(self, kind: str, number: int, reason: str, **more: object) -> None:
        self._findings[kind].append(DataFinding(kind, self._source(number), reason, more))

    def _exact_duplicates(self) -> dict[int, int]:
        """Each duplicate with the first sample that it equals."""
        firsts = dict(self._exact.duplicates().numbers.tolist())
        for number, first in firsts.items():
            original = self._source(first)
            self._report(
                "exact-duplicates", number, f"equals {original}", copy_of=as_json(original)
            )
        return firsts

    def _near_duplicates(self, pairs: Sequence[NearPair], clusters: list[list[int]]) -> None:
        cluster_of = {
            number: place for place, cluster in enumerate(clusters, 1) for number in cluster
        }
        seen: set[int] = set()
        for pair in pairs:  # the nearest first
            if pair.text in seen:
                continue
            seen.add(pair.text)
            other = self._source(pair.other)
            cluster = clusters[cluster_of[pair.text] - 1]
            among = f", in a cluster of {len(cluster):,}" if len(cluster) > 2 else ""
            self._report(
                "near-duplicates",
                pair.text,
                f"{_percent(pair.similarity)} equal to {other}{among}",
                near=as_json(other),
                similarity=round(pair.similarity, 4),
                cluster=cluster_of[pair.text],
                cluster_first=as_json(self._source(cluster[0])),
            )

    def _contradictions(self) -> list[Contradiction]:
        contradictions = self._repeats.contradictions()
        for contradiction in contradictions:
            first = self._source(contradiction.first)
            answers = where_they_differ(
                self._store.answer(contradiction.number), self._store.answer(contradiction.first)
            )
            self._report(
                "contradictions",
                contradiction.number,
                f"answers {answers[0]}, but {first} answers {answers[1]}",
                answered_first=as_json(first),
                same_question=contradiction.group,
            )
        return contradictions

    def _leakage(self) -> None:
        if self._leaks is None:
            return
        for pair in self._leaks.pairs():
            tested = self._test[pair.other].source
            nearly = "" if pair.similarity == 1 else f" nearly ({_percent(pair.similarity)})"
            self._report(
                "leakage",
                pair.text,
                f"asks{nearly} what {tested} asks",
                test=as_json(tested),
                similarity=round(pair.similarity, 4),
            )

    def _outliers(self) -> None:
        known = {finding.source for finding in self._findings["truncated"]}
        for number, why in sorted(self._ends.cut_off().items()):
            if self._source(number) not in known:
                self._report("truncated", number, f"{why}: {ending(self._store.answer(number))}")
        self._findings["truncated"].sort(key=lambda finding: self._place(finding.source))
        for number, why in sorted(self._scripts.outliers().items()):
            self._report("language", number, f"{why}: {beginning(self._store.answer(number))}")
        reasons = self._lengths["answer"].outliers()
        for number, why in self._lengths["question"].outliers().items():
            reasons[number] = f"{reasons[number]}; {why}" if number in reasons else why
        for number, why in sorted(reasons.items()):
            self._report("length", number, why)

    def _place(self, source: Source) -> tuple[int, int]:
        return self._files.index(source.file), source.record


def _percent(similarity: float) -> str:
    """A similarity for people; 100 % only if nothing differs but case, width and white space."""
    return "100 %" if similarity == 1 else f"{min(100 * similarity, 99.9):.1f} %"
