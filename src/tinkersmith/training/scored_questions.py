"""EVAL_FILES -> questions that the model in training answers, and its scores on them."""

import hashlib
import math
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tinkersmith.data.load import load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Source
from tinkersmith.data.shuffle import shuffled
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import Asking, ask_all
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.evaluation.measures import try_scorers, with_chosen_scores, with_likelihood
from tinkersmith.evaluation.question_set import QuestionSet
from tinkersmith.evaluation.questions import Questions
from tinkersmith.evaluation.summary import Estimate, estimate_of, metric_names
from tinkersmith.metrics.choose import ChosenMetrics, check_metrics_are_there, metrics_for
from tinkersmith.metrics.names import LOWER_IS_BETTER
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.service.likelihood import answers_to_measure, expected_likelihoods
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.measures import (
    JUDGE,
    MAIN_SCORE,
    VALIDATION_LOSS,
    best_by,
    check_scores_are_measured,
    measurement_name,
    metrics_while_training,
    score_text,
)
from tinkersmith.text.thoughts import answer_alone

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tinker

    from tinkersmith.data.samples import Sample
    from tinkersmith.evaluation.results import Record

_SHOWN_QUESTIONS = 5  # whose answers are stored with every measurement
_SHOWN = 2000  # characters of their prompts and answers
_STREAM = 2**31 + 1  # a seed that no epoch uses, as VALIDATION_STREAM: it chooses the questions


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """The scores of a model on the questions."""

    estimates: dict[str, Estimate]
    n: int  # different questions
    answers: int
    cut: int  # answers that were cut at the token limit
    unfinished: int  # answers whose thought did not end
    mean_tokens: float  # of an answer
    seconds: float
    single: dict[str, dict[Source, float]]  # by score: that of each question, by its first sample
    draws: int  # answers to a question
    shown: "Sequence[Record]" = ()  # answers to the first questions, the same ones every time

    @property
    def scores(self) -> dict[str, float]:
        return {name: estimate.mean for name, estimate in self.estimates.items()}

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of a score; None where one question cannot tell it."""
        low, high = self.estimates[name].low, self.estimates[name].high
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def to_json(self) -> dict[str, Any]:
        """What metrics.jsonl says of it, beside the step."""
        line: dict[str, Any] = {"eval/n": self.n}
        for name, estimate in self.estimates.items():
            key, interval = measurement_name(name), self.interval(name)
            line[key] = estimate.mean
            if interval is not None:
                line |= {f"{key}_low": interval[0], f"{key}_high": interval[1]}
            if estimate.n != self.n:
                line[f"{key}_n"] = estimate.n
        return line | {
            "eval/answers": self.answers,
            "eval/cut": self.cut,
            "eval/unfinished_thoughts": self.unfinished,
            "eval/mean_tokens": round(self.mean_tokens, 2),
            "eval/seconds": round(self.seconds, 3),
        }

    def shown_lines(self, step: int, epoch: int) -> list[dict[str, Any]]:
        """The lines of shown_answers.jsonl that this measurement adds."""
        return [
            {
                "step": step,
                "epoch": epoch,
                "source": str(record.source),
                "prompt": _beginning(record.prompt),
                "expected": _beginning(record.expected),
                "answers": [_beginning(record.produced)],
                "scores": record.scores,
            }
            for record in self.shown
        ]

    def __str__(self) -> str:
        shown: list[str] = []
        for name, estimate in self.estimates.items():
            count = 0 if estimate.n == self.n else estimate.n
            value = score_text(name, estimate.mean, self.interval(name), count)
            shown.append(f"{name.replace('_', ' ')} {value}")
        cut = f"; {counted(self.cut, 'answer')} cut at the token limit" if self.cut else ""
        return f"{', '.join(shown)}, n = {self.n:,}{cut}; {self.seconds:.1f} s"


def read_eval_files(settings: Settings, progress: Progress) -> QuestionSet | None:
    """Read EVAL_FILES and choose EVAL_LIMIT of their questions; None without EVAL_FILES.

    Raises:
        UserError: see `load_samples`, `check_scores_are_measured` and
            `check_metrics_are_there`; or the files ask nothing.
    """
    if not settings.eval_files:
        return None
    check_scores_are_measured(settings)
    check_metrics_are_there(metrics_while_training(settings))
    with progress.doing("reading EVAL_FILES"):
        loaded = load_samples(settings.eval_files, settings.columns, settings.encoding)
    asking = [sample for sample in loaded.samples if sample.turns[-1].role != "text"]
    if not asking:
        raise UserError(
            f"EVAL_FILES = {settings.eval_files} holds plain text alone, which asks nothing. Name "
            "files of questions with their answers."
        )
    limit = settings.eval_limit or len(asking)
    places = sorted(shuffled(len(asking), settings.seed, _STREAM)[:limit].tolist())
    return QuestionSet(
        file="EVAL_FILES",
        loaded=loaded,
        samples=[asking[place] for place in places],
        limit=settings.eval_limit or None,
        plain_texts=[sample.source for sample in loaded.samples if sample.turns[-1].role == "text"],
    )


def eval_lines(chosen: QuestionSet, seed: int) -> list[str]:
    """How EVAL_FILES were read, and what of them is asked, line by line."""
    loaded, asked = chosen.loaded, len(chosen.samples)
    lines = [
        *loaded.said,
        *read_lines(loaded.counts, loaded.missing_files, loaded.shapes),
        *note_lines(loaded.notes),
        *skipped_lines(loaded.skipped, len(loaded.skipped)),
    ]
    if chosen.plain_texts:
        who = counted(len(chosen.plain_texts), "sample is", "samples are")
        lines.append(f"{who} plain text, which asks nothing, and left out.")
    count = len(loaded.samples) - len(chosen.plain_texts)
    if asked == count:
        return [*lines, f"Asked during training: {counted(asked, 'question')} of EVAL_FILES."]
    lines.append(
        f"Asked during training: {asked:,} of {counted(count, 'question')} of EVAL_FILES "
        f"(EVAL_LIMIT). SEED = {seed} chooses the same ones every time."
    )
    return lines


def trained_on_lines(leaks: Overlap, count: int) -> list[str]:
    """How many questions of EVAL_FILES are trained on as well, exactly or nearly.

    Args:
        count: of the questions.
    """
    lines: list[str] = []
    of_all = f"of {counted(count, 'question')} of EVAL_FILES"
    if leaks.exact:
        first, are = leaks.exact[0], "is" if len(leaks.exact) == 1 else "are"
        lines.append(
            f"Warning: {len(leaks.exact):,} {of_all} {are} also trained on, so the scores are too "
            f"good (the first: {first.test} is {first.training})."
        )
    if leaks.near:
        first, are = leaks.near[0], "is" if len(leaks.near) == 1 else "are"
        lines.append(
            f"Warning: {len(leaks.near):,} {of_all} {are} nearly equal to one that is trained on "
            f"(the first: {first.test} is about {first.similarity:.0%} like {first.training})."
        )
    return lines or ["No question of EVAL_FILES is in the training data."]


def metrics_of(settings: Settings, questions: Questions) -> ChosenMetrics:
    """What METRICS measures on the answers to EVAL_FILES, tried out on the first question.

    Raises:
        UserError: a metric cannot be computed, or none of them measures BEST_BY.
    """
    samples = list(_samples(questions).values())
    expected = [answer_alone(sample.turns[-1]) for sample in samples]
    chosen = metrics_for(metrics_while_training(settings), expected)
    given = try_scorers(chosen, samples, expected)
    by = best_by(settings)
    problem = _unmeasured(by, chosen, given) if by and by != VALIDATION_LOSS else ""
    if problem:
        raise UserError(f'BEST_BY is "{settings.best_by}": {problem}')
    return chosen


def _unmeasured(by: str, chosen: ChosenMetrics, given: dict[str, dict[str, float]]) -> str:
    """Why a score is not measured with this data, and what to do; "" if it is or may be."""
    if by == "label" and chosen.labels is None:
        return (
            'the expected outputs of EVAL_FILES are not found to be labels. Add "labels" to '
            "METRICS, or name another score."
        )
    if by.startswith("json_") and not chosen.structured and by not in given:
        return (
            'the expected outputs of EVAL_FILES are mostly no JSON. Add "json" to METRICS if '
            "some are, or name another score."
        )
    for function, scores in given.items():
        if (by == function or by.startswith(f"{function}_")) and scores and by not in scores:
            others = [name for name, known in given.items() if name != function and by in known]
            if not others:
                return (
                    f'no score is named "{by}". For the first question {function} returns '
                    f"{', '.join(scores)}: name one of these."
                )
    return ""


def metric_lines(settings: Settings, chosen: ChosenMetrics) -> list[str]:
    """What of METRICS is measured during training, line by line."""
    lines = list(chosen.said)
    if JUDGE in settings.metrics:
        lines.append(
            "The judge is not asked during training, where each measurement would cost requests. "
            "Evaluation asks it."
        )
    return lines


def digest_of_questions(questions: Questions) -> str:
    """Changes when a question or its expected answer does."""
    digest = hashlib.sha256(questions.digest.encode())
    for question in questions.asked:
        for _, sample in question.samples:
            expected = f"{sample.output!r} {sample.extra.get('answer')!r}\n"
            digest.update(expected.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def score_answers(
    asking: Asking, client: "tinker.TrainingClient", questions: Questions, chosen: ChosenMetrics
) -> AnswerScores:
    """Ask the weights that `client` has now, and score the answers.

    A thought that never ends gives an empty answer.

    Raises:
        ServerGone: the server stopped answering.
        UserError: the server refused a request, or a function of the user's failed.
    """
    opened: list[tinker.SamplingClient] = []
    service, begun = asking.service, time.monotonic()

    def open_client() -> "tinker.SamplingClient":
        pending = client.save_weights_and_get_sampling_client()
        opened.append(service.wait(pending, "opening the weights of this step"))
        return opened[-1]

    # The weights of this step are gone with the server: whoever trains decides how to go on.
    records = ask_all(
        asking, open_client, questions.asked, who="the model in training", reconnects=False
    )
    samples = _samples(questions)
    records = [with_chosen_scores(chosen, record, samples[record.source]) for record in records]
    if chosen.perplexity:
        answers, _ = answers_to_measure(
            list(samples.values()), asking.template, asking.tokenizer, service.max_context
        )
        found = expected_likelihoods(
            service, lambda: opened[-1], answers, "the model in training", reconnects=False
        )
        records = [with_likelihood(record, found) for record in records]
    return scores_of(records, time.monotonic() - begun)


def _samples(questions: Questions) -> "dict[Source, Sample]":
    """The samples that ask, by their places."""
    return {sample.source: sample for asked in questions.asked for _, sample in asked.samples}


def scores_of(records: "Sequence[Record]", seconds: float) -> AnswerScores:
    """The scores of graded answers. A question counts once, however many samples ask it."""
    by_question: dict[str, list[Record]] = {}
    for record in records:
        by_question.setdefault(record.question or str(record.source), []).append(record)
    # The one that is shown first is the most important one.
    names = sorted(metric_names(records), key=lambda name: name != MAIN_SCORE)
    groups = list(by_question.values())
    single = {name: _single_scores(groups, name) for name in names}
    draws = max(record.draw for record in records)
    return AnswerScores(
        estimates={name: _estimate(groups, single[name], name, draws) for name in names},
        n=len(by_question),
        answers=len(records),
        cut=sum(record.stop_reason == "length" for record in records),
        unfinished=sum(not record.thought_finished for record in records),
        mean_tokens=sum(record.tokens for record in records) / len(records),
        seconds=seconds,
        single=single,
        draws=draws,
        shown=[group[0] for group in islice(by_question.values(), _SHOWN_QUESTIONS)],
    )


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _single_scores(groups: "Sequence[Sequence[Record]]", name: str) -> dict[Source, float]:
    """The mean score of each question that has the score, by the place of its first sample."""
    values = {
        group[0].source: [record.scores[name] for record in group if name in record.scores]
        for group in groups
    }
    return {source: sum(scores) / len(scores) for source, scores in values.items() if scores}


def _estimate(
    groups: "Sequence[Sequence[Record]]", single: dict[Source, float], name: str, draws: int
) -> Estimate:
    """The mean of a score over the questions that have it, with its 95 % interval."""
    shares = name not in LOWER_IS_BETTER and all(
        0 <= record.scores[name] <= 1
        for group in groups
        for record in group
        if name in record.scores
    )
    return estimate_of(list(single.values()), draws, shares=shares)
