"""Who waits for what: futures, the order of one model's operations, and the one engine thread.

Only the engine thread uses models; everything else sends it jobs. Each training client and each
sampling client has a queue of its own, and the queues take turns: no client waits for another's
whole queue.
"""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.traces import Span, Traces

SEQUENCES_PER_TURN = 512  # that one turn of a sampling client answers together

Result = dict[str, Any] | bytes | None
Work = Callable[[ModelOperations], Result]
SampleWork = Callable[[ModelOperations, Sequence[SampleRequest]], Sequence[Result]]


@dataclass(slots=True)
class Future:
    """A result that a client polls for. Created, finished and awaited on the event loop only."""

    result: Result = None
    received: float = field(default_factory=time.time)
    finished: float = 0.0  # monotonic seconds; 0 while pending
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self, result: Result) -> None:
        """Set the result. Only the first one counts: a client may have received it."""
        if not self.finished:
            self.result = result
            self.finished = time.monotonic()
            self.done.set()


def failure(error: BaseException) -> dict[str, str]:
    """The body of a failed future. Its category is "user" if the user can fix the error."""
    if isinstance(error, Refused):
        return {"error": str(error), "category": "user"}
    if isinstance(error, OSError | SafetensorError | sqlite3.OperationalError):
        reason = getattr(error, "strerror", None) or str(error)
        log.error("could not use the disk: %s", error)
        return {
            "error": f"the engine could not use its disk ({reason}); nothing was changed. "
            "Free some space or fix its permissions, then try again.",
            "category": "server",
        }
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return {
            "error": "out of memory; use shorter sequences, fewer at a time, or a lower rank.",
            "category": "server",
        }
    log.error("a job failed", exc_info=error)
    return {"error": f"engine error: {type(error).__name__}: {error}", "category": "server"}


@dataclass(frozen=True, slots=True)
class Job:
    """Work that runs alone, in one turn."""

    run: Work
    future: Future
    name: str | None = None  # in the session's trace; None: no client requested it


@dataclass(frozen=True, slots=True)
class SampleJob:
    """A sampling request. `answer` answers it together with those that wait behind it."""

    request: SampleRequest
    answer: SampleWork
    future: Future
    name: str = "sample"


QueueTurn = Job | list[SampleJob]  # what the engine thread runs at a time


class EngineThread(threading.Thread):
    """Runs jobs one at a time. `prepare` loads, on this thread, what every job uses."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, prepare: Callable[[], ModelOperations]
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._loop = loop
        self._prepare = prepare
        self.traces = Traces()
        self._queues: OrderedDict[str, deque[Job | SampleJob]] = OrderedDict()
        self._changed = threading.Condition()

    def submit(self, client_id: str, job: Job | SampleJob) -> None:
        """Append a job to the queue of a training or sampling client."""
        with self._changed:
            self._queues.setdefault(client_id, deque()).append(job)
            self._changed.notify()

    def drop(self, client_id: str) -> None:
        """Forget the client's waiting jobs. A job that runs already runs to its end."""
        with self._changed:
            self._queues.pop(client_id, None)

    def run(self) -> None:
        try:
            models = self._prepare()
        except Exception as error:
            log.critical("the engine could not be prepared: %s", error)
            self._fail_every_job(failure(error))
            return
        while True:
            client_id, turn = self._next()
            started = time.time()
            self._finish(client_id, turn, _run_turn(models, turn), started)
            del turn  # or the last batch would stay in memory until the next one comes

    def _fail_every_job(self, reason: Result) -> None:
        while True:
            client_id, turn = self._next()
            self._finish(client_id, turn, [reason] * len(_jobs(turn)), time.time())

    def _next(self) -> tuple[str, QueueTurn]:
        """The first job of the next queue, or all sample jobs that it begins with."""
        with self._changed:
            while not self._queues:
                self._changed.wait()
            client_id, waiting = next(iter(self._queues.items()))
            first = waiting.popleft()
            turn = first if isinstance(first, Job) else [first, *_followers(first, waiting)]
            if waiting:
                self._queues.move_to_end(client_id)
            else:
                del self._queues[client_id]
            return client_id, turn

    def _finish(
        self, client_id: str, turn: QueueTurn, results: Sequence[Result], started: float
    ) -> None:
        ended = time.time()
        finished = [(job.future, job.name) for job in _jobs(turn)]

        def finish_all() -> None:
            for (future, name), result in zip(finished, results, strict=True):
                future.finish(result)
                if name is not None:
                    failed = isinstance(result, dict) and "error" in result
                    self.traces.add(Span(client_id, name, future.received, started, ended, failed))

        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(finish_all)


def _jobs(turn: QueueTurn) -> Sequence[Job | SampleJob]:
    return [turn] if isinstance(turn, Job) else turn


def _followers(first: SampleJob, waiting: deque[Job | SampleJob]) -> list[SampleJob]:
    """Take the sample jobs at the front of `waiting` that fit into the turn of `first`."""
    followers: list[SampleJob] = []
    sequences = first.request.num_samples
    while waiting and sequences < SEQUENCES_PER_TURN:
        job = waiting[0]
        if not isinstance(job, SampleJob):
            break
        waiting.popleft()
        followers.append(job)
        sequences += job.request.num_samples
    return followers


def _run_turn(models: ModelOperations, turn: QueueTurn) -> Sequence[Result]:
    try:
        if isinstance(turn, Job):
            return [turn.run(models)]
        return turn[0].answer(models, [job.request for job in turn])
    except BaseException as error:  # a job's failure is its client's, never the thread's
        if isinstance(turn, Job) or len(turn) == 1:
            return [failure(error)]
    # One request must not spoil those that were answered together with it.
    return [result for job in turn for result in _run_turn(models, [job])]


@dataclass(slots=True)
class OrderedOperations:
    """One training client's numbered operations: begun strictly in order, each number once."""

    next_seq: int = 1
    failure_reported: int = 0  # the highest number whose failure the client has received
    touched: float = 0.0  # monotonic seconds: when the run's last request was stored
    early: dict[int, Callable[[], None]] = field(default_factory=dict[int, Callable[[], None]])

    def submit(self, seq: int, begin: Callable[[], None]) -> None:
        """Call `begin` as soon as all lower numbers have begun. A repeated number is ignored."""
        if seq < self.next_seq or seq in self.early:
            return
        self.early[seq] = begin
        while (ready := self.early.pop(self.next_seq, None)) is not None:
            self.next_seq += 1
            ready()
