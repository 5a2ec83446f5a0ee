"""Samples -> the questions that are asked: each prompt once, whatever number of samples has it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkersmith.data.samples import Sample, Source
from tinkersmith.prompts.guards import unguarded
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    import numpy as np

    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A prompt, and the samples that have it."""

    digest: str  # of the prompt's tokens
    tokens: "np.ndarray"  # (T,) of the prompt
    text: str  # of the prompt
    max_tokens: int  # of an answer: SAMPLING_MAX_TOKENS, or what the context leaves
    samples: tuple[tuple[int, Sample], ...]  # each with its place in the test set


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a question, as a model gave it."""

    draw: int  # counted from 1, if several answers are sampled for a prompt
    produced: str  # without its thought; "" if that never ends
    generated: str  # with its thought
    thought_finished: bool  # False: the text ends within its thought
    stop_reason: str  # "stop" or "length"
    tokens: int


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, and which samples have a prompt that is too long."""

    asked: list[Question]
    too_long: list[Source] = field(default_factory=list[Source])

    @property
    def samples(self) -> int:
        """How many samples get an answer."""
        return sum(len(question.samples) for question in self.asked)

    @property
    def digest(self) -> str:
        """A digest of all questions in their order."""
        every = hashlib.sha256()
        for question in self.asked:
            every.update(f"{question.digest} {question.max_tokens}\n".encode())
        return every.hexdigest()


def questions_of(
    samples: Sequence[Sample],
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    settings: Settings,
    max_context: int | None,
) -> Questions:
    """The questions of samples that have an answer, in the order of their first samples.

    Args:
        max_context: tokens that the model holds; None where that is not known. A prompt that
            leaves no space for an answer is not asked.
    """
    prompts = [template.render_prompt(sample) for sample in samples]
    rows = tokenizer.encode_batch(prompts)
    of_digest: dict[str, list[int]] = {}
    too_long: list[Source] = []
    for place, row in enumerate(rows):
        if max_context is not None and len(row) >= max_context:
            too_long.append(samples[place].source)
        else:
            of_digest.setdefault(digest_of_tokens(row.tolist()), []).append(place)
    asked = [
        Question(
            digest=digest,
            tokens=rows[places[0]],
            text=unguarded(prompts[places[0]]),
            max_tokens=_answer_space(len(rows[places[0]]), settings, max_context),
            samples=tuple((place, samples[place]) for place in places),
        )
        for digest, places in of_digest.items()
    ]
    return Questions(asked, too_long)


def digest_of_tokens(tokens: Iterable[int]) -> str:
    """A digest of a prompt: 32 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:32]


def _answer_space(prompt: int, settings: Settings, max_context: int | None) -> int:
    most = settings.sampling_max_tokens
    return most if max_context is None else min(most, max_context - prompt)
