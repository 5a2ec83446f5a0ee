"""What a sample is: the turns of a conversation, and where they come from.

Nothing is dropped silently: an unusable record is a `Skipped` with its reason. `shapes` makes
samples from records; `text` decides how turns, thoughts and tool calls are written for a model.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tinkersmith.errors import one_line

_SHOWN_CHARACTERS = 300  # of a record in a sentence

Role = Literal["system", "user", "assistant", "tool", "text"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record comes from."""

    file: str
    record: int  # counted from 1

    def __str__(self) -> str:
        return f"{self.file}, record {self.record}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, as the record has it."""

    role: Role  # "text" is plain text for continued pre-training, which no template surrounds
    text: str
    input: str = ""  # of a user's turn: what its instruction refers to, as Alpaca records have it
    thought: str = ""  # of an assistant's turn, where the record has it in a field of its own
    tool_calls: tuple[dict[str, Any], ...] = ()  # of an assistant's turn, in OpenAI's form
    tool_name: str = ""  # of a tool's turn
    tool_call_id: str = ""  # of a tool's turn
    trained: bool | None = None  # the record's own flag; None leaves it to TRAIN_ON


@dataclass(frozen=True, slots=True)
class Sample:
    """A checked record. Its last turn is an assistant's, or its only turn is plain text."""

    turns: tuple[Turn, ...]
    source: Source
    shape: str = "alpaca"  # how the record was read, a name of `layout.SHAPES`
    tools: tuple[
        dict[str, Any], ...
    ] = ()  # the functions that the assistant may call, as JSON schema
    extra: dict[str, Any] = field(default_factory=dict[str, Any])  # for evaluation, not trained on
    notes: tuple[str, ...] = ()  # what was left out or changed, to be counted and said

    @property
    def output(self) -> str:
        """The last turn's text: what the model should answer."""
        return self.turns[-1].text

    @property
    def context(self) -> tuple[Turn, ...]:
        """The turns before the last one."""
        return self.turns[:-1]


def alpaca_sample(
    instruction: str,
    input: str,
    output: str,
    source: Source,
    system: str = "",
    history: Sequence[tuple[str, str]] = (),
    extra: dict[str, Any] | None = None,
    shape: str = "alpaca",
) -> Sample:
    """A sample of an Alpaca record: an instruction with its input, and earlier turns."""
    turns = [Turn("system", system)] if system else []
    for question, answer in history:
        turns += [Turn("user", question), Turn("assistant", answer)]
    turns += [Turn("user", instruction, input=input), Turn("assistant", output)]
    return Sample(tuple(turns), source, shape, extra=extra or {})


@dataclass(frozen=True, slots=True)
class Skipped:
    """An unusable record, and why."""

    source: Source
    field: str
    reason: str
    record_text: str  # the record as JSON
    unclear: bool = False  # whether the user must see the record to know what to do

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def shown_record(self) -> str:
        """The beginning of the record, for a sentence."""
        return one_line(self.record_text, _SHOWN_CHARACTERS)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.source.file,
            "record": self.source.record,
            "field": self.field,
            "reason": self.reason,
            "text": self.record_text,
        }


def question_of(sample: Sample) -> tuple[Any, ...]:
    """What a sample asks, with each run of white space as one space, to compare questions."""
    turns = [
        (turn.role, *map(_one_spaced, (turn.text, turn.input)), repr(turn.tool_calls))
        for turn in sample.context or sample.turns
    ]
    system = turns[0][1] if turns[0][0] == "system" else ""
    spoken = turns[1:] if system else turns
    roles = [role for role, *_ in spoken]
    if roles != ["user", "assistant"] * (len(spoken) // 2) + ["user"] or sample.tools:
        return tuple(turns)
    # The form that decides the order of a split: a seed gives the same one as always.
    texts = [text for _, text, *_ in spoken]
    return (texts[-1], spoken[-1][2], system, tuple(zip(texts[:-1:2], texts[1::2], strict=True)))


def characters(sample: Sample) -> int:
    """The number of characters in all texts of a sample."""
    return sum(len(turn.text) + len(turn.input) + len(turn.thought) for turn in sample.turns)


def overlap(train: Iterable[Sample], test: Sequence[Sample]) -> list[tuple[Source, Source]]:
    """The (training source, test source) of every test sample whose question is also trained on."""
    tested = [(question_of(sample), sample.source) for sample in test]
    asked = {question for question, _ in tested}
    seen: dict[tuple[Any, ...], Source] = {}  # only the test's questions: `train` may be large
    for sample in train:
        question = question_of(sample)
        if question in asked:
            seen.setdefault(question, sample.source)
    return [(seen[question], source) for question, source in tested if question in seen]


def record_text(record: Any) -> str:
    """The record as one line of JSON; unpaired surrogates are escaped, so any file can hold it."""
    try:
        text = json.dumps(record, ensure_ascii=False)
    except RecursionError:
        return '"(nested too deeply to be shown)"'
    return text.encode("utf-8", "backslashreplace").decode()


def _one_spaced(text: str) -> str:
    return " ".join(text.split())


def said_by_users(turns: Iterable[Turn]) -> str:
    """All that users say in some turns, one text a line."""
    return "\n".join(
        text for turn in turns if turn.role == "user" for text in (turn.text, turn.input) if text
    )
