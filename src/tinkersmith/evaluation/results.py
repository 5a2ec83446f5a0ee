"""The results of an evaluation: one record per answer, rates with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError, unreadable
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.files import kind_of_json, read_json_object
from tinkersmith.grading.scoring import METRICS
from tinkersmith.statistics.intervals import wilson_interval

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
    generated: str = ""  # the whole text with its thought, where `produced` is only a part of it
    fields: Mapping[str, str] = field(default_factory=dict[str, str])  # short extra fields

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.source.file,
            "record": self.source.record,
            "draw": self.draw,
            "question": self.question,
            "prompt": self.prompt,
            "expected": self.expected,
            "expected_answer": self.expected_answer,
            "produced": self.produced,
            "generated": self.generated or None,
            "final_answer": self.final_answer,
            "rule": self.rule,
            "kind": self.kind,
            "scores": self.scores,
            "stop_reason": self.stop_reason,
            "thought_finished": self.thought_finished,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "fields": dict(self.fields),
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
    def unfinished_thoughts(self) -> list[Source]:
        """Samples with an answer that ends within its thought. It counts as no answer."""
        return list(dict.fromkeys(r.source for r in self.records if not r.thought_finished))

    @property
    def mean_tokens(self) -> float:
        return sum(record.tokens for record in self.records) / max(1, len(self.records))

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": {name: rate.to_json() for name, rate in self.metrics.items()},
            "mean_tokens": self.mean_tokens,
            "cut_at_token_limit": len(self.cut),
            "unfinished_thoughts": len(self.unfinished_thoughts),
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

    @property
    def overlap(self) -> list[tuple[Source, Source]] | None:
        """(training, test) of each test question that was trained on; None: not known."""
        return self.leaks.pairs


SCHEMA_VERSION = 2  # of files of results; those of version 0.2 and before have no number
_LARGEST = 4_000_000_000  # bytes of a file of results
_TEXT, _NUMBER, _MAYBE_TEXT = str, (int, float), (str, type(None))
_STORED: dict[str, type | tuple[type, ...]] = {  # in every version
    "file": _TEXT,
    "record": int,
    "draw": int,
    "prompt": _TEXT,
    "expected": _TEXT,
    "expected_answer": _MAYBE_TEXT,
    "produced": _TEXT,
    "scores": dict,
    "stop_reason": _TEXT,
    "tokens": int,
}
_SINCE_2: dict[str, type | tuple[type, ...]] = {
    "question": _TEXT,
    "generated": _MAYBE_TEXT,
    "final_answer": _MAYBE_TEXT,
    "rule": _TEXT,
    "kind": _TEXT,
    "thought_finished": bool,
    "prompt_tokens": int,
    "fields": dict,
}


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """What a file of results holds."""

    path: Path
    schema_version: int
    facts: dict[str, Any]  # all but the records
    trained: list[Record]
    base: list[Record]  # empty where the base model was not asked


def read_results(path: Path | str) -> ResultsFile:
    """A file that an evaluation wrote, also one of an earlier version.

    Raises:
        UserError: it is no such file, is damaged, or a later version wrote it.
    """
    path = Path(path)
    try:
        content = read_json_object(path, _LARGEST)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise UserError(f"{path} holds no results of an evaluation: {error}.") from None
    version = content.get("schema_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UserError(f'{path} is damaged: "schema_version" is {kind_of_json(version)}.')
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this version of Tinkersmith reads up to "
            f"{SCHEMA_VERSION}. Use the version that wrote it, or a later one."
        )
    if "samples" not in content or "model_path" not in content:
        raise UserError(
            f"{path} holds no results of an evaluation. Name a file that `tinkersmith evaluate` "
            "wrote with --output."
        )
    return ResultsFile(
        path=path,
        schema_version=version,
        facts={
            name: value
            for name, value in content.items()
            if name not in ("samples", "base_samples")
        },
        trained=_records(path, version, "samples", content["samples"]),
        base=_records(path, version, "base_samples", content.get("base_samples", [])),
    )


def _records(path: Path, version: int, where: str, stored: object) -> list[Record]:
    if not isinstance(stored, list):
        raise UserError(f'{path} is damaged: "{where}" is {kind_of_json(stored)}, not a list.')
    wanted = _STORED | (_SINCE_2 if version >= 2 else {})
    records: list[Record] = []
    for place, item in enumerate(cast("list[object]", stored), start=1):
        which = f'{path} is damaged: record {place:,} of "{where}"'
        if not isinstance(item, dict):
            raise UserError(f"{which} is {kind_of_json(item)}, not an object.")
        values = cast("dict[str, Any]", item)
        for name, kind in wanted.items():
            if name not in values:
                raise UserError(f'{which} has no "{name}".')
            value = values[name]
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UserError(f'{which} has {kind_of_json(value)} as "{name}".')
        records.append(_record(which, values))
    return records


def _record(which: str, values: Mapping[str, Any]) -> Record:
    scores: dict[str, float] = {}
    for name, value in cast("dict[str, object]", values["scores"]).items():
        if isinstance(value, bool) or not isinstance(value, _NUMBER) or value != value:
            raise UserError(f'{which} has {kind_of_json(value)} as the score "{name}".')
        scores[name] = float(value)
    fields = cast("dict[str, object]", values.get("fields", {}))
    return Record(
        source=Source(values["file"], values["record"]),
        prompt=values["prompt"],
        expected=values["expected"],
        expected_answer=values["expected_answer"],
        produced=values["produced"],
        scores=scores,
        stop_reason=values["stop_reason"],
        tokens=values["tokens"],
        draw=values["draw"],
        # Earlier versions have no digest of the tokens: equal prompts are one question.
        question=values.get("question", "") or f"prompt: {values['prompt']}",
        final_answer=values.get("final_answer"),
        rule=values.get("rule", ""),
        kind=values.get("kind", ""),
        thought_finished=values.get("thought_finished", True),
        prompt_tokens=values.get("prompt_tokens", 0),
        generated=values.get("generated") or "",
        fields={name: str(value) for name, value in fields.items()},
    )
