"""One model's answers -> its scores by distinct question, pass@k, votes, and copies of questions.

A question counts once, however many samples ask it and however many answers it gets. A thought that
never ended is no answer: it is counted, and has no score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinkersmith.data.samples import Source
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.evaluation.results import Record
from tinkersmith.grading.compare import same_answer
from tinkersmith.metrics.names import LOWER_IS_BETTER
from tinkersmith.statistics.draws import majority_vote, pass_at_k
from tinkersmith.statistics.intervals import mean_interval

MAIN_METRIC = "final_answer"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean score with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int  # distinct questions
    shares: bool  # whether scores lie between 0 and 1: they are told in percent

    def to_json(self) -> dict[str, Any]:
        ends = [end if np.isfinite(end) else None for end in (self.low, self.high)]
        return {"mean": self.mean, "n": self.n, "interval_95": ends}


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's answers to the whole test set."""

    records: list[Record]
    seconds: float

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The estimate of each metric."""
        return estimates(self.records)

    @property
    def mean_tokens(self) -> float:
        return sum(record.tokens for record in self.records) / max(1, len(self.records))

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": {
                name: {
                    "rate": found.mean,
                    "correct": round(found.mean * found.n, 9),
                    **found.to_json(),
                }
                for name, found in self.metrics.items()
            },
            "mean_tokens": self.mean_tokens,
            "cut_at_token_limit": _samples_of(cut(self.records)),
            "unfinished_thoughts": _samples_of(unfinished(self.records)),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The answers of the trained model and of the base model, and what limits them."""

    model_path: str
    base_model: str
    trained: Scored
    base: Scored | None  # the untouched base model, if requested
    too_long: list[Source]  # prompts that leave no space for an answer
    leaks: Overlap  # what of the test set was trained on
    output_file: Path
    measures: dict[str, Any] = field(default_factory=dict[str, Any])  # of all answers together
    measures_said: list[str] = field(default_factory=list[str])  # the same in sentences
    label_matrix: list[list[object]] = field(default_factory=list[list[object]])  # rows of a table

    @property
    def overlap(self) -> list[tuple[Source, Source]] | None:
        """(training, test) of each test question that was trained on; None: not known."""
        return self.leaks.pairs


@dataclass(frozen=True, slots=True)
class Draws:
    """What several answers to a question are good for together."""

    pass_at: dict[int, Estimate]  # at least one of so many answers is right
    majority: Estimate | None  # the answer of most is right; None without final answers
    ties: int  # questions where several answers have most votes

    def to_json(self) -> dict[str, Any]:
        return {
            "pass_at_k": {str(k): estimate.to_json() for k, estimate in self.pass_at.items()},
            "majority_vote": self.majority.to_json() if self.majority else None,
            "majority_ties": self.ties,
        }


@dataclass(frozen=True, slots=True)
class Copies:
    """Samples that ask the same question."""

    repeated: list[list[Source]]  # the samples of each question that several ask
    contradictions: list[list[Source]]  # those of them that expect different answers

    @property
    def extra(self) -> int:
        """How many samples ask what an earlier one asks."""
        return sum(len(sources) - 1 for sources in self.repeated)

    def to_json(self) -> dict[str, Any]:
        return {
            "repeated_questions": [list(map(str, sources)) for sources in self.repeated],
            "contradictions": [list(map(str, sources)) for sources in self.contradictions],
        }


