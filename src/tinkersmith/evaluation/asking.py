"""Questions and a model -> graded answers. All requests are under way at a time.

Answers are taken in the order in which they come, and graded by a thread of their own: what an
answer holds cannot delay the next one. This module writes no files.
"""

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkersmith.data.samples import Sample
from tinkersmith.evaluation.questions import Answer, Question
from tinkersmith.evaluation.results import Record
from tinkersmith.grading.formulas import second_opinion
from tinkersmith.grading.scoring import score_and_grade
from tinkersmith.plurals import counted
from tinkersmith.service.connection import ServerGone, Service
from tinkersmith.service.reconnection import Reconnection
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    import tinker

    from tinkersmith.progress import Task
    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate

IN_FLIGHT = 1024  # requests; the SDK sends some hundreds of them at a time
_SHORT_FIELD = 100  # characters of an extra field that groups can be formed by

OpenClient = Callable[[], "tinker.SamplingClient"]
OnAnswer = Callable[[Question, Sequence[Answer]], None]


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put to a model."""

    service: Service
    template: "PromptTemplate"
    tokenizer: "TextTokenizer"
    settings: Settings

    @property
    def draws(self) -> int:
        """How many answers a question gets. At temperature 0 all would be the same."""
        greedy = self.settings.sampling_temperature == 0
        return 1 if greedy else self.settings.sampling_num_samples


def ask_all(
    asking: Asking,
    open_client: OpenClient,
    questions: Sequence[Question],
    *,
    who: str = "the trained model",
    known: Mapping[str, Sequence[Answer]] | None = None,
    on_answer: OnAnswer = lambda question, answers: None,
    reconnects: bool = True,
) -> list[Record]:
    """Ask every question once, and grade the answers: one record per sample and draw.

    Args:
        open_client: opens a client on the model; called again when the connection was lost.
        who: the model, in the words of the progress lines.
        known: answers from before, by the digest of their question: it is not asked again.
        on_answer: called in this thread with the answers to a question, as soon as they come.
        reconnects: False where the client cannot be opened again.

    Returns:
        The records in the order of the samples, each with its draws in their order.

    Raises:
        ServerGone: the server stays away, or is gone and `reconnects` is False.
        UserError: the server refused a request.
    """
    known = known or {}
    timeouts_before = second_opinion.timeouts()
    grader = _Grader()
    try:
        waiting = [question for question in questions if question.digest not in known]
        for question in questions:
            if question.digest in known:
                grader.add(question, known[question.digest])

        def take(question: Question, answers: Sequence[Answer]) -> None:
            on_answer(question, answers)
            grader.add(question, answers)

        with asking.service.progress.doing(f"asking {who}") as task:
            _Round(asking, open_client, who, take, reconnects, task).ask(
                waiting, len(questions) - len(waiting)
            )
        with asking.service.progress.doing("scoring the answers"):
            records = grader.records()
        if late := second_opinion.timeouts() - timeouts_before:
            asking.service.progress.say(
                f"  math-verify took too long for {counted(late, 'comparison')}, which counted as "
                "different. On a machine that is less busy, such an answer may count as right."
            )
        return records
    finally:
        grader.stop()


class _Round:
    """The requests for some questions to one model."""

    def __init__(
        self,
        asking: Asking,
        open_client: OpenClient,
        who: str,
        take: OnAnswer,
        reconnects: bool,
        task: "Task",
    ) -> None:
        self._asking, self._open_client, self._who = asking, open_client, who
        self._take, self._reconnects, self._task = take, reconnects, task
        self._doing = f"asking {who}"
        self._waiting: list[Question] = []  # the next one last
        self._under_way: dict[str, Question] = {}  # by digest
        self._arrived: queue.SimpleQueue[tuple[Question, Any]] = queue.SimpleQueue()

    def ask(self, questions: Sequence[Question], known: int) -> None:
        """Ask all of them; `known` others are answered already."""
        if not questions:
            return
        service, done = self._asking.service, 0
        total = known + len(questions)
        reconnection = Reconnection(service)
        self._waiting = list(reversed(questions))
        client = self._open_client()
        begun = time.monotonic()
        while self._waiting or self._under_way:
            try:
                while self._waiting and len(self._under_way) < IN_FLIGHT:
                    self._send(client, self._waiting[-1])
                question, future = service.next_of(self._arrived, self._doing)
                self._answered(question, future)
            except ServerGone as failure:
                done += self._take_what_came()
                if not self._reconnects:
                    raise
                reconnection.after(failure, self._doing)
                left = counted(len(self._waiting) + len(self._under_way), "question")
                service.progress.say(f"  {failure} Asking again: {left} without an answer.")
                self._waiting += reversed(self._under_way.values())
                self._under_way.clear()
                self._arrived = queue.SimpleQueue()
                client = self._open_client()
                continue
            except BaseException:
                self._take_what_came()
                raise
            reconnection.progressed()
            done += 1
            elapsed = time.monotonic() - begun
            left = duration(elapsed / done * (total - known - done))
            state = f"Asking {self._who}: {known + done:,}/{total:,} questions"
            state += f", about {left} left" if known + done < total else ""
            service.progress.reached(self._task, state, (known + done) / total)

    def _send(self, client: "tinker.SamplingClient", question: Question) -> None:
        from tinkersmith.service.answers import request_answers

        asking, arrived = self._asking, self._arrived
        pending = request_answers(
            client,
            question.tokens,
            asking.settings,
            asking.template,
            asking.tokenizer,
            asking.service.max_context,
            asking.draws,
        )
        self._waiting.pop()
        self._under_way[question.digest] = question
        future: Future[Any] = pending.future() if hasattr(pending, "future") else pending

        def came(done: Future[Any]) -> None:
            arrived.put((question, done))

        future.add_done_callback(came)

    def _answered(self, question: Question, future: Any) -> None:
        service = self._asking.service
        _, sample = question.samples[0]
        response = service.wait(future, f"answering {sample.source}")
        answers = [
            self._answer(draw, sequence) for draw, sequence in enumerate(response.sequences, 1)
        ]
        del self._under_way[question.digest]
        self._take(question, answers)

    def _answer(self, draw: int, sequence: Any) -> Answer:
        from tinkersmith.service.answers import generated_text

        asking = self._asking
        generated = generated_text(sequence.tokens, asking.template, asking.tokenizer)
        produced = asking.template.finished_answer(generated)
        return Answer(
            draw=draw,
            produced=produced or "",
            generated=generated,
            thought_finished=produced is not None,
            stop_reason=str(sequence.stop_reason),
            tokens=len(sequence.tokens),
        )

    def _take_what_came(self) -> int:
        """Take the answers that are here already, before others are asked for again."""
        taken = 0
        while True:
            try:
                question, future = self._arrived.get_nowait()
            except queue.Empty:
                return taken
            if future.cancelled() or future.exception() is not None:
                continue
            if question.digest in self._under_way:
                self._answered(question, future)
                taken += 1


class _Grader:
    """Grades answers in a thread of its own, in the order of their coming."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grading")
        self._thread.submit(second_opinion.warm_up)  # no answer should wait for its start
        self._graded: list[tuple[int, int, Future[Record]]] = []

    def add(self, question: Question, answers: Sequence[Answer]) -> None:
        """Take the answers to a question, for every sample that asks it."""
        for place, sample in question.samples:
            for answer in answers:
                future = self._thread.submit(graded, question, sample, answer)
                self._graded.append((place, answer.draw, future))

    def records(self) -> list[Record]:
        """Wait for everything that was added."""
        ordered = sorted(self._graded, key=lambda graded: graded[:2])
        return [future.result() for _, _, future in ordered]

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def graded(question: Question, sample: Sample, answer: Answer) -> Record:
    """The record of an answer to a sample's question, with its scores.

    A thought that never ends gives no answer; an answer that was cut gives only what it announced.
    """
    from tinkersmith.text.thoughts import answer_alone

    expected, cut = answer_alone(sample.turns[-1]), answer.stop_reason == "length"
    named = sample.extra.get("answer")
    scores, grade = score_and_grade(expected, answer.produced, named, cut=cut)
    return Record(
        source=sample.source,
        prompt=question.text,
        expected=expected,
        expected_answer=grade.expected_answer,
        produced=answer.produced,
        scores=scores,
        stop_reason=answer.stop_reason,
        tokens=answer.tokens,
        draw=answer.draw,
        question=question.digest,
        final_answer=grade.final_answer,
        rule=grade.rule,
        kind=grade.kind,
        thought_finished=answer.thought_finished,
        prompt_tokens=len(question.tokens),
        generated="" if answer.generated == answer.produced else answer.generated,
        fields=short_fields(sample),
    )


def short_fields(sample: Sample) -> dict[str, str]:
    """The extra fields of a sample that groups can be formed by, as strings."""
    return {
        name: str(value)
        for name, value in sample.extra.items()
        if isinstance(value, str | int | float | bool) and len(str(value)) <= _SHORT_FIELD
    }


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
