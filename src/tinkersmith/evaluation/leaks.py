"""Test questions and a run -> which of them the run was trained on, by what the run remembers.

Runs of earlier versions remember nothing: their data files are read as they are today, and that
is said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.data.samples import Sample, Source, overlap
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.runs.folder import TRAINED_QUESTIONS_FILE, RunFolder
from tinkersmith.runs.sketches import most_alike, sketches_of
from tinkersmith.runs.trained_questions import (
    SKETCHED_AT_MOST,
    Damaged,
    TrainedQuestions,
    changed_files,
    digests_of,
    question_words,
    read_trained_questions,
)

NEARLY_EQUAL = 0.8  # the Jaccard index of 5-grams from which two questions are nearly equal
RECORD = "the run's own record"
TODAY = "today's data files"


@dataclass(frozen=True, slots=True)
class SharedQuestion:
    """A test question that was trained on, or nearly."""

    test: Source
    training: Source
    similarity: float = 1.0  # below 1: an estimate
    same_answer: bool | None = None  # of an equal question; None where it is not known

    def to_json(self) -> dict[str, Any]:
        return {
            "test": str(self.test),
            "training": str(self.training),
            "similarity": self.similarity,
            "same_answer": self.same_answer,
        }


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of the test set was trained on."""

    compared_with: str  # RECORD, TODAY, or "" where nothing could be compared
    exact: list[SharedQuestion] = field(default_factory=list[SharedQuestion])
    near: list[SharedQuestion] | None = None  # None: not looked for
    notes: list[str] = field(default_factory=list[str])  # sentences

    @property
    def pairs(self) -> list[tuple[Source, Source]] | None:
        """(training, test) of the equal questions; None where nothing could be compared."""
        if not self.compared_with:
            return None
        return [(leak.training, leak.test) for leak in self.exact]

    def to_json(self) -> dict[str, Any]:
        return {
            "compared_with": self.compared_with or None,
            "exact": [leak.to_json() for leak in self.exact],
            "near": None if self.near is None else [leak.to_json() for leak in self.near],
            "notes": self.notes,
        }


def leaks_from(run: RunFolder | None, samples: Sequence[Sample]) -> Overlap:
    """Compare the test questions with those that a run was trained on.

    Args:
        run: None for a model that no run folder knows.
    """
    if run is None:
        return Overlap("", notes=["no run folder says what this model was trained on"])
    try:
        known = read_trained_questions(run.file(TRAINED_QUESTIONS_FILE))
    except (Damaged, UserError) as error:
        file = run.file(TRAINED_QUESTIONS_FILE)
        reason = f"{file} is damaged: {error}" if isinstance(error, Damaged) else str(error)
        return _with_todays_files(run, samples, reason.rstrip("."))
    if known is None:
        reason = f"{run.name} was trained by an earlier version and does not remember its questions"
        return _with_todays_files(run, samples, reason)
    return _with_record(run, known, samples)


def _with_record(run: RunFolder, known: TrainedQuestions, samples: Sequence[Sample]) -> Overlap:
    trained = known.without(_left_out(run))
    exact = list(_equal_questions(trained, samples))
    equal = {leak.test for leak in exact}
    others = [sample for sample in samples if sample.source not in equal]
    notes: list[str] = []
    if not known.is_complete:
        notes.append(
            f"{run.name} was trained on other data before it was resumed, which it does not "
            "remember"
        )
    for name, what in changed_files(known, run.path).items():
        notes.append(f"{name} {what} since {run.name} was trained")
    if len(known) > SKETCHED_AT_MOST:
        notes.append(
            f"near-duplicates are looked for among {len(trained.sketched):,} of the "
            f"{len(trained):,} questions that it was trained on"
        )
    return Overlap(RECORD, exact, list(_near_questions(trained, others)), notes)


def _left_out(run: RunFolder) -> Iterator[tuple[str, int]]:
    """The samples that the length policy left out: they were read and not trained on."""
    for line in run.each_line("skipped.jsonl"):
        if line.get("tokens_after") == 0 and isinstance(line.get("record"), int):
            yield str(line.get("file")), line["record"]


def _equal_questions(
    trained: TrainedQuestions, samples: Sequence[Sample]
) -> Iterator[SharedQuestion]:
    order = np.argsort(trained.questions, kind="stable")
    ordered = trained.questions[order]
    for sample in samples:
        question, answered = digests_of(sample)
        begin = np.searchsorted(ordered, np.uint64(question))
        end = np.searchsorted(ordered, np.uint64(question), side="right")
        if begin == end:
            continue
        entries = order[begin:end]
        same = entries[trained.answered[entries] == np.uint64(answered)]
        entry = int(same[0] if len(same) else entries[0])
        yield SharedQuestion(sample.source, trained.source(entry), same_answer=bool(len(same)))


def _near_questions(
    trained: TrainedQuestions, samples: Sequence[Sample]
) -> Iterator[SharedQuestion]:
    sketches = sketches_of([question_words(sample) for sample in samples])
    for pair in most_alike(sketches, trained.sketches, NEARLY_EQUAL):
        entry = int(trained.sketched[pair.other])
        similarity = round(pair.similarity, 3)
        yield SharedQuestion(samples[pair.text].source, trained.source(entry), similarity)


def _with_todays_files(run: RunFolder, samples: Sequence[Sample], reason: str) -> Overlap:
    try:
        settings = run.settings()
        trained = iterate_samples(settings.training_files, settings.columns, settings.encoding)
        shared = overlap(trained, samples)
    except UserError:  # the training data has gone since
        return Overlap("", notes=[reason, "its data files are not here"])
    notes = [f"{reason}: its data files are compared as they are today"]
    return Overlap(
        TODAY, [SharedQuestion(tested, source) for source, tested in shared], notes=notes
    )


def leak_lines(leaks: Overlap, count: int) -> list[str]:
    """What is said of the overlap with the training data, line by line.

    Args:
        count: of the test questions.
    """
    if not leaks.compared_with:
        return [f"Overlap with the training data is not checked: {'; '.join(leaks.notes)}."]
    lines = [f"Note: {note}." for note in leaks.notes]
    if leaks.exact:
        lines.append(_exact_line(leaks.exact, count))
    else:
        lines.append("No question of the test set is in the training data.")
    if leaks.near:
        are = "is" if len(leaks.near) == 1 else "are"
        first = leaks.near[0]
        lines.append(
            f"Warning: {len(leaks.near):,}{' more' if leaks.exact else ''} of "
            f"{counted(count, 'test question')} {are} nearly equal to one that was trained on (the "
            f"first: {first.test} is about {first.similarity:.0%} like {first.training})."
        )
    return lines


def _exact_line(exact: Sequence[SharedQuestion], count: int) -> str:
    first, are = exact[0], "is" if len(exact) == 1 else "are"
    other = sum(leak.same_answer is False for leak in exact)
    answers = f" {other:,} of them with another answer." if other else ""
    return (
        f"Warning: {len(exact):,} of {counted(count, 'test question')} {are} also in the training "
        f"data, so the rates are too good (the first: {first.test} was trained on as "
        f"{first.training}).{answers}"
    )
