"""What training data offers, whether it fits into memory or is read as a stream.

`DataSource` is what the files hold, before a tokenizer is known; `TokenizedData` is what the loop
trains on.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinkersmith.batches.summary import DataSummary
from tinkersmith.data.samples import Sample, Source
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.trained_questions import QuestionCollector
from tinkersmith.settings.fields import Settings
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.thoughts import ThoughtCounts
from tinkersmith.text.tokenize import TokenizedSample


@dataclass(frozen=True, slots=True)
class Encoding:
    """How samples become tokens."""

    settings: Settings
    template: PromptTemplate
    tokenizer: TextTokenizer
    max_length: int  # tokens of a sample
    context: int | None = None  # tokens that the model holds; None: not known

    @property
    def truncate(self) -> bool:
        return self.settings.truncate_long_sequences


def choices_that_make_data(settings: Settings) -> str:
    """The settings that decide what is trained on, for a digest: without the names of files."""
    weights = list(settings.file_weights.values())
    choices = (settings.train_on, settings.thinking, settings.columns, settings.encoding, weights)
    return json.dumps(choices, sort_keys=True)


class DataSource(Protocol):
    """Training and validation samples that were read and checked."""

    @property
    def first(self) -> Sample:
        """The first sample to train on."""
        ...

    @property
    def thoughts(self) -> ThoughtCounts:
        """How many of the samples to train on have a thought."""
        ...

    def questions(self) -> QuestionCollector:
        """What the samples to train on ask."""
        ...

    def find(self, sources: Collection[Source]) -> dict[Source, Sample]:
        """The training samples that come from there. A stream reads their files again.

        Raises:
            UserError: a file has changed since.
        """
        ...

    def report(self, *, listed: bool = True) -> list[str]:
        """What was read, line by line, for the user.

        Args:
            listed: a run's folder will list what is skipped, and the duplicates.
        """
        ...

    def tokenized(self, encoding: Encoding, progress: Progress) -> "TokenizedData":
        """The data as the loop needs it.

        Raises:
            UserError: no training sample fits.
        """
        ...


class TokenizedData(Protocol):
    """Batches of tokens, each a pure function of seed and step."""

    @property
    def count(self) -> int:
        """How many samples an epoch has. A stream still counts those that are too long."""
        ...

    @property
    def validation(self) -> Sequence[TokenizedSample]: ...

    def digest(self) -> str:
        """Changes when any token of the data may; a resumed run must find the same."""
        ...

    def start(self, run: RunFolder, first_step: int) -> None:
        """Write down what became of the samples, and begin what runs in the background."""
        ...

    def stop(self) -> None:
        """End what runs in the background."""
        ...

    def batch(self, step: int) -> list[TokenizedSample]:
        """The samples of a step, counted from 0."""
        ...

    def trained_sources(self) -> Iterator[Source]:
        """Where the samples that are trained on come from, in the order of the files."""
        ...

    def is_complete(self) -> bool:
        """Whether everything is tokenised, so that `summary` need not wait."""
        ...

    def summary(self) -> DataSummary:
        """Lengths and counts, as soon as everything is tokenised."""
        ...
