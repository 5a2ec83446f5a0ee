"""Who waits for what: futures, the order of one model's operations, and the one engine thread.

Only the engine thread touches models; everything else sends it jobs. Jobs stand in lanes (one a
training client, one a sampler); lanes take turns, so no client waits for another's whole queue.
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
from tinkersmith.engine.scheduling.traces import Span, Traces

SAMPLES_AT_A_TIME = 512  # sequences that one turn of a sampler's lane takes together

Result = dict[str, Any] | bytes | None


@dataclass(slots=True)
class Future:
    """A result that a client polls for. Made, finished and awaited on the event loop only."""

    result: Result = None
    received: float = field(default_factory=time.time)
    finished: float = 0.0  # monotonic seconds; 0 while pending
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self, result: Result) -> None:
        """Set the result. The first one counts: a client may have been told it."""
        if not self.finished:
            self.result = result
            self.finished = time.monotonic()
            self.done.set()


def failure(error: BaseException) -> dict[str, str]:
    """A failed future's body; what the user can mend has category "user"."""
    if isinstance(error, Refused):
        return {"error": str(error), "category": "user"}
    if isinstance(error, OSError | SafetensorError | sqlite3.OperationalError):
        reason = getattr(error, "strerror", None) or str(error)
        log.error("could not use the disk: %s", error)
        return {
            "error": f"the engine could not use its disk ({reason}); nothing was changed. "
            "Free some space or mend its permissions, then try again.",
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
    run: Callable[[Any], Result]  # is given what the engine thread made at start
    future: Future
    name: str | None = None  # in the session's trace; None: not a request of its client


@dataclass(frozen=True, slots=True)
class SampleJob:
    request: Any
    future: Future
    name: str = "sample"


class EngineThread(threading.Thread):
    """Runs jobs one at a time. `prepare` makes, on this thread, what every job is given;
    `sample(made, lane, requests)` answers waiting sample jobs of one lane together."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        prepare: Callable[[], Any],
        sample: Callable[[Any, str, list[Any]], list[Result]],
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._loop = loop
        self._prepare = prepare
        self._sample = sample
        self.traces = Traces()
        self._lanes: OrderedDict[str, deque[Job | SampleJob]] = OrderedDict()
        self._changed = threading.Condition()

    def submit(self, lane: str, job: Job | SampleJob) -> None:
        with self._changed:
            self._lanes.setdefault(lane, deque()).append(job)
            self._changed.notify()

    def drop(self, lane: str) -> None:
        """Forget the lane's waiting jobs; the one that runs goes on to its end."""
        with self._changed:
            self._lanes.pop(lane, None)

    def run(self) -> None:
        try:
            made = self._prepare()
        except Exception as error:
            log.critical("the engine could not be prepared: %s", error)
            self._fail_for_ever(failure(error))
            return
        while True:
            lane, jobs = self._next()
            started = time.time()
            self._finish(lane, jobs, self._run_jobs(made, lane, jobs), started)
            del jobs  # or the last batch would live until the next one comes

    def _fail_for_ever(self, reason: Result) -> None:
        while True:
            lane, jobs = self._next()
            self._finish(lane, jobs, [reason] * len(jobs), time.time())

    def _next(self) -> tuple[str, list[Any]]:
        """The next lane's first job, or its leading sample jobs together."""
        with self._changed:
            while not self._lanes:
                self._changed.wait()
            lane, waiting = next(iter(self._lanes.items()))
            jobs: list[Any] = [waiting.popleft()]
            sequences = 0
            while waiting and isinstance(jobs[0], SampleJob) and isinstance(waiting[0], SampleJob):
                sequences += jobs[-1].request.num_samples
                if sequences >= SAMPLES_AT_A_TIME:
                    break
                jobs.append(waiting.popleft())
            if waiting:
                self._lanes.move_to_end(lane)
            else:
                del self._lanes[lane]
            return lane, jobs

    def _run_jobs(self, made: Any, lane: str, jobs: Sequence[Any]) -> list[Result]:
        try:
            if isinstance(jobs[0], Job):
                return [jobs[0].run(made)]
            return self._sample(made, lane, [job.request for job in jobs])
        except BaseException as error:  # a job's failure is its client's, never the thread's
            if len(jobs) == 1:
                return [failure(error)]
        # One request must not spoil the others that happened to stand beside it.
        return [result for job in jobs for result in self._run_jobs(made, lane, [job])]

    def _finish(
        self, lane: str, jobs: Sequence[Any], results: list[Result], started: float
    ) -> None:
        ended = time.time()
        finished = [(job.future, job.name) for job in jobs]

        def finish_all() -> None:
            for (future, name), result in zip(finished, results, strict=True):
                future.finish(result)
                if name is not None:
                    failed = isinstance(result, dict) and "error" in result
                    self.traces.add(Span(lane, name, future.received, started, ended, failed))

        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(finish_all)


@dataclass(slots=True)
class OrderedOperations:
    """One training client's numbered operations: begun strictly in order, each number once."""

    next_seq: int = 1
    failure_told: int = 0  # the highest number whose failure the client has been told
    touched: float = 0.0  # monotonic seconds: when the run's last request was noted
    early: dict[int, Callable[[], None]] = field(default_factory=dict)

    def submit(self, seq: int, begin: Callable[[], None]) -> None:
        """Call `begin` as soon as all lower numbers have begun. A repeated number is ignored."""
        if seq < self.next_seq or seq in self.early:
            return
        self.early[seq] = begin
        while (ready := self.early.pop(self.next_seq, None)) is not None:
            self.next_seq += 1
            ready()
