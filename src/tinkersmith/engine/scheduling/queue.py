"""Who waits for what: futures, the order of one model's operations, and the one engine thread.

Only the engine thread uses models; everything else sends it jobs. Each training client and each
sampling client has a queue of its own. Sampling requests leave their queues as soon as there is
room for them beside those that are being answered from the same weights; those of all weights of a
base model are answered in one batch, where its products allow that. Everything else waits for
its turn, which goes to whoever has had the least time.
"""

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError

from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import Answering, SampleRequest, SampleResult
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.shares import LEAST, Shares
from tinkersmith.engine.scheduling.traces import Span, Traces

DISK_THREADS = 4  # saves that may wait for the disk at once
# Sequences that are taken from the queues at a time for the same weights. A client with more waits
# with the rest, so that those who come later need not wait for all of it.
SEQUENCES_TAKEN = 256
_SAMPLING = "sampling"  # the name of its share; clients have names with a colon
# A second of sampling counts as so many. A training client loses more than its share of the engine:
# its next operation comes only when it has the last one's result. It shall take half of its steps.
SAMPLING_COUNTS = 1.5

Result = dict[str, Any] | bytes | None


@dataclass(frozen=True, slots=True)
class DiskWork:
    """The rest of a job, which needs the disk and no model.

    It runs on a thread of its own, so that no other client waits for a slow disk or a locked
    database. Later jobs of the same client wait for it.
    """

    run: Callable[[], Result]


Work = Callable[[ModelOperations], Result | DiskWork]


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
    """A sampling request. It joins those that are being answered from the same weights."""

    request: SampleRequest
    answer: Callable[[SampleResult], Result]  # the result as its client gets it
    future: Future
    name: str = "sample"


_INTERNAL = "internal"  # the name of jobs that no client requested


@dataclass(frozen=True, slots=True)
class ClientQueue:
    """The jobs of one client by name, and the sequences that are sampled for it now."""

    client_id: str
    waiting: Counter[str]
    running: Counter[str]
    sequences: int


@dataclass(frozen=True, slots=True)
class _Sampling:
    """A request that is being answered."""

    client_id: str
    weights_id: str
    job: SampleJob
    started: float


