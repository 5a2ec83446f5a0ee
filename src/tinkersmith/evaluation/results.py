"""The results of an evaluation: one record per answer, rates with intervals, and their report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.data.samples import Source
from tinkersmith.grading.scoring import METRICS
from tinkersmith.statistics.intervals import wilson_interval

_TITLES = {
    "exact_match": "exact match",
    "final_answer": "final answer",
    "contains_answer": "contains answer",
}


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of correct samples with its 95 % interval."""

    correct: float  # samples; a fraction if several answers to one prompt are averaged
    n: int  # samples

    @property
    def rate(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.correct, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:6.1%} ({low:.1%} to {high:.1%})"

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "correct": self.correct,
            "n": self.n,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True, slots=True)
class Record:
    """One answer to one prompt."""

    source: Source
    prompt: str
    expected: str
    expected_answer: str | None
    produced: str
    scores: dict[str, float]
    stop_reason: str  # "stop" or "length"
    tokens: int
    draw: int  # counted from 1, if several answers are sampled for a prompt
    question: str = ""  # the digest of the prompt's tokens: copies of a question share it
    final_answer: str | None = None  # of `produced`; None if it gives none
    rule: str = ""  # which rule of `grading` found it
    kind: str = ""  # what the expected answer is, in the words of `grading`: "number", "choice"
    thought_finished: bool = True  # False: the tokens ran out within the thought
    prompt_tokens: int = 0
    fields: Mapping[str, str] = field(default_factory=dict[str, str])  # short extra fields

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.source.file,
            "record": self.source.record,
            "draw": self.draw,
            "prompt": self.prompt,
            "expected": self.expected,
            "expected_answer": self.expected_answer,
            "produced": self.produced,
            "scores": self.scores,
            "stop_reason": self.stop_reason,
            "tokens": self.tokens,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's answers to the whole test set."""

    records: list[Record]
    seconds: float

    @property
    def metrics(self) -> dict[str, Rate]:
        """The rate of each metric; several answers to one prompt are averaged."""
        sources = {record.source for record in self.records}
        draws = max(1, len(self.records) // max(1, len(sources)))
        return {
            name: Rate(sum(record.scores[name] for record in self.records) / draws, len(sources))
            for name in METRICS
        }

    @property
    def cut(self) -> list[Source]:
        """Samples with an answer that was cut at the token limit."""
        return list(dict.fromkeys(r.source for r in self.records if r.stop_reason == "length"))

    @property
    def mean_tokens(self) -> float:
        return sum(record.tokens for record in self.records) / max(1, len(self.records))

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": {name: rate.to_json() for name, rate in self.metrics.items()},
            "mean_tokens": self.mean_tokens,
            "cut_at_token_limit": len(self.cut),
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
    overlap: list[tuple[Source, Source]] | None  # (training, test); None: training data not found
    output_file: Path


def report(result: EvaluationResult, max_tokens: int) -> list[str]:
    """The rates, what limits them, and two answers, line by line."""
    columns = [("trained model", result.trained)]
    columns += [("base model", result.base)] if result.base else []
    lines = ["", f"{'':16}" + "".join(f"{title:28}" for title, _ in columns).rstrip()]
    for name, title in _TITLES.items():
        cells = "".join(f"{scored.metrics[name]!s:28}" for _, scored in columns)
        if result.base:
            gain = result.trained.metrics[name].rate - result.base.metrics[name].rate
            cells += f"{100 * gain:+.1f} points"
        lines.append(f"{title:16}{cells}".rstrip())
    n = len({record.source for record in result.trained.records})
    lines += [f"n = {n:,}; in brackets: 95 % interval (Wilson).", ""]
    for title, scored in columns:
        lines.append(
            f"The {title}: {scored.mean_tokens:.1f} tokens an answer, {scored.seconds:.1f} s."
        )
        if scored.cut:
            were = "was" if len(scored.cut) == 1 else "were"
            lines.append(
                f"  {len(scored.cut):,} of its answers {were} cut at SAMPLING_MAX_TOKENS = "
                f"{max_tokens:,} or at the end of the context: "
                f"{named(scored.cut)}."
            )
    for title, wanted in (("A correct answer", 1.0), ("An incorrect answer", 0.0)):
        examples = [r for r in result.trained.records if r.scores["final_answer"] == wanted]
        if examples:
            lines += ["", f"{title} ({examples[0].source}):", *_shown(examples[0])]
    lines += ["", f"All answers: {result.output_file}"]
    return lines


def named(sources: list[Source]) -> str:
    """The first five sources, and how many more there are."""
    more = f" and {len(sources) - 5:,} more" if len(sources) > 5 else ""
    return "; ".join(map(str, sources[:5])) + more


def _shown(record: Record) -> list[str]:
    return [
        line
        for title, text in (
            ("prompt", record.prompt),
            ("expected", record.expected),
            ("produced", record.produced),
        )
        for line in (f"  {title}:", *(f"    {row}" for row in _short(text).splitlines()))
    ]


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text) - limit:,} more)"
