"""Scored answers -> the samples that are trained on next, and how many questions gave how many.

A thought is kept where the template trains on thoughts and marks them with tags.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinkersmith.data.convert import faithful_record
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.evaluation.results import Record
from tinkersmith.plurals import counted
from tinkersmith.prompts.tags import CLOSE, split_thought


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answers that the checker accepts, and counts of all."""

    records: list[dict[str, Any]]  # samples, as DATA_FILES has them
    questions: int
    answers: int
    right: int  # answers
    none_right: int  # questions
    all_right: int
    repeated: int  # right answers that an earlier one to the question has word for word
    beyond: int  # different right answers beyond the most that a question may give

    def to_json(self) -> dict[str, int]:
        return {
            "questions": self.questions,
            "answers": self.answers,
            "answers_right": self.right,
            "questions_none_right": self.none_right,
            "questions_all_right": self.all_right,
            "trained_answers": len(self.records),
        }

    def lines(self) -> list[str]:
        share = self.right / max(self.answers, 1)
        return [
            f"{self.right:,} of {counted(self.answers, 'answer')} are right ({share:.1%}). Of "
            f"{counted(self.questions, 'question')}, {self.none_right:,} have none right and "
            f"{self.all_right:,} have all right.",
            f"{counted(len(self.records), 'answer')} to train on. Of the other right ones, "
            f"{self.repeated:,} repeat another, and {self.beyond:,} are beyond the most for a "
            "question (--keep).",
        ]


def is_right(record: Record, score: str) -> bool:
    """Whether the checker accepts an answer: it is right, and ended by itself."""
    ended = record.stop_reason == "stop" and record.thought_finished
    return ended and record.scores.get(score, 0.0) >= 1


def accepted_answers(
    records: Sequence[Record],
    samples: Mapping[Source, Sample],
    score: str,
    most: int,
    seed: int,
    *,
    keeps_thoughts: bool,
) -> Accepted:
    """Choose the answers to train on: right ones, different ones, at most so many a question.

    Args:
        most: answers to a question; the seed chooses among more.

    Raises:
        UserError: an answer cannot be written as a record.
    """
    by_question: dict[str, list[Record]] = {}
    first: dict[str, Source] = {}
    for record in records:
        # Samples that ask the same share their answers: those of the first one are taken.
        if first.setdefault(record.question, record.source) == record.source:
            by_question.setdefault(record.question, []).append(record)
    chosen: list[dict[str, Any]] = []
    right = none_right = all_right = repeated = beyond = 0
    for question, answers in by_question.items():
        good = [record for record in answers if is_right(record, score)]
        different = list({" ".join(record.produced.split()): record for record in good}.values())
        right += len(good)
        none_right += not good
        all_right += len(good) == len(answers)
        repeated += len(good) - len(different)
        beyond += max(0, len(different) - most)
        if len(different) > most:
            different = random.Random(f"{seed} {question}").sample(different, most)
        for record in different:
            sample = samples[record.source]
            answer = _answer_turn(record, keeps_thoughts)
            chosen.append(faithful_record(replace(sample, turns=(*sample.context, answer)))[0])
    count = len(by_question)
    total = sum(map(len, by_question.values()))
    return Accepted(chosen, count, total, right, none_right, all_right, repeated, beyond)


def _answer_turn(record: Record, keeps_thoughts: bool) -> Turn:
    thought = ""
    if keeps_thoughts and record.generated:
        inline = split_thought(record.generated)
        if inline is not None:
            thought = inline[0]
        elif record.generated.count(CLOSE) == 1:  # the prompt opened it
            thought = record.generated.partition(CLOSE)[0]
    return Turn("assistant", record.produced.strip(), thought=thought.strip())
