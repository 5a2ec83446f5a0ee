"""Who waits for what: futures, the order of one model's operations, and the one engine thread.

Only the engine thread uses models; everything else sends it jobs. Each training client and each
sampling client has a queue of its own, and the queues take turns: no client waits for another's
whole queue.
"""

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError

from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.traces import Span, Traces

DISK_THREADS = 4  # saves that may wait for the disk at once
SEQUENCES_PER_TURN = 512  # that one turn of a sampling client answers together

Result = dict[str, Any] | bytes | None


@dataclass(frozen=True, slots=True)
class DiskWork:
    """The rest of a job, which needs the disk and no model.

    It runs on a thread of its own, so that no other client waits for a slow disk or a locked
    database. Later jobs of the same client wait for it.
    """

    run: Callable[[], Result]


Work = Callable[[ModelOperations], Result | DiskWork]
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
    if isinstance(error, StorageFailure):
        log.error("%s", error)
        return {"error": str(error), "category": "server"}
    if isinstance(error, OSError | SafetensorError):
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
_INTERNAL = "internal"  # the name of jobs that no client requested


@dataclass(frozen=True, slots=True)
class ClientQueue:
    """The jobs of one client by name, and the sequences that are sampled for it now."""

    client_id: str
    waiting: Counter[str]
    running: Counter[str]
    sequences: int


class EngineThread(threading.Thread):
    """Runs jobs one at a time. `prepare` loads, on this thread, what every job uses."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, prepare: Callable[[], ModelOperations]
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._loop = loop
        self._prepare = prepare
        self._models: ModelOperations | None = None  # until `_prepare` has returned
        self.traces = Traces()
        self._queues: OrderedDict[str, deque[Job | SampleJob]] = OrderedDict()
        self._busy: set[str] = set()  # clients whose last job still waits for the disk
        self._running: dict[str, QueueTurn] = {}  # by client, on this thread or waiting for a disk
        self.outcomes = Counter[tuple[str, bool]]()  # finished jobs by name and whether they failed
        self._disk = ThreadPoolExecutor(DISK_THREADS, "engine-disk")
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

    def facts(self) -> dict[str, Any]:
        """See `ModelOperations.facts`; empty until the models are prepared."""
        return self._models.facts() if self._models is not None else {}

    def usage(self) -> dict[str, Any]:
        """See `ModelOperations.usage`; empty until the models are prepared."""
        return self._models.usage() if self._models is not None else {}

    def queues(self) -> list[ClientQueue]:
        """The clients with jobs that wait or run. Any thread may call it."""
        with self._changed:
            waiting = {client_id: list(jobs) for client_id, jobs in self._queues.items()}
            running = {client_id: list(_jobs(turn)) for client_id, turn in self._running.items()}
        return [
            ClientQueue(
                client_id,
                Counter(job.name or _INTERNAL for job in waiting.get(client_id, [])),
                Counter(job.name or _INTERNAL for job in running.get(client_id, [])),
                sum(
                    job.request.num_samples
                    for job in running.get(client_id, [])
                    if isinstance(job, SampleJob)
                ),
            )
            for client_id in dict.fromkeys([*running, *waiting])
        ]

    @property
    def is_ready(self) -> bool:
        """Whether the models are prepared, so that a job begins as soon as its turn comes."""
        return self._models is not None

    def run(self) -> None:
        try:
            self._models = models = self._prepare()
        except Exception as error:
            log.critical("the engine could not be prepared: %s", error)
            self._fail_every_job(failure(error))
            return
        while True:
            client_id, turn = self._next()
            started = time.time()
            results = _run_turn(models, turn)
            if isinstance(results, DiskWork):
                self._finish_from_disk(client_id, turn, results, started)
            else:
                self._finish(client_id, turn, results, started)
            del turn  # or the last batch would stay in memory until the next one comes

    def _fail_every_job(self, reason: Result) -> None:
        while True:
            client_id, turn = self._next()
            self._finish(client_id, turn, [reason] * len(_jobs(turn)), time.time())

    def _next(self) -> tuple[str, QueueTurn]:
        """The first job of the next queue, or all sample jobs that it begins with."""
        with self._changed:
            while (client_id := self._ready()) is None:
                self._changed.wait()
            waiting = self._queues[client_id]
            first = waiting.popleft()
            turn = first if isinstance(first, Job) else [first, *_followers(first, waiting)]
            if waiting:
                self._queues.move_to_end(client_id)
            else:
                del self._queues[client_id]
            self._running[client_id] = turn
            return client_id, turn

    def _ready(self) -> str | None:
        return next((client_id for client_id in self._queues if client_id not in self._busy), None)

    def _finish_from_disk(
        self, client_id: str, turn: QueueTurn, work: DiskWork, started: float
    ) -> None:
        with self._changed:
            self._busy.add(client_id)

        def finish() -> None:
            try:
                result = work.run()
            except BaseException as error:  # a job's failure is its client's, never the thread's
                result = failure(error)
            self._finish(client_id, turn, [result], started)
            with self._changed:
                self._busy.discard(client_id)
                self._changed.notify()

        self._disk.submit(finish)

    def _finish(
        self, client_id: str, turn: QueueTurn, results: Sequence[Result], started: float
    ) -> None:
        ended = time.time()
        finished = [(job.future, job.name) for job in _jobs(turn)]
        with self._changed:
            self._running.pop(client_id, None)

        def finish_all() -> None:
            for (future, name), result in zip(finished, results, strict=True):
                future.finish(result)
                failed = isinstance(result, dict) and "error" in result
                self.outcomes[name or _INTERNAL, failed] += 1
                if name is not None:
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


def _run_turn(models: ModelOperations, turn: QueueTurn) -> Sequence[Result] | DiskWork:
    try:
        if isinstance(turn, Job):
            result = turn.run(models)
            return result if isinstance(result, DiskWork) else [result]
        return turn[0].answer(models, [job.request for job in turn])
    except BaseException as error:  # a job's failure is its client's, never the thread's
        if isinstance(turn, Job) or len(turn) == 1:
            return [failure(error)]
    # One request must not spoil those that were answered together with it.
    return [result for job in turn for result in _answer_alone(models, job)]


def _answer_alone(models: ModelOperations, job: SampleJob) -> Sequence[Result]:
    try:
        return job.answer(models, [job.request])
    except BaseException as error:
        return [failure(error)]


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
