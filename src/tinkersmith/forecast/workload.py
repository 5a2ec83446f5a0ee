"""Tokenised data and settings -> how many tokens each step of a run sends to the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinkersmith.batches.in_memory import TokensInMemory
from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.source import TokenizedData
from tinkersmith.evaluation.questions import Questions
from tinkersmith.settings.fields import Settings


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run does, in tokens. All of it is exact but the answers, which may be shorter."""

    samples: int  # of an epoch
    steps_per_epoch: int
    step_tokens: Sequence[int] | None  # of each step; None: read as a stream, and not counted yet
    validation_tokens: int  # of one measurement
    prompt_tokens: int  # of one measurement with EVAL_FILES
    answer_tokens: int  # of one measurement with EVAL_FILES, at most
    final_answer_tokens: int  # of the answers that the end of a run shows, at most
    eval_every: int

    def measurements(self, steps: int) -> int:
        """How often validation data and EVAL_FILES are measured in so many steps."""
        due = {steps} if steps else set[int]()
        due.update(range(self.steps_per_epoch, steps + 1, self.steps_per_epoch))
        if self.eval_every:
            due.update(range(self.eval_every, steps + 1, self.eval_every))
        return len(due)

    def trained_tokens(self, steps: int, first: int = 0) -> int | None:
        """The tokens of the steps from `first` on; None where they are not counted."""
        return None if self.step_tokens is None else sum(self.step_tokens[first:steps])


def workload_of(data: TokenizedData, settings: Settings, questions: Questions | None) -> Workload:
    """The work of a run of all its epochs."""
    epoch = steps_per_epoch(data.count, settings.batch_size)
    step_tokens: list[int] | None = None
    if isinstance(data, TokensInMemory):
        step_tokens = [
            sum(len(sequence.tokens) for sequence in data.batch(step))
            for step in range(epoch * settings.num_epochs)
        ]
    asked = questions.asked if questions is not None else []
    draws = settings.sampling_num_samples
    return Workload(
        samples=data.count,
        steps_per_epoch=epoch,
        step_tokens=step_tokens,
        validation_tokens=sum(len(sample.tokens) for sample in data.validation),
        prompt_tokens=sum(len(question.tokens) for question in asked),
        answer_tokens=draws * sum(question.max_tokens for question in asked),
        final_answer_tokens=draws * settings.sampling_max_tokens,
        eval_every=settings.eval_every,
    )
