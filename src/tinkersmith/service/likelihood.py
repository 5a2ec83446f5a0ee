"""Samples and a model -> how likely it finds their expected answers, through compute_logprobs."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkersmith.data.samples import Sample, Source
from tinkersmith.errors import UserError
from tinkersmith.metrics.likelihood import Likelihood, likelihood
from tinkersmith.prompts.guards import unguarded
from tinkersmith.service.connection import ServerGone, Service
from tinkersmith.service.reconnection import Reconnection

if TYPE_CHECKING:
    import tinker

    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate

_IN_FLIGHT = 64  # requests: each holds the log-probabilities of a whole sample


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """A sample as it would be trained on, with the place of its answer."""

    source: Source
    tokens: list[int]
    start: int  # of the answer
    stop: int  # before the end token
    text: str  # of the answer


def answers_to_measure(
    samples: Sequence[Sample],
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    max_context: int | None,
) -> tuple[list[ExpectedAnswer], list[Source]]:
    """The tokens of each sample by the run's template, and the samples that the model cannot hold.

    The end token is left out: every answer has it, and its text is no part of the answer. A thought
    that the template trains on is a part of it.
    """
    rendered = [template.render(sample) for sample in samples]
    texts = [text for pieces in rendered for text in (pieces.prompt, pieces.completion)]
    rows = tokenizer.encode_batch(texts)
    end = tokenizer.encode(template.end).tolist()
    answers: list[ExpectedAnswer] = []
    too_long: list[Source] = []
    for place, sample in enumerate(samples):
        prompt, completion = (row.tolist() for row in rows[2 * place : 2 * place + 2])
        text = unguarded(rendered[place].completion)
        if end and completion[-len(end) :] == end:
            completion = completion[: -len(end)]
            text = text.removesuffix(template.end)
        if max_context is not None and len(prompt) + len(completion) > max_context:
            too_long.append(sample.source)
            continue
        tokens = prompt + completion
        # The very first token of a sequence has no log-probability.
        start = max(1, len(prompt))
        answers.append(ExpectedAnswer(sample.source, tokens, start, len(tokens), text))
    return answers, too_long


def expected_likelihoods(
    service: Service,
    open_client: Callable[[], "tinker.SamplingClient"],
    answers: Sequence[ExpectedAnswer],
    who: str,
    *,
    reconnects: bool = True,
) -> dict[Source, Likelihood]:
    """How likely a model finds each answer; those without any text are left out.

    Args:
        open_client: opens a client on the model; called again when the connection was lost.
        who: the model, in the words of the progress lines.
        reconnects: False where the client cannot be opened again.

    Raises:
        ServerGone: the server stays away, or is gone and `reconnects` is False.
        UserError: the server refuses a request, or gives no log-probabilities.
    """
    found: dict[Source, Likelihood] = {}
    waiting = deque(answer for answer in answers if answer.start < answer.stop)
    under_way: deque[tuple[ExpectedAnswer, Any]] = deque()
    if not waiting:
        return found
    total, doing = len(waiting), f"measuring the expected answers under {who}"
    reconnection = Reconnection(service)
    with service.progress.doing(doing) as task:
        client = open_client()
        while waiting or under_way:
            try:
                while waiting and len(under_way) < _IN_FLIGHT:
                    under_way.append((waiting[0], _requested(client, waiting[0])))
                    waiting.popleft()
                answer, future = under_way[0]
                logprobs = service.wait(future, doing)
            except ServerGone as failure:
                if not reconnects:
                    raise
                reconnection.after(failure, doing)
                waiting.extendleft(reversed([answer for answer, _ in under_way]))
                under_way.clear()
                client = open_client()
                continue
            under_way.popleft()
            reconnection.progressed()
            measured = _measured(answer, logprobs)
            if measured is not None:
                found[answer.source] = measured
            done = total - len(waiting) - len(under_way)
            service.progress.reached(task, f"Measuring: {done:,}/{total:,} answers", done / total)
    return found


def _requested(client: "tinker.SamplingClient", answer: ExpectedAnswer) -> Any:
    import tinker

    return client.compute_logprobs(tinker.ModelInput.from_ints(answer.tokens))


def _measured(answer: ExpectedAnswer, logprobs: Sequence[float | None]) -> Likelihood | None:
    try:
        return likelihood(logprobs[answer.start : answer.stop], answer.text)
    except ValueError as error:
        raise UserError(
            f'{answer.source}: {error}. Remove "perplexity" from METRICS, or use another server.'
        ) from None
