"""An answer -> its thought and what it says, for the spellings that data sets use.

Only a thought at an answer's start counts: anywhere else, the tags are text like any other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.prompts.tags import is_cut_within_thought, split_thought
from tinkersmith.text.pieces import Untrainable


def answer_alone(turn: Turn) -> str:
    """What an assistant's turn answers, without its thoughts."""
    inline = split_thought(turn.text)
    return turn.text if inline is None else inline[1]


def thought_and_answer(turn: Turn) -> tuple[str, str]:
    """The thought of an assistant's turn, "" if it has none, and what it answers.

    Raises:
        Untrainable: it has two thoughts.
    """
    inline = split_thought(turn.text)
    if inline is None:
        return turn.thought, turn.text
    thought, answer = inline
    if turn.thought and thought.strip() not in ("", turn.thought.strip()):
        raise Untrainable("an answer has a thought in a field of its own and another in its text")
    return turn.thought or thought, answer


def check_answer(turn: Turn, keeps_thoughts: bool) -> None:
    """Find out whether it is clear what an assistant's turn answers.

    Raises:
        Untrainable: it is cut within its thought, or has two thoughts that are to be kept.
    """
    if is_cut_within_thought(turn.text):
        raise Untrainable("its answer opens a thought and never closes it")
    if keeps_thoughts:
        thought_and_answer(turn)


def has_thought(sample: Sample, *, last_only: bool = False) -> bool:
    """Whether an answer of the sample, or its last one, has a thought that is not empty."""
    for turn in sample.turns[-1:] if last_only else sample.turns:
        if turn.role == "assistant":
            if turn.thought.strip():
                return True
            inline = split_thought(turn.text)
            if inline is not None and inline[0].strip():
                return True
    return False


@dataclass(slots=True)
class ThoughtCounts:
    """How many samples have a thought. `add` counts one more sample, unless it is plain text."""

    samples: int = 0
    with_thoughts: int = 0
    first: Source | None = None  # the first sample with a thought
    train_on: str = "all"  # a value of TRAIN_ON
    earlier: int = 0  # samples with a thought before another question, counted for "all_text"

    def add(self, sample: Sample) -> None:
        if sample.turns[-1].role == "text":  # no template is applied to it
            return
        self.samples += 1
        if has_thought(sample, last_only=self.train_on == "last"):
            self.with_thoughts += 1
            self.first = self.first or sample.source
            if self.train_on == "all_text":
                asked = [place for place, turn in enumerate(sample.turns) if turn.role == "user"]
                earlier = sample.turns[: asked[-1]] if asked else ()
                self.earlier += has_thought(replace(sample, turns=earlier))


def count_thoughts(samples: Iterable[Sample], train_on: str = "all") -> ThoughtCounts:
    """How many of the samples have a thought that TRAIN_ON trains."""
    counts = ThoughtCounts(train_on=train_on)
    for sample in samples:
        counts.add(sample)
    return counts
