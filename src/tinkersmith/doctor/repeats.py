"""Samples -> those that repeat, contradict or give away others.

Only hashes and signatures of samples are kept; their texts are in a `TextStore`.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass

from tinkersmith.data.near_duplicates import NearPair, Signatures, clusters, comparable
from tinkersmith.data.samples import Sample, question_of
from tinkersmith.doctor.texts import Frame, TextStore, answer_text, question_text, without_thought
from tinkersmith.grading.scoring import final_answer_match

# Marks that do not change what is asked. Those after a digit may: "1.5", "5!".
_MARK = "[.,;:!?…\"'“”‘’`。，、；：！？「」]"
_MARKS = re.compile(rf"(?<!\d){_MARK}|(?!!){_MARK}(?!\w)")
_ANNOUNCED = re.compile(r"\\f?boxed|answer|答案|####", re.IGNORECASE)
_ONE_WORD = re.compile(r"[\w.,/%$€¥°+-]{1,24}")


def normalised(text: str) -> str:
    """The text without case, width of letters, white space at its ends, and sentence marks."""
    return " ".join(_MARKS.sub(" ", comparable(text)).split())


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A sample whose question an earlier one answers differently."""

    number: int
    first: int  # the first sample that asks the same
    group: int  # how many samples ask it


class Repeats:
    """Near-duplicates and contradictions among samples; about 350 bytes per sample.

    Args:
        store: has the texts of every sample that is added, by its number.
        frame: what is left out of questions that are compared.
    """

    def __init__(self, store: TextStore, frame: Frame, threshold: float, seed: int) -> None:
        self._store, self._frame = store, frame
        self._samples = Signatures(threshold, seed)
        self._questions = array("q")  # hashes of the whole context, normalised
        self._answers = array("q")
        self._is_question = array("b")  # whether there is a question at all

    def add(self, sample: Sample, question: str, answer: str) -> None:
        """Take the next sample, whose texts the store has under the same number."""
        self._samples.add(self._compared(question, answer))
        self._questions.append(hash(_normalised_context(sample)))
        self._answers.append(
            hash(normalised(without_thought(sample.output)) + repr(sample.turns[-1].tool_calls))
        )
        self._is_question.append(bool(sample.context))

    def near_duplicates(self, exact: Container[int]) -> tuple[list[NearPair], list[list[int]]]:
        """The pairs, and the clusters that they form; `exact` duplicates are no news."""
        pairs = self._samples.pairs(
            lambda number: self._compared(self._store.question(number), self._store.answer(number))
        )
        pairs = [pair for pair in pairs if pair.text not in exact]
        return pairs, clusters(len(self._samples), pairs)

    def contradictions(self) -> list[Contradiction]:
        """The samples that answer differently than the first sample with their question."""
        groups: dict[int, list[int]] = defaultdict(list)
        for number, question in enumerate(self._questions):
            if self._is_question[number]:
                groups[question].append(number)
        different: list[Contradiction] = []
        for numbers in groups.values():
            first = numbers[0]
            for number in numbers[1:]:
                if self._answers[number] != self._answers[first] and not _same_result(
                    self._store.answer(first), self._store.answer(number)
                ):
                    different.append(Contradiction(number, first, len(numbers)))
        return sorted(different, key=lambda found: found.number)

    def _compared(self, question: str, answer: str) -> str:
        return f"{self._frame.without(question)}\n{answer}"


class Leaks:
    """Training samples that ask what the test data asks, or nearly.

    Args:
        test: the test samples.
        store: has the texts of every training sample that is added, by its number.
    """

    def __init__(
        self, test: Sequence[Sample], store: TextStore, frame: Frame, threshold: float, seed: int
    ) -> None:
        self._store, self._frame = store, frame
        self._questions = Signatures(threshold, seed)
        self._tested = Signatures(threshold, seed)
        self._test_texts = [frame.without(_asked(sample)) for sample in test]
        for text in self._test_texts:
            self._tested.add(text)

    def add(self, sample: Sample) -> None:
        """Take the next training sample, whose texts the store has under the same number."""
        self._questions.add(self._frame.without(_asked(sample)))

    def pairs(self) -> list[NearPair]:
        """For each training sample near a test sample: (training sample, test sample)."""
        return self._questions.pairs_with(
            self._tested,
            lambda number: self._frame.without(
                self._store.question(number) or self._store.answer(number)
            ),
            self._test_texts.__getitem__,
        )


def _asked(sample: Sample) -> str:
    """What a user asks, or the plain text of a sample without questions."""
    return question_text(sample) or answer_text(sample)


def _normalised_context(sample: Sample) -> str:
    context = sample.context
    if not context:
        return ""
    if len(context) == 1 and context[0].role == "user":  # nearly all samples
        return normalised(f"{context[0].text}\n{context[0].input}")
    return normalised(repr(question_of(sample)))


def _same_result(first: str, other: str) -> bool:
    """Whether two answers that are written differently announce the same final answer."""
    both_announce = all(
        _ANNOUNCED.search(text) or _ONE_WORD.fullmatch(text.strip()) for text in (first, other)
    )
    return both_announce and final_answer_match(first, other) == 1.0
