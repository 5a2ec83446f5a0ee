"""The records of an evaluation, one per answer, and the reader of files of results."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import kind_of_json, read_json_object


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
class _Each:
    """The shape of every value of an object, or of every item of a list."""

    container: type[dict[Any, Any]] | type[list[Any]]
    shape: "_Shape"


# What a value must be: of a type, an object with these fields, or an object or list of such.
_Shape = type | tuple[type, ...] | dict[str, "_Shape"] | _Each
_MAYBE_NUMBER = (int, float, type(None))
_ESTIMATE: _Shape = {"mean": _NUMBER, "n": int, "interval_95": _Each(list, _MAYBE_NUMBER)}
_RATES = _Each(dict, _ESTIMATE)
_VERDICT: _Shape = {
    "first": _ESTIMATE,
    "second": _ESTIMATE,
    "difference": _ESTIMATE,
    "n": int,
    "p_value": _MAYBE_NUMBER,
    "questions": _Each(dict, _Each(list, str)),
}
_GROUP: _Shape = {"by": _TEXT, "group": _TEXT, "n": int}
_FACTS: dict[str, tuple[bool, _Shape]] = {  # whether it may be null, and what it must be
    "model_path": (False, _TEXT),
    "counts": (False, dict),
    "metrics": (False, _RATES),
    "base": (True, {"metrics": _RATES}),
    "verdicts": (True, _Each(dict, _VERDICT)),
    "groups": (False, _Each(list, _GROUP)),
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
    facts = {name: content[name] for name in content if name not in ("samples", "base_samples")}
    _check_facts(path, version, facts)
    return ResultsFile(
        path=path,
        schema_version=version,
        facts=facts,
        trained=_records(path, version, "samples", content["samples"]),
        base=_records(path, version, "base_samples", content.get("base_samples", [])),
    )


def _check_facts(path: Path, version: int, facts: Mapping[str, Any]) -> None:
    """Raise UserError if a fact is not what its name says."""
    for name, (may_be_null, shape) in _FACTS.items():
        if name not in facts or (may_be_null and facts[name] is None):
            continue
        has_no_means = version < 2 and name in ("metrics", "base")
        wanted = _container(shape) if has_no_means else shape
        if wrong := _wrong(facts[name], wanted, f'"{name}"'):
            raise UserError(f"{path} is damaged: {wrong}.")


def _container(shape: _Shape) -> type | tuple[type, ...]:
    if isinstance(shape, _Each):
        return shape.container
    return dict if isinstance(shape, dict) else shape


def _wrong(value: object, shape: _Shape, where: str) -> str:
    """What is wrong with a value; "" if nothing is."""
    is_other = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
    if is_other or not isinstance(value, _container(shape)):
        return f"{where} is {kind_of_json(value)}"
    if isinstance(shape, dict):
        fields = cast("dict[str, object]", value)
        for name, wanted in shape.items():
            place = f'"{name}" of {where}'
            wrong = f"{place} is missing"
            if name not in fields or (wrong := _wrong(fields[name], wanted, place)):
                return wrong
    elif isinstance(shape, _Each):
        items: Iterable[tuple[object, object]] = (
            cast("dict[str, object]", value).items()
            if isinstance(value, dict)
            else enumerate(cast("list[object]", value), start=1)
        )
        for name, item in items:
            if wrong := _wrong(item, shape.shape, f'"{name}" of {where}'):
                return wrong
    return ""


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
        if isinstance(value, bool) or not isinstance(value, _NUMBER) or not math.isfinite(value):
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


def named(sources: Sequence[Source]) -> str:
    """The first five sources, and how many more there are."""
    more = f" and {len(sources) - 5:,} more" if len(sources) > 5 else ""
    return "; ".join(map(str, sources[:5])) + more
