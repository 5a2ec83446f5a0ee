"""Who is connected: sessions, their training and sampling clients, and the futures they poll.

Runs on the event loop, sends work to the engine thread, and never computes.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.engine.errors import Gone, NotFound, Refused, StorageFailure
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import LoraConfig, SampleRequest, SampleResult
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.queue import (
    EngineThread,
    Future,
    Job,
    OrderedOperations,
    Result,
    SampleJob,
    Work,
    failure,
)
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store

_STANDSTILL = 2.0  # seconds by which the event loop may be late without that it stood still
QUEUE_SILENCE = 60  # seconds without a sign of life after which a client's waiting work is dropped
SESSION_SILENCE = 30 * 60  # seconds without a sign of life after which a client counts as dead
KEEP_RESULTS = 10 * 60  # seconds that a result stays for a repeated poll
KEEP_DELIVERED = 256 * 2**20  # bytes of delivered results that stay meanwhile
TOUCH_EVERY = 10.0  # seconds between two updates of a run's last request in the store


@dataclass(slots=True)
class Session:
    """One ServiceClient of the SDK, and the clients that it created."""

    id: str
    last_seen: float
    models: dict[str, OrderedOperations] = field(default_factory=dict[str, OrderedOperations])
    samplers: dict[str, Future] = field(default_factory=dict[str, Future])  # done when loaded


class Sessions:
    """All sessions, with their futures. Used on the event loop only.

    Between a request's arrival and its registration here may lie an `await` of the store, in which
    a repetition of the request can overtake it: rows are written so that twice is as once, and
    whether a client is new is decided after the await, without another one.
    """

    def __init__(self, store: Store, thread: EngineThread) -> None:
        self.store = store
        self.thread = thread
        self.sessions: dict[str, Session] = {}
        self.futures: dict[str, Future] = {}
        self._delivered: OrderedDict[str, int] = OrderedDict()  # request id -> bytes
        self._delivered_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._used_runs: set[str] = set()  # whose last request is to be stored
        self._storing_runs = False

    # ---- sessions

    async def create(self, user_metadata: dict[str, str], display_name: str | None) -> str:
        session_id = secrets.token_hex(8)
        await self.store.write(
            lambda: self.store.add_session(session_id, user_metadata, display_name)
        )
        self.sessions[session_id] = Session(session_id, time.monotonic())
        return session_id

    def get(self, session_id: str) -> Session:
        """Return the session, and note that its client is alive.

        Raises:
            Gone: the session has ended, or belonged to an earlier engine process.
        """
        session = self.sessions.get(session_id)
        if session is None:
            raise Gone(
                f"session {session_id} has ended, or belongs to an engine that was restarted; "
                "create a new ServiceClient."
            )
        session.last_seen = time.monotonic()
        return session

    def finish(self, session_id: str) -> None:
        """Drop the session's waiting work and free its clients. Its checkpoints stay."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        ended = failure(Refused(f"session {session_id} has ended."))
        for client_id in (*session.models, *session.samplers):
            for job in self.thread.drop(client_id):
                if job.name is None:  # no future of `futures`, but somebody may wait for it
                    job.future.finish(ended)
        for model_id in session.models:
            self.run(model_id, lambda models, name=model_id: models.free(name))
        for sampler_id in session.samplers:
            self.run(sampler_id, lambda models, name=sampler_id: models.free_sampler(name))
        for request_id, future in list(self.futures.items()):
            if not request_id.startswith(f"{session_id}:"):
                continue
            if request_id in self._delivered:
                self._forget(request_id)  # its client has it, and has said that it is done
            else:
                future.finish(ended)
        for future in session.samplers.values():
            future.finish(ended)

    async def sweep(self, every: float = 60.0) -> None:
        """End silent sessions and drop old results, for as long as the engine runs."""
        while True:
            for _ in range(6):  # so that a minute of silence is not found to be two
                begun = time.monotonic()
                await asyncio.sleep(every / 6)
                self.forgive(time.monotonic() - begun - every / 6)
                self.sweep_once(time.monotonic())
            try:
                await self.store.write(self.store.delete_expired)
            except Exception as error:  # the next turn tries again
                log.warning("could not delete expired checkpoints: %s", error)

    def forgive(self, standstill: float) -> None:
        """Count seconds in which this process itself stood still as nobody's silence.

        It was stopped with Ctrl-Z, mostly together with its client, or the machine had no time.
        """
        if standstill > _STANDSTILL:
            now = time.monotonic()
            for session in self.sessions.values():
                session.last_seen = min(session.last_seen + standstill, now)

    def sweep_once(self, now: float) -> None:
        for session in list(self.sessions.values()):
            if now - session.last_seen > QUEUE_SILENCE:
                self._drop_work(session)
            if now - session.last_seen > SESSION_SILENCE:
                log.info("session %s has been silent for 30 minutes: freed", session.id)
                self.finish(session.id)
        for request_id, future in list(self.futures.items()):
            if future.finished and now - future.finished > KEEP_RESULTS:
                self._forget(request_id)

    def _drop_work(self, session: Session) -> None:
        """Drop what a silent session has in the queues: nobody would take the results.

        Its training clients keep their weights. A step of which a part is dropped is dropped whole.
        """
        reason = failure(
            Refused(
                f"the request was dropped: its client gave no sign of life for {QUEUE_SILENCE} s. "
                "Send it again."
            )
        )
        count = 0
        for client_id in (*session.models, *session.samplers):
            dropped = self.thread.drop(client_id)
            for job in dropped:
                job.future.finish(reason)
            if dropped and client_id in session.models:
                self.run(client_id, lambda models, name=client_id: models.drop_step(name))
            count += sum(job.name is not None for job in dropped)
        if count:
            log.info(
                "session %s has been silent for %d s: %d of its requests were dropped",
                *(session.id, QUEUE_SILENCE, count),
            )

    # ---- training clients

    async def create_model(
        self,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraConfig,
        optimizer: str,
        user_metadata: dict[str, str] | None,
        fetch: Callable[[], object] | None,
        create: Callable[[ModelOperations, str], Result],
    ) -> tuple[str, str]:
        """Start a training client, and return its id and the id of its future.

        `fetch` downloads the base model in a thread of its own; None: it is on this machine.
        """
        session = self.get(session_id)
        model_id = f"{session_id}:train:{model_seq_id}"
        request_id = f"{model_id}:0"
        if model_id not in session.models:
            run = StoredRun(
                model_id, session_id, base_model, lora, user_metadata, time.time(), optimizer
            )
            await self.store.write(lambda: self.store.add_run(run))
            session = self.get(session_id)  # it may have ended meanwhile
        if model_id not in session.models:
            session.models[model_id] = OrderedOperations(touched=time.monotonic())
            future = self.futures[request_id] = Future()
            job = Job(lambda models: create(models, model_id), future, "create_model")
            self._submit_after(fetch, model_id, job)
        return model_id, request_id

    def operate(self, model_id: str, seq_id: int, name: str, run: Work) -> str:
        """Queue a numbered operation behind the lower numbers, and return its future's id.

        `name` identifies the operation in the session's trace.

        Raises:
            Gone: the session has ended.
            Refused: there is no such training client, or seq_id is not positive.
        """
        operations = self.operations(model_id)
        if seq_id < 1:
            raise Refused(f"seq_id is {seq_id}; it must be at least 1.")
        request_id = f"{model_id}:{seq_id}"
        if request_id not in self.futures and seq_id >= operations.next_seq:
            future = self.futures[request_id] = Future()
            job = Job(run, future, name)
            operations.submit(seq_id, lambda: self.thread.submit(model_id, job))
            self._touch(model_id, operations)
        return request_id

    def operations(self, model_id: str) -> OrderedOperations:
        """The numbered operations of a training client.

        Raises:
            Gone: the session has ended.
            NotFound: there is no such training client.
        """
        session_id = model_id.partition(":")[0]
        operations = self.get(session_id).models.get(model_id)
        if operations is None:
            raise NotFound(f"there is no training client {model_id}.")
        return operations

    def _touch(self, model_id: str, operations: OrderedOperations) -> None:
        now = time.monotonic()
        if now - operations.touched < TOUCH_EVERY:
            return
        operations.touched = now
        self._used_runs.add(model_id)
        if not self._storing_runs:
            self._storing_runs = True
            self._in_background(self._store_used_runs())

    async def _store_used_runs(self) -> None:
        while self._used_runs:
            used, self._used_runs = self._used_runs, set()
            try:
                await self.store.write(lambda runs=used: self.store.touch_runs(runs))
            except StorageFailure as error:  # only listings show it: no operation fails for it
                log.warning("could not store when runs were last used: %s", error)
        self._storing_runs = False

    # ---- sampling clients

    async def create_sampler(
        self, session_id: str, sampler_seq_id: int, base_model: str, model_path: str | None
    ) -> tuple[str, Future, bool]:
        """Register a sampling client; returns its id, the future of its load, and if it is new."""
        session = self.get(session_id)
        sampler_id = f"{session_id}:sample:{sampler_seq_id}"
        if sampler_id not in session.samplers:
            await self.store.write(
                lambda: self.store.add_sampler(sampler_id, session_id, base_model, model_path)
            )
            session = self.get(session_id)  # it may have ended meanwhile
        new = sampler_id not in session.samplers
        if new:
            session.samplers[sampler_id] = Future()
        return sampler_id, session.samplers[sampler_id], new

    def load_sampler(
        self, sampler_id: str, loaded: Future, fetch: Callable[[], object] | None, run: Work
    ) -> None:
        """Queue the load of a new sampling client; `fetch` is as in `create_model`."""
        self._submit_after(fetch, sampler_id, Job(run, loaded, "create_sampling_session"))

    def sample(
        self,
        sampler_id: str,
        seq_id: int,
        request: SampleRequest,
        answer: Callable[[SampleResult], Result],
    ) -> str:
        """Queue a sampling request, and return its future's id; `answer` is its result's form."""
        if sampler_id not in self.get(sampler_id.partition(":")[0]).samplers:
            raise NotFound(f"there is no sampling client {sampler_id}.")
        request_id = f"{sampler_id}:{seq_id}"
        if request_id not in self.futures:
            future = self.futures[request_id] = Future()
            self.thread.submit(sampler_id, SampleJob(request, answer, future))
        return request_id

    # ---- futures

    def run(self, client_id: str, run: Work) -> Future:
        """Queue a job that no client polls for."""
        future = Future()
        self.thread.submit(client_id, Job(run, future))
        return future

    def future(self, request_id: str) -> Future:
        """Raises: Gone: the result was dropped or never existed here."""
        if request_id not in self.futures:
            raise Gone(
                f"the result of {request_id} is gone: it was delivered long ago or before its "
                "session ended, or belongs to an engine that was restarted."
            )
        session = self.sessions.get(request_id.partition(":")[0])
        if session is not None:  # a client that polls is alive, even if its heartbeats are late
            session.last_seen = time.monotonic()
        return self.futures[request_id]

    def delivered(self, request_id: str, future: Future) -> None:
        """Note that a client receives a result, and drop the oldest ones beyond KEEP_DELIVERED."""
        self._note_failure(request_id, future)
        if request_id not in self.futures or request_id in self._delivered:
            return
        size = len(future.result) if isinstance(future.result, bytes) else 1024
        self._delivered[request_id] = size
        self._delivered_bytes += size
        while self._delivered_bytes > KEEP_DELIVERED and len(self._delivered) > 1:
            self._forget(next(iter(self._delivered)))

    def _note_failure(self, request_id: str, future: Future) -> None:
        model_id, _, seq = request_id.rpartition(":")
        session = self.sessions.get(request_id.partition(":")[0])
        operations = session.models.get(model_id) if session else None
        if operations and isinstance(future.result, dict) and "error" in future.result:
            operations.failure_reported = max(operations.failure_reported, int(seq))

    def _forget(self, request_id: str) -> None:
        self.futures.pop(request_id, None)
        self._delivered_bytes -= self._delivered.pop(request_id, 0)

    def _submit_after(self, fetch: Callable[[], object] | None, client_id: str, job: Job) -> None:
        """Queue `job` when `fetch`, if any, has run in its own thread, which may take minutes."""
        if fetch is None:
            self.thread.submit(client_id, job)
            return

        async def fetch_and_submit() -> None:
            try:
                await asyncio.to_thread(fetch)
            except Exception as error:
                job.future.finish(failure(error))
            else:
                if not job.future.finished:  # else its session has ended meanwhile
                    self.thread.submit(client_id, job)

        self._in_background(fetch_and_submit())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