class EngineThread(threading.Thread):
    """Runs jobs one at a time. `prepare` loads, on this thread, what every job uses.

    Between two steps of sampling it may run other jobs, and then go on with the step after.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        prepare: Callable[[], ModelOperations],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._loop = loop
        self._prepare = prepare
        self._clock = clock
        self._models: ModelOperations | None = None  # until `_prepare` has returned
        self.traces = Traces()
        self._queues: OrderedDict[str, deque[Job | SampleJob]] = OrderedDict()
        self._busy: set[str] = set()  # clients whose last job still waits for the disk
        self._running: dict[str, Job] = {}  # by client, on this thread or waiting for a disk
        self.outcomes = Counter[tuple[str, bool]]()  # finished jobs by name and whether they failed
        self._submitted = 0  # jobs; grows
        # What is being answered, by its batch.
        self._sampling: dict[str, dict[Answering, _Sampling]] = {}
        self._shares = Shares()  # of training clients, and of all sampling together
        self._sampling_shares = Shares()  # of different batches
        self._disk = ThreadPoolExecutor(DISK_THREADS, "engine-disk")
        self._changed = threading.Condition()

    def submit(self, client_id: str, job: Job | SampleJob) -> None:
        """Append a job to the queue of a training or sampling client."""
        with self._changed:
            self._queues.setdefault(client_id, deque()).append(job)
            self._submitted += 1
            self._changed.notify()

    def drop(self, client_id: str) -> list[Job | SampleJob]:
        """Forget the client's waiting jobs, and break off what is sampled for it; gives them all.

        Any other job that runs already runs to its end.
        """
        with self._changed:
            dropped = list(self._queues.pop(client_id, ()))
            for answering, sampling in self._all_sampling():
                if sampling.client_id == client_id and not answering.cancelled:
                    answering.cancelled = True
                    dropped.append(sampling.job)
        return dropped

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
            running: dict[str, list[Job | SampleJob]] = {}
            for client_id, job in self._running.items():
                running.setdefault(client_id, []).append(job)
            for _, sampling in self._all_sampling():
                running.setdefault(sampling.client_id, []).append(sampling.job)
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
            self._run_turn(models)

    def _run_turn(self, models: ModelOperations) -> None:
        seen = self._submitted  # a job that comes from now on is not slept through
        begun = self._clock()
        self._admit(models)
        admitting = self._clock() - begun  # long, if a base model is loaded for it
        ready = [batch_id for batch_id in self._sampling if models.can_sample(batch_id)]
        with self._changed:
            wanting = [client_id for client_id in self._queues if self._has_job(client_id)]
            if not wanting and not ready:
                if seen == self._submitted:
                    self._changed.wait()
                return
            # All sampling together counts as one client.
            chosen = self._shares.next([*wanting, _SAMPLING] if ready else wanting)
            job = self._take(chosen) if chosen != _SAMPLING else None
            if isinstance(job, Job):
                self._running[chosen] = job
        started = self._clock()
        if isinstance(job, Job):
            self._run_job(models, chosen, job)
        else:
            self._sample(models, self._sampling_shares.next(ready))
        seconds = self._clock() - started
        self._shares.charge(chosen, seconds * SAMPLING_COUNTS if job is None else seconds)
        if admitting > LEAST:
            self._shares.charge(_SAMPLING, admitting * SAMPLING_COUNTS)

    def _fail_every_job(self, reason: Result) -> None:
        while True:
            with self._changed:
                while not self._queues:
                    self._changed.wait()
                client_id = next(iter(self._queues))
                job = self._take(client_id)
            self._finish(client_id, job, reason, time.time())

    def _has_job(self, client_id: str) -> bool:
        return client_id not in self._busy and isinstance(self._queues[client_id][0], Job)

    def _take(self, client_id: str) -> Job | SampleJob:
        """The first job of a queue, which then stands behind the others."""
        waiting = self._queues[client_id]
        job = waiting.popleft()
        if waiting:
            self._queues.move_to_end(client_id)
        else:
            del self._queues[client_id]
        return job

    # ---- jobs that run alone

    def _run_job(self, models: ModelOperations, client_id: str, job: Job) -> None:
        started = time.time()
        try:
            result = job.run(models)
        except BaseException as error:  # a job's failure is its client's, never the thread's
            result = failure(error)
        if isinstance(result, DiskWork):
            self._finish_from_disk(client_id, job, result, started)
        else:
            self._finish(client_id, job, result, started)

    def _finish_from_disk(self, client_id: str, job: Job, work: DiskWork, started: float) -> None:
        with self._changed:
            self._busy.add(client_id)

        def finish() -> None:
            try:
                result = work.run()
            except BaseException as error:  # a job's failure is its client's, never the thread's
                result = failure(error)
            self._finish(client_id, job, result, started)
            with self._changed:
                self._busy.discard(client_id)
                self._submitted += 1  # the next job of this client, if there is one
                self._changed.notify()

        self._disk.submit(finish)

    # ---- sampling

    def _admit(self, models: ModelOperations) -> None:
        """Let waiting requests join those that are being answered, one of each client at a time."""
        full: set[str] = set()  # clients whose next request must wait
        while True:
            with self._changed:
                heads = [
                    (client_id, job)
                    for client_id, queue in self._queues.items()
                    if client_id not in self._busy and client_id not in full
                    for job in (queue[0],)
                    if isinstance(job, SampleJob)
                ]
            if not heads:
                return
            for client_id, job in heads:
                if not self._admit_one(models, client_id, job):
                    full.add(client_id)

    def _admit_one(self, models: ModelOperations, client_id: str, job: SampleJob) -> bool:
        """Whether there was room for the request."""
        started = time.time()
        try:
            weights_id = models.weights_of(client_id)
            batch_id = models.batch_of(weights_id)
            if not self._has_room(batch_id, weights_id, job.request):
                return False
            if not self._take_this(client_id, job):
                return True  # its client is gone
            answering = models.join(weights_id, job.request, client_id)
        except BaseException as error:  # a job's failure is its client's, never the thread's
            self._take_this(client_id, job)
            self._finish(client_id, job, failure(error), started)
            return True
        with self._changed:
            group = self._sampling.setdefault(batch_id, {})
            group[answering] = _Sampling(client_id, weights_id, job, started)
        return True

    def _has_room(self, batch_id: str, weights_id: str, request: SampleRequest) -> bool:
        taken = sum(
            answering.request.num_samples
            for answering, sampling in self._sampling.get(batch_id, {}).items()
            if sampling.weights_id == weights_id
        )
        return not taken or taken + request.num_samples <= SEQUENCES_TAKEN

    def _take_this(self, client_id: str, job: SampleJob) -> bool:
        """Take a job from the front of its queue, unless it has been dropped."""
        with self._changed:
            queue = self._queues.get(client_id)
            if not queue or queue[0] is not job:
                return False
            self._take(client_id)
            return True

    def _sample(self, models: ModelOperations, batch_id: str) -> None:
        started = self._clock()
        try:
            finished = models.sample_step(batch_id)
        except BaseException as error:  # none of them would ever be finished
            finished = list(self._sampling[batch_id])
            for answering in finished:
                answering.error = error
        self._sampling_shares.charge(batch_id, self._clock() - started)
        for answering in finished:
            with self._changed:
                group = self._sampling.get(batch_id, {})
                sampling = group.pop(answering, None)
                if not group:
                    self._sampling.pop(batch_id, None)
            if sampling is not None:  # else it has failed before
                result = _result_of(answering, sampling)
                self._finish(sampling.client_id, sampling.job, result, sampling.started)

    def _all_sampling(self) -> list[tuple[Answering, _Sampling]]:
        return [pair for group in self._sampling.values() for pair in group.items()]

    def _finish(self, client_id: str, job: Job | SampleJob, result: Result, started: float) -> None:
        ended, future, name = time.time(), job.future, job.name
        with self._changed:
            if self._running.get(client_id) is job:
                del self._running[client_id]

        def finish() -> None:
            future.finish(result)
            failed = isinstance(result, dict) and "error" in result
            self.outcomes[name or _INTERNAL, failed] += 1
            if name is not None:
                self.traces.add(Span(client_id, name, future.received, started, ended, failed))

        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(finish)


def _result_of(answering: Answering, sampling: _Sampling) -> Result:
    if answering.error is not None:
        return failure(answering.error)
    try:
        return sampling.job.answer(answering.result)
    except BaseException as error:  # a job's failure is its client's, never the thread's
        return failure(error)


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