def by_question(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each distinct question, in the order of the test set."""
    questions: dict[str, list[Record]] = {}
    for record in records:
        questions.setdefault(record.question or record.prompt, []).append(record)
    return questions


def metric_names(records: Sequence[Record]) -> list[str]:
    """The metrics that the records have."""
    return list(dict.fromkeys(name for record in records for name in record.scores))


def main_metric(names: Sequence[str]) -> str:
    """The metric that a verdict is about, unless another one is named."""
    return MAIN_METRIC if MAIN_METRIC in names else names[0]


def draws_of(records: Sequence[Record]) -> int:
    """How many answers a sample has at most."""
    return max((record.draw for record in records), default=1)


def are_shares(metric: str, records: Iterable[Record]) -> bool:
    """Whether all scores of a metric lie between 0 and 1."""
    values = (record.scores.get(metric, 0.0) for record in records)
    return metric not in LOWER_IS_BETTER and all(0 <= value <= 1 for value in values)


def question_score(records: Sequence[Record], metric: str) -> float | None:
    """The mean score of a question's answers; None if it has none.

    Each sample that asks it counts alike, however many of its answers have a score.
    """
    if len(records) == 1:
        return records[0].scores.get(metric) if records[0].thought_finished else None
    of_sample: dict[Source, list[float]] = {}
    for record in records:
        if record.thought_finished and metric in record.scores:
            of_sample.setdefault(record.source, []).append(record.scores[metric])
    means = [sum(scores) / len(scores) for scores in of_sample.values()]
    return sum(means) / len(means) if means else None


def counting_unfinished(records: Sequence[Record], metric: str) -> float:
    """Like `question_score`, with thoughts that never ended counted as wrong answers."""
    return sum(r.scores.get(metric, 0.0) if r.thought_finished else 0.0 for r in records) / len(
        records
    )


def estimate(records: Sequence[Record], metric: str, shares: bool | None = None) -> Estimate:
    """The mean score of a model with its interval by distinct question.

    Args:
        shares: whether the scores lie between 0 and 1; by default, whether these do.
    """
    scores = [question_score(group, metric) for group in by_question(records).values()]
    known = [value for value in scores if value is not None]
    if shares is None:
        shares = are_shares(metric, records)
    return estimate_of(known, draws_of(records), shares=shares)


def estimate_of(scores: Sequence[float], draws: int = 1, *, shares: bool = True) -> Estimate:
    """The mean of scores, one for each question, with its interval."""
    values = np.array(scores, float)
    low, high = mean_interval(values, draws, bounded=shares)
    return Estimate(float(values.mean()) if len(values) else 0.0, low, high, len(values), shares)


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """The estimate of each metric."""
    return {metric: estimate(records, metric) for metric in metric_names(records)}


def unfinished(records: Sequence[Record]) -> list[Record]:
    """Answers that end within the thought."""
    return [record for record in records if not record.thought_finished]


def cut(records: Sequence[Record]) -> list[Record]:
    """Answers that were cut at the token limit after the thought."""
    return [r for r in records if r.thought_finished and r.stop_reason == "length"]


def _samples_of(records: Sequence[Record]) -> int:
    return len({record.source for record in records})


# ---- several answers


def draws(records: Sequence[Record], metric: str) -> Draws | None:
    """pass@k and the majority vote; None with one answer a question or a graded metric."""
    most = draws_of(records)
    values = {r.scores[metric] for r in records if r.thought_finished and metric in r.scores}
    if most < 2 or values - {0.0, 1.0}:
        return None
    samples = [_samples(group, metric) for group in by_question(records).values()]
    counts = [
        (question, len(answers), sum(record.scores[metric] for record in answers))
        for question, sample_answers in enumerate(samples)
        for answers in sample_answers
    ]
    questions, answered, right = np.array(counts, float).reshape(-1, 3).T
    sizes = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < most} | {most})
    pass_at: dict[int, Estimate] = {}
    for k in sizes:
        enough = answered >= k
        passed = pass_at_k(answered[enough], right[enough], k)
        asked = questions[enough].astype(int)
        samples_of = np.bincount(asked, minlength=len(samples))
        means = (
            np.bincount(asked, passed, len(samples))[samples_of > 0] / samples_of[samples_of > 0]
        )
        # The estimate from all answers at once is right or wrong, as that of a single answer is.
        pass_at[k] = estimate_of(means.tolist(), 1 if k == most else most)
    return Draws(pass_at, *_majority(samples, metric))


def _samples(records: Sequence[Record], metric: str) -> list[list[Record]]:
    """The scored answers of each sample that asks a question."""
    of_sample: dict[Source, list[Record]] = {}
    for record in records:
        if record.thought_finished and metric in record.scores:
            of_sample.setdefault(record.source, []).append(record)
    return list(of_sample.values())


def _majority(
    questions: Sequence[Sequence[Sequence[Record]]], metric: str
) -> tuple[Estimate | None, int]:
    if not any(r.final_answer for samples in questions for a in samples for r in a):
        return None, 0
    scores: list[float] = []
    ties = 0
    for samples in questions:
        shares: list[float] = []
        for answers in samples:
            vote = majority_vote([_voice(record) for record in answers], _same_voice)
            winners = [answers[group[0]].scores[metric] for group in vote.winners]
            shares.append(sum(winners) / len(winners) if winners else 0.0)
            if vote.tied and answers is samples[0]:
                ties += 1
        if shares:
            scores.append(sum(shares) / len(shares))
    return estimate_of(scores), ties


_RIGHT = "\0right"  # no final answer is this text


def _voice(record: Record) -> str | None:
    """What an answer votes for. Right answers equal the expected one, and so each other."""
    is_right = record.final_answer is not None and record.scores.get(MAIN_METRIC) == 1
    return _RIGHT if is_right else record.final_answer


def _same_voice(first: str, second: str) -> bool:
    if _RIGHT in (first, second):
        return False
    # Without the second opinion: a vote compares many pairs of wrong answers.
    return same_answer(first, second, second_opinion=False).equal


# ---- copies


def copies(records: Sequence[Record]) -> Copies:
    """Questions that several samples ask, and those of them that expect different answers."""
    repeated: list[list[Source]] = []
    contradictions: list[list[Source]] = []
    for group in by_question(records).values():
        first_of = {record.source: record for record in reversed(group)}
        if len(first_of) < 2:
            continue
        sources = list(dict.fromkeys(record.source for record in group))
        repeated.append(sources)
        first = first_of[sources[0]]
        if not all(same_expected(first, first_of[source]) for source in sources[1:]):
            contradictions.append(sources)
    return Copies(repeated, contradictions)


def same_expected(first: Record, second: Record) -> bool:
    """Whether two samples expect the same answer."""
    if (first.expected, first.expected_answer) == (second.expected, second.expected_answer):
        return True
    if first.expected_answer is None or second.expected_answer is None:
        return " ".join(first.expected.split()) == " ".join(second.expected.split())
    return same_answer(first.expected_answer, second.expected_answer).equal
