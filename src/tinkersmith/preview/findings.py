"""Samples and their tokens -> what looks wrong in them, counted, with the first place of each.

T: the tokens of one sequence. S: its trained parts.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tinkersmith.data.samples import Sample, Source
from tinkersmith.plurals import counted
from tinkersmith.prompts.tags import split_thought
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.templates import ChatTemplate, PromptTemplate
from tinkersmith.text.thoughts import has_thought

SAME_ANSWER_SHARE = 0.2  # of the samples, above which it is said
# How models end a turn: an answer, a call of a function, a message.
TURN_ENDS = {
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>"),
    *("<|call|>", "<|eot|>", "<turn|>", "<｜end▁of▁sentence｜>", "</s>", "<|end_of_text|>"),
}
_FEWEST_SAME = 3  # samples with the same answer, below which nothing is said
_SHORTEST_REPEAT = 20  # characters of a prompt that an answer may repeat
_BEGINNING = 200  # characters of an answer that are looked at for that
_LAST = 3  # tokens of a trained part, among which its end token is

# What is said of each kind, after its count: "3 sequences ...". {} is a detail of the first case.
PROBLEM_SENTENCES = {
    "no end token": "without an end token in a part that is trained on: the model would not learn "
    "to stop there",
    "double begin token": "with two begin tokens",
    "empty completion": "with a completion that holds no text",
    "nothing trained": "left out, with nothing to train on: {}",
    "unknown tokens": "with text that the tokenizer does not know and replaces by {}",
    "special token in text": "with a special token such as {} written in the text; it stays plain "
    "text",
    "prompt repeated": "whose answer begins with the prompt itself",
    "cut": "cut at MAX_SEQUENCE_LENGTH",
    "too long": "left out, as MAX_SEQUENCE_LENGTH leaves no space for an answer",
    "too long to send whole": "left out, longer than MAX_SEQUENCE_LENGTH while "
    "TRUNCATE_LONG_SEQUENCES is False",
    "same answer": "({}) with the same answer. That is right for labels; else the model learns to "
    "give it to everything",
    "no thoughts": "without any thought, although the chat template knows thoughts: the model "
    "learns to answer without thinking",
}
OF_LENGTH = ("cut", "too long", "too long to send whole")  # what the length policy did
# Counted in samples; the others are counted in sequences.
OF_SAMPLES = (
    "nothing trained",
    "special token in text",
    "prompt repeated",
    "same answer",
    "no thoughts",
)


@dataclass(frozen=True, slots=True)
class ProblemTotal:
    """A kind of problem in all samples that were looked at."""

    kind: str  # a key of PROBLEM_SENTENCES
    count: int
    detail: str
    first: Source | None  # None: it is so in all samples

    def __str__(self) -> str:
        what = counted(self.count, "sample" if self.kind in OF_SAMPLES else "sequence")
        where = f" The first: {self.first}." if self.first else ""
        return f"{what} {PROBLEM_SENTENCES[self.kind].format(self.detail)}.{where}"


@dataclass(frozen=True, slots=True)
class SampleProblem:
    """Something that looks wrong in one sample."""

    kind: str  # a key of PROBLEM_SENTENCES
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """The token ids that have a meaning for the model, as the checks need them."""

    ends: frozenset[int]
    begin: int | None
    unknown: int | None
    unknown_text: str
    special_texts: tuple[str, ...]
    blank: frozenset[int]  # tokens without any text of their own: control tokens

    @classmethod
    def of(cls, tokenizer: TextTokenizer, template: PromptTemplate) -> "Control":
        """The control tokens of a tokenizer, and those that end an answer of `template`."""
        special = tokenizer.special_tokens
        named = tokenizer.named_tokens
        begin_text = named.get("bos_token", "")
        unknown_text = named.get("unk_token", "")
        begin = special.get(begin_text)
        last = tokenizer.encode(template.end) if template.end else np.array([], np.int32)
        ends = {tokenizer.eos_id, *(int(token) for token in last if int(token) in special.values())}
        # A turn may end with a token of its own: a call, a message, the end of a turn.
        ends |= {token for text, token in special.items() if text in TURN_ENDS}
        return cls(
            ends=frozenset(ends),
            begin=begin if begin_text not in ("", tokenizer.eos_text) else None,
            unknown=None if unknown_text == tokenizer.eos_text else special.get(unknown_text),
            unknown_text=unknown_text,
            special_texts=tuple(
                text for text in (*special, *tokenizer.control_tokens) if len(text) > 2
            ),
            blank=frozenset(special.values()),
        )


def problems_of_text(sample: Sample, control: Control) -> Iterator[SampleProblem]:
    """What looks wrong in the texts of a sample, before they become tokens."""
    for turn in sample.turns:
        said = (turn.text, turn.input, turn.thought)
        if turn.role == "assistant":
            said = split_thought(turn.text) or said
        written = [text for text in control.special_texts if any(text in part for part in said)]
        if written:
            yield SampleProblem("special token in text", written[0])
            break
    if len(sample.turns) > 1 and sample.turns[-1].role == "assistant":
        asked = sample.turns[-2].text.strip()
        answer = sample.output[: len(asked) + _BEGINNING].lstrip()
        if len(asked) >= _SHORTEST_REPEAT and answer.startswith(asked):
            yield SampleProblem("prompt repeated")


def problems_of_sequence(
    tokens: np.ndarray, spans: np.ndarray, cut: bool, control: Control
) -> Iterator[SampleProblem]:
    """What looks wrong in the tokens of a sequence that is sent.

    Args:
        tokens: (T,).
        spans: (S, 2), where each trained part starts and ends.
        cut: whether the end was cut off.
    """
    if cut:
        yield SampleProblem("cut")
    if control.begin is not None and (tokens[:2] == control.begin).sum() == 2:
        yield SampleProblem("double begin token")
    if control.unknown is not None and (tokens == control.unknown).any():
        yield SampleProblem("unknown tokens", control.unknown_text)
    if not len(spans):
        yield SampleProblem("nothing trained", "no part of it is trained")
        return
    parts = [tokens[start:end].tolist() for start, end in spans.tolist()]
    if all(control.blank.issuperset(part) for part in parts):
        yield SampleProblem("empty completion")
    whole = parts[:-1] if cut else parts  # the last one may have lost its end token
    if any(control.ends.isdisjoint(part[-_LAST:]) for part in whole):
        yield SampleProblem("no end token")


@dataclass(frozen=True, slots=True)
class SameAnswer:
    """An answer that many samples have."""

    hash: int
    count: int  # samples
    share: str  # of all samples
    first: Source


@dataclass(slots=True)
class ProblemCounts:
    """Counts of all problems, with the first place of each."""

    samples: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])
    firsts: dict[str, tuple[Source, str]] = field(default_factory=dict[str, tuple[Source, str]])
    has_thoughts: bool = False
    _answers: "array[int]" = field(default_factory=lambda: array("q"))  # `answer_hash` of each
    _records: "array[int]" = field(default_factory=lambda: array("I"))
    _files: list[str] = field(default_factory=list[str])
    _starts: list[int] = field(default_factory=list[int])  # the first sample of each of `_files`

    def add_sample(self, sample: Sample, problems: Iterable[SampleProblem]) -> None:
        """Count a sample, with the problems of its text."""
        if not self._files or self._files[-1] != sample.source.file:
            self._files.append(sample.source.file)
            self._starts.append(self.samples)
        self.samples += 1
        self._records.append(sample.source.record)
        self._answers.append(answer_hash(sample))
        self.has_thoughts = self.has_thoughts or has_thought(sample)
        self.add(sample.source, problems)

    def add(self, source: Source, problems: Iterable[SampleProblem]) -> None:
        """Count problems of the sample at `source`."""
        for problem in problems:
            self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
            self.firsts.setdefault(problem.kind, (source, problem.detail))

    def same_answer(self) -> "SameAnswer | None":
        """The most frequent answer.

        None unless they are more than SAME_ANSWER_SHARE of all.
        """
        if not self._answers:
            return None
        hashes, first, counts = np.unique(
            np.frombuffer(self._answers, np.int64), return_index=True, return_counts=True
        )
        most = int(counts.argmax())
        same, index = int(counts[most]), int(first[most])
        if same < _FEWEST_SAME or same <= SAME_ANSWER_SHARE * self.samples:
            return None
        file = self._files[bisect_right(self._starts, index) - 1]
        return SameAnswer(
            int(hashes[most]),
            same,
            f"{same / self.samples:.0%}",
            Source(file, self._records[index]),
        )

    def all(self, template: PromptTemplate) -> list[ProblemTotal]:
        """Every kind of problem that there is, in the order of PROBLEM_SENTENCES."""
        result = [
            ProblemTotal(kind, self.counts[kind], self.firsts[kind][1], self.firsts[kind][0])
            for kind in PROBLEM_SENTENCES
            if kind in self.counts
        ]
        if (most := self.same_answer()) is not None:
            result.append(ProblemTotal("same answer", most.count, most.share, most.first))
        if self.samples and writes_thoughts(template) and not self.has_thoughts:
            result.append(ProblemTotal("no thoughts", self.samples, "", None))
        return result


def answer_hash(sample: Sample) -> int:
    """A number that is the same for equal answers."""
    return hash(sample.output.strip())


def writes_thoughts(template: PromptTemplate) -> bool:
    """Whether the template has a form for thoughts."""
    return isinstance(template, ChatTemplate) and template.form.carrier != "text"
