"""Data and settings of a run -> the lines of requests.jsonl that it will have. Nothing is sent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkersmith.batches.requests import LOSS, step_request, validation_requests
from tinkersmith.batches.source import Encoding, TokenizedData
from tinkersmith.data.samples import Source
from tinkersmith.evaluation.questions import Questions
from tinkersmith.runs.rehearsals import Rehearsal, difference
from tinkersmith.service.answers import sampling_of
from tinkersmith.service.digests import creation_line, forward_line, sample_line, step_lines

if TYPE_CHECKING:
    import tinker


@dataclass
class Planned:
    """All that a run sends but what depends on time and on losses, such as saves."""

    creation: Mapping[str, Any]  # what decides which training client is made
    encoding: Encoding
    data: TokenizedData
    questions: Questions | None  # of EVAL_FILES
    steps_per_epoch: int
    total_steps: int
    # The same after each step, and therefore computed once; by their kinds.
    _measurements: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def is_measured(self, done: int) -> bool:
        """Whether validation data and EVAL_FILES are measured after so many steps."""
        every = self.encoding.settings.eval_every
        ends = done % self.steps_per_epoch == 0 or done == self.total_steps
        return ends or (every > 0 and done % every == 0)

    def forward_line(
        self, done: int, batches: "Sequence[Sequence[tinker.Datum]] | None" = None
    ) -> dict[str, Any]:
        """The line of the requests that measure the validation loss after `done` steps.

        Args:
            batches: their datums, of a caller that has built them already.
        """
        if "forward" not in self._measurements:
            batches = batches or validation_requests(self.data)
            self._measurements["forward"] = forward_line(done, batches, LOSS)
        return {**self._measurements["forward"], "step": done}

    def sample_line(self, done: int) -> dict[str, Any]:
        """The line of the requests that ask EVAL_FILES after `done` steps."""
        if "sample" not in self._measurements:
            assert self.questions is not None
            about = self.encoding
            asked = [
                (
                    question.tokens,
                    sampling_of(
                        about.settings,
                        about.template,
                        about.tokenizer,
                        about.context,
                        len(question.tokens),
                    ),
                )
                for question in self.questions.asked
            ]
            greedy = about.settings.sampling_temperature == 0
            draws = 1 if greedy else about.settings.sampling_num_samples
            self._measurements["sample"] = sample_line(done, asked, draws)
        return {**self._measurements["sample"], "step": done}

    def creation_line(self) -> dict[str, Any]:
        """The line of the request that makes the training client."""
        return creation_line(self.creation)

    def lines(self) -> Iterator[tuple[dict[str, Any], list[Source]]]:
        """Each line in its order, with where its samples come from."""
        yield self.creation_line(), []
        validation = [sample.source for sample in self.data.validation]
        for number in range(self.total_steps):
            done = number + 1
            request = step_request(self.data, self.encoding.settings, self.total_steps, number)
            if request is not None:
                sources = [sample.source for sample in request.batch]
                for line in step_lines(done, request.datums, LOSS, request.params):
                    yield line, sources
            if not self.is_measured(done):
                continue
            if validation:
                yield self.forward_line(done), validation
            if self.questions is not None:
                yield self.sample_line(done), []

    def first_difference(self, rehearsal: Rehearsal) -> str:
        """The first request that is not as it was rehearsed; "" if all are."""
        rehearsed = rehearsal.digests()
        for line, sources in self.lines():
            if rehearsed.pop((line["step"], line["kind"]), None) != line["digest"]:
                return difference(rehearsal, line, sources)
        if rehearsed:
            step, kind = next(iter(rehearsed))
            return f"{kind} in step {step:,} was rehearsed, and would not be sent"
        return ""
