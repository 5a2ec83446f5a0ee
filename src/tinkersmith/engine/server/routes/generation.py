"""Prompts -> tokens as they are sampled, in the sampling batches that the SDK's requests use."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request

from tinkersmith.engine.messages import SampledToken, SampleProgress, SampleRequest, SampleResult
from tinkersmith.engine.scheduling.queue import Future, Result, SampleJob
from tinkersmith.engine.server.routes.answer_text import AnswerSyntax, AnswerText, TextPiece
from tinkersmith.engine.server.routes.inference_models import (
    InferenceModels,
    NamedModel,
    job_error,
)

_FEW_TOKENS = 256  # whose text is made in some milliseconds


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """A piece of one answer."""

    index: int  # among all answers: those to the first prompt first
    piece: TextPiece
    # Why the answer has ended, with this piece or before; None: it goes on. The answer itself may
    # be ahead: several tokens are read at once.
    reason: str | None


class Disconnected(Exception):
    """The client has closed its connection."""


class Generation:
    """The answers to one request for a model."""

    def __init__(
        self,
        models: InferenceModels,
        model: NamedModel,
        requests: Sequence[SampleRequest],  # one for each prompt
        syntax: AnswerSyntax,
        *,
        live: bool,  # whether the client takes each token as it is sampled
    ) -> None:
        self._models, self._model, self._live = models, model, live
        self.requests = requests
        self._changed = asyncio.Event()
        self._progress = [SampleProgress() for _ in requests]
        self.results: list[SampleResult] = []  # one for each prompt, at the end
        per_prompt = requests[0].num_samples
        tokenizer = model.texts.tokenizer
        self.answers = [AnswerText(tokenizer, syntax) for _ in range(len(requests) * per_prompt)]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; those of images are known once an answer has begun."""
        return sum(
            max(progress.prompt_tokens, len(request.prompt))
            for progress, request in zip(self._progress, self.requests, strict=True)
        )

    @property
    def sampled_tokens(self) -> int:
        return sum(answer.count for answer in self.answers)

    async def parts(self) -> AsyncGenerator[AnswerPart]:
        """The answers, piece by piece. Closing this iterator frees their places.

        Raises:
            ApiError: the engine refuses the request, or cannot take it now.
        """
        count = len(self.answers)
        async with self._models.place(self._model, count) as sampler_id:
            begun = zip(self.requests, self._progress, strict=True)
            jobs = [self._start(sampler_id, *one) for one in begun]
            waiters = [asyncio.create_task(self._note_end(job.future)) for job in jobs]
            try:
                done = False
                while not done:
                    await self._changed.wait()
                    self._changed.clear()
                    done = all(job.future.finished for job in jobs)
                    for number, job in enumerate(jobs):
                        for part in self._new_parts(number, job):
                            yield part
                self.results = [_result_of(job.future) for job in jobs]
                # Thousands of tokens may be left, if none was reported. A thread's turn for a few
                # would take longer than they do.
                left = sum(len(one.tokens) for result in self.results for one in result.sequences)
                many = left - self.sampled_tokens > _FEW_TOKENS
                parts = await asyncio.to_thread(self._last_parts) if many else self._last_parts()
                for part in parts:
                    yield part
            finally:
                for job in jobs:
                    job.progress.cancelled = True
                for waiter in waiters:
                    waiter.cancel()

    def _start(self, sampler_id: str, request: SampleRequest, progress: SampleProgress) -> "_Job":
        loop, tokens = asyncio.get_running_loop(), deque[SampledToken]()
        awake = False

        def wake() -> None:
            nonlocal awake
            awake = False
            self._changed.set()

        def take(token: SampledToken) -> None:  # on the engine thread
            nonlocal awake
            tokens.append(token)
            if not awake:
                awake = True
                loop.call_soon_threadsafe(wake)

        progress.take = take if self._live else None
        future = Future()
        job = SampleJob(replace(request, progress=progress), _answers, future)
        self._models.sessions.thread.submit(sampler_id, job)
        return _Job(future, progress, tokens)

    async def _note_end(self, future: Future) -> None:
        await future.done.wait()
        self._changed.set()

    def _new_parts(self, number: int, job: "_Job") -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        while job.tokens:
            sampled = job.tokens.popleft()
            topk: list[tuple[int, float]] = []
            if sampled.topk is not None:
                topk = list(zip(sampled.topk[0].tolist(), sampled.topk[1].tolist(), strict=True))
            index = number * self.requests[0].num_samples + sampled.number
            parts.append(
                self._add(index, sampled.token, sampled.logprob, topk, sampled.stop_reason)
            )
        return parts

    def _add(
        self,
        index: int,
        token: int,
        logprob: float,
        topk: list[tuple[int, float]],
        reason: str | None,
    ) -> AnswerPart:
        answer = self.answers[index]
        piece = answer.add(token, logprob, topk, reason)
        return AnswerPart(index, piece, answer.reason)

    def _last_parts(self) -> list[AnswerPart]:
        """Tokens that were not reported one by one."""
        parts: list[AnswerPart] = []
        sequences = [sequence for result in self.results for sequence in result.sequences]
        for index, sequence in enumerate(sequences):
            answer = self.answers[index]
            for i in range(answer.count, len(sequence.tokens)):
                if answer.reason is not None:
                    break
                topk: list[tuple[int, float]] = []
                if sequence.topk is not None:
                    ids, scores = sequence.topk
                    topk = list(zip(ids[i].tolist(), scores[i].tolist(), strict=True))
                last = i == len(sequence.tokens) - 1
                reason = sequence.stop_reason if last else None
                parts.append(
                    self._add(index, sequence.tokens[i], sequence.logprobs[i], topk, reason)
                )
        return parts


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future
    progress: SampleProgress
    tokens: deque[SampledToken]


def _answers(result: SampleResult) -> Result:
    return {"answers": result}


def _result_of(future: Future) -> SampleResult:
    result = future.result
    assert isinstance(result, dict)
    if "error" in result:
        raise job_error(result)
    return result["answers"]


async def collect(generation: Generation, request: Request) -> list[list[TextPiece]]:
    """All pieces of each answer, unless the client leaves before.

    Raises:
        Disconnected: it has left; the places of its answers are free.
    """

    async def gather() -> list[list[TextPiece]]:
        pieces: list[list[TextPiece]] = [[] for _ in generation.answers]
        async with aclosing(generation.parts()) as parts:
            async for part in parts:
                pieces[part.index].append(part.piece)
        return pieces

    gathering = asyncio.create_task(gather())
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({gathering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if gathering.done():
            return gathering.result()
        raise Disconnected
    finally:
        leaving.cancel()
        if not gathering.done():
            gathering.cancel()
            await asyncio.wait({gathering})


async def begin(generation: Generation, request: Request) -> AsyncGenerator[AnswerPart]:
    """The answers piece by piece, once the first piece is there: until then a refusal has a status.

    Raises:
        ApiError: the engine refuses the request.
        Disconnected: the client has left before.
    """
    parts = generation.parts()
    first = asyncio.ensure_future(anext(parts))
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({first, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise Disconnected
        head = first.result()
    finally:
        leaving.cancel()
        if not first.done():
            first.cancel()
            await asyncio.wait({first})

    async def all_parts() -> AsyncGenerator[AnswerPart]:
        async with aclosing(parts):
            yield head
            async for part in parts:
                yield part

    return all_parts()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
