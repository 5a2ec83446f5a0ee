"""EVAL_FILES -> questions that the model in training answers, and its scores on them."""

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkersmith.data.load import load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.shuffle import shuffled
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import Asking, ask_all
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.evaluation.question_set import QuestionSet
from tinkersmith.evaluation.questions import Questions
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.measures import ANSWER_SCORES, measurement_name
from tinkersmith.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tinker

    from tinkersmith.evaluation.results import Record

_STREAM = 2**31 + 1  # a seed that no epoch uses, as VALIDATION_STREAM: it chooses the questions


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """The scores of a model on the questions, each a share of 1."""

    scores: dict[str, float]
    n: int  # different questions
    answers: int
    cut: int  # answers that were cut at the token limit
    unfinished: int  # answers whose thought did not end
    mean_tokens: float  # of an answer
    seconds: float

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of a score (Wilson)."""
        return wilson_interval(self.scores[name] * self.n, self.n)

    def to_json(self) -> dict[str, Any]:
        """What metrics.jsonl says of it, beside the step."""
        line: dict[str, Any] = {"eval/n": self.n}
        for name, value in self.scores.items():
            low, high = self.interval(name)
            key = measurement_name(name)
            line |= {key: value, f"{key}_low": low, f"{key}_high": high}
        return line | {
            "eval/answers": self.answers,
            "eval/cut": self.cut,
            "eval/unfinished_thoughts": self.unfinished,
            "eval/mean_tokens": round(self.mean_tokens, 2),
            "eval/seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        shown: list[str] = []
        for name, value in self.scores.items():
            low, high = self.interval(name)
            title = name.replace("_", " ")
            shown.append(f"{title} {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)")
        cut = f"; {counted(self.cut, 'answer')} cut at the token limit" if self.cut else ""
        return f"{', '.join(shown)}, n = {self.n:,}{cut}; {self.seconds:.1f} s"


def read_eval_files(settings: Settings, progress: Progress) -> QuestionSet | None:
    """Read EVAL_FILES and choose EVAL_LIMIT of their questions; None without EVAL_FILES.

    Raises:
        UserError: see `load_samples`; or the files ask nothing.
    """
    if not settings.eval_files:
        return None
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


def digest_of_questions(questions: Questions) -> str:
    """Changes when a question or its expected answer does."""
    digest = hashlib.sha256(questions.digest.encode())
    for question in questions.asked:
        for _, sample in question.samples:
            expected = f"{sample.output!r} {sample.extra.get('answer')!r}\n"
            digest.update(expected.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def score_answers(
    asking: Asking, client: "tinker.TrainingClient", questions: Questions
) -> AnswerScores:
    """Ask the weights that `client` has now, and score the answers.

    Raises:
        ServerGone: the server stopped answering.
        UserError: the server refused a request.
    """
    service, begun = asking.service, time.monotonic()

    def open_client() -> "tinker.SamplingClient":
        pending = client.save_weights_and_get_sampling_client()
        return service.wait(pending, "opening the weights of this step")

    # The weights of this step are gone with the server: whoever trains decides how to go on.
    records = ask_all(
        asking, open_client, questions.asked, who="the model in training", reconnects=False
    )
    return scores_of(records, time.monotonic() - begun)


def scores_of(records: "Sequence[Record]", seconds: float) -> AnswerScores:
    """The scores of graded answers. A question counts once, however many samples ask it."""
    by_question: dict[str, list[Record]] = {}
    for record in records:
        by_question.setdefault(record.question or str(record.source), []).append(record)
    n = len(by_question)
    scores = {
        name: sum(
            sum(record.scores[name] for record in group) / len(group)
            for group in by_question.values()
        )
        / n
        for name in ANSWER_SCORES
    }
    return AnswerScores(
        scores=scores,
        n=n,
        answers=len(records),
        cut=sum(record.stop_reason == "length" for record in records),
        unfinished=sum(not record.thought_finished for record in records),
        mean_tokens=sum(record.tokens for record in records) / len(records),
        seconds=seconds,
    )
