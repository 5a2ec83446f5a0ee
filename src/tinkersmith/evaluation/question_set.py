"""A file of samples -> those that are asked, and what is said of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.errors import UserError
from tinkersmith.evaluation.questions import Questions, questions_of
from tinkersmith.evaluation.results import named
from tinkersmith.plurals import counted
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The samples of a test file that can be asked."""

    file: str
    loaded: LoadedSamples
    samples: list[Sample]  # chosen by the limit
    limit: int | None
    plain_texts: list[Source]  # which ask nothing

    @property
    def conversations(self) -> list[Source]:
        """The samples with earlier answers, of which the last one is asked for."""
        return [
            sample.source
            for sample in self.samples
            if any(turn.role == "assistant" for turn in sample.context)
        ]


def read_question_set(file: str, settings: Settings) -> QuestionSet:
    """All samples of a file; see `limited` to choose some of them.

    Raises:
        UserError: it cannot be read, or no sample asks anything.
    """
    loaded = load_samples([file], settings.columns, settings.encoding)
    asking = [sample for sample in loaded.samples if sample.turns[-1].role != "text"]
    if not asking:
        raise UserError(
            f"{file} holds plain text alone, which asks nothing. Name a file of questions "
            "with their answers."
        )
    texts = [sample.source for sample in loaded.samples if sample.turns[-1].role == "text"]
    return QuestionSet(file, loaded, asking, None, texts)


def limited(question_set: QuestionSet, limit: int | None, seed: int) -> QuestionSet:
    """The test set with at most `limit` samples, chosen by the seed, in the order of the file.

    Raises:
        UserError: the limit is negative.
    """
    if not limit:
        return question_set
    if limit < 0:
        raise UserError(f"The limit is {limit}; it must be at least 1, or 0 for all samples.")
    import numpy as np

    samples = question_set.samples
    order = np.random.default_rng(seed).permutation(len(samples))
    places: list[int] = sorted(order[:limit].tolist())
    chosen = [samples[place] for place in places]
    return QuestionSet(
        question_set.file, question_set.loaded, chosen, limit, question_set.plain_texts
    )


def question_set_lines(question_set: QuestionSet, seed: int, output_file: str) -> list[str]:
    """What was read and what of it is asked, line by line."""
    loaded = question_set.loaded
    first, *others = read_lines(loaded.counts, [], loaded.shapes)
    lines = [f"Test set: {first[0].lower()}{first[1:]}"]
    lines += [f"  {line}" for line in [*others, *loaded.said]]
    if texts := question_set.plain_texts:
        who = counted(len(texts), "sample is", "samples are")
        lines.append(f"  {who} plain text, which asks nothing, and left out: {named(texts)}.")
    if len(question_set.samples) < len(loaded.samples) - len(texts):
        lines.append(
            f"  Only {len(question_set.samples):,} of them are used. SEED = {seed} chooses the "
            "same ones every time."
        )
    if sources := question_set.conversations:
        who = counted(len(sources), "sample is a conversation", "samples are conversations")
        lines.append(
            f"  {who}: the last answer is asked for, after the earlier ones as the file has them "
            f"({named(sources)})."
        )
    skipped = skipped_lines(loaded.skipped, len(loaded.skipped), output_file)
    return [*lines, *(f"  {line}" for line in [*note_lines(loaded.notes), *skipped])]


def questions_in(
    question_set: QuestionSet,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    settings: Settings,
    max_context: int | None,
    say: Callable[[str], None],
) -> tuple[Questions, list[Skipped]]:
    """What is asked, and the samples that the template cannot write; both are said.

    Raises:
        UserError: nothing is left to ask.
    """
    usable, unusable = _usable(question_set.samples, template)
    if unusable:
        who = counted(
            len(unusable), "sample cannot be used and is", "samples cannot be used and are"
        )
        say(f"{who} left out:")
        for line in skipped_lines(unusable, len(unusable))[1:]:
            say(line)
    if not usable:
        raise UserError(f"Not one sample of {question_set.file} can be used. {unusable[0]}.")
    questions = questions_of(usable, template, tokenizer, settings, max_context)
    for line in _question_lines(questions, settings, max_context):
        say(line)
    if not questions.asked:
        raise UserError(f"Not one prompt of {question_set.file} fits into the model's context.")
    return questions, unusable


def _usable(
    samples: Sequence[Sample], template: "PromptTemplate"
) -> tuple[list[Sample], list[Skipped]]:
    """The samples that can be asked and have an answer to compare with, and the others.

    Training leaves the others out, too: the template refuses them, or their thoughts contradict.
    """
    from tinkersmith.text.pieces import UnusableSample, naming
    from tinkersmith.text.thoughts import check_answer

    usable: list[Sample] = []
    others: list[Skipped] = []
    for sample in samples:
        try:
            with naming(sample):
                check_answer(sample.turns[-1], template.keeps_thoughts)
            template.render_prompt(sample)
            usable.append(sample)
        except UnusableSample as error:
            others.append(Skipped(sample.source, "", error.reason, ""))
    return usable, others


def _question_lines(questions: Questions, settings: Settings, max_context: int | None) -> list[str]:
    lines: list[str] = []
    if too_long := questions.too_long:
        who = counted(len(too_long), "prompt leaves", "prompts leave")
        what = "It is" if len(too_long) == 1 else "They are"
        lines.append(
            f"{who} no space for an answer in the model's context of {max_context:,} tokens. "
            f"{what} skipped: {named(too_long)}."
        )
    copies = questions.samples - len(questions.asked)
    if copies:
        different = counted(len(questions.asked), "different question")
        lines.append(
            f"The {counted(questions.samples, 'sample')} ask {different}: one that occurs several "
            "times is asked once, and its answers count for each."
        )
    limit = settings.sampling_max_tokens
    short = [question for question in questions.asked if question.max_tokens < limit]
    if short:
        who = counted(len(short), "prompt leaves", "prompts leave")
        lines.append(
            f"{who} less space in the context than SAMPLING_MAX_TOKENS = {limit:,}; the least is "
            f"{min(question.max_tokens for question in short):,} tokens."
        )
    return lines
