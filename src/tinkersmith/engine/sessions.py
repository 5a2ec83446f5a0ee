"""Who is connected: sessions, their training clients and samplers, and the futures they poll.

Lives on the event loop; hands work to the engine thread and never computes.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.queue import EngineThread, Future, Job, OrderedOperations, SampleJob
from tinkersmith.engine.store import Run, Store

log = logging.getLogger("tinkersmith.engine")

SESSION_SILENCE = 30 * 60  # seconds without a heartbeat after which a client counts as dead
KEEP_RESULTS = 10 * 60  # seconds that a delivered result stays for a repeated poll


class Gone(Exception):
    """What is asked for was here and is no more."""


@dataclass(slots=True)
class Session:
    id: str
    last_beat: float
    models: dict[str, OrderedOperations] = field(default_factory=dict)
    samplers: set[str] = field(default_factory=set)


class Sessions:
    def __init__(self, store: Store, thread: EngineThread) -> None:
        self.store = store
        self.thread = thread
        self.sessions: dict[str, Session] = {}
        self.futures: dict[str, Future] = {}

    # ---- sessions

    def create(self, user_metadata: Any) -> str:
        session_id = secrets.token_hex(8)
        self.store.add_session(session_id, user_metadata)
        self.sessions[session_id] = Session(session_id, time.monotonic())
        return session_id

    def get(self, session_id: str) -> Session:
        """Raises: Gone: it has ended, or belonged to an earlier engine process."""
        if session_id not in self.sessions:
            raise Gone(
                f"session {session_id} has ended, or belongs to an engine that was restarted; "
                "create a new ServiceClient."
            )
        return self.sessions[session_id]

    def beat(self, session_id: str) -> None:
        self.get(session_id).last_beat = time.monotonic()

    def finish(self, session_id: str) -> None:
        """Free everything that the session holds; its checkpoints stay."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        for model_id in session.models:
            self.thread.submit(model_id, _free(lambda models, name=model_id: models.free(name)))
        for sampler_id in session.samplers:
            self.thread.submit(
                sampler_id, _free(lambda models, name=sampler_id: models.free_sampler(name))
            )

    async def sweep(self, every: float = 60.0) -> None:
        """End silent sessions and drop old results, for as long as the engine runs."""
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            for session in list(self.sessions.values()):
                if now - session.last_beat > SESSION_SILENCE:
                    log.info("session %s has been silent for 30 minutes: freed", session.id)
                    self.finish(session.id)
            for request_id, future in list(self.futures.items()):
                if future.finished and now - future.finished > KEEP_RESULTS:
                    del self.futures[request_id]

    # ---- training clients

    def create_model(
        self,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraConfig,
        user_metadata: dict[str, Any] | None,
        create: Callable[[Any, str], dict[str, Any]],
    ) -> tuple[str, str]:
        """Start a training client; returns its id and that of its future."""
        session = self.get(session_id)
        model_id = f"{session_id}:train:{model_seq_id}"
        request_id = f"{model_id}:0"
        if model_id not in session.models:
            now = time.time()
            self.store.add_run(Run(model_id, session_id, base_model, lora, user_metadata, now))
            session.models[model_id] = OrderedOperations()
            self._start(model_id, request_id, lambda models: create(models, model_id))
        return model_id, request_id

    def operate(
        self, model_id: str, seq_id: int, run: Callable[[Any], dict[str, Any] | bytes]
    ) -> str:
        """Queue a numbered operation behind the lower numbers; returns its future's id.

        Raises:
            Gone: the training client has ended.
            Refused: there is none of this name, or the number is not one.
        """
        operations = self._operations(model_id)
        if seq_id < 1:
            raise Refused(f"seq_id is {seq_id}; it must be at least 1.")
        request_id = f"{model_id}:{seq_id}"
        if request_id not in self.futures and seq_id >= operations.next_seq:
            future = self.futures[request_id] = Future()
            operations.submit(seq_id, lambda: self.thread.submit(model_id, Job(run, future)))
            self.store.touch_run(model_id)
        return request_id

    def failure_told(self, model_id: str) -> int:
        """The highest number of a failed operation that the client knows of by now."""
        return self._operations(model_id).failure_told

    def delivered(self, request_id: str, future: Future) -> None:
        """Note that a client is being told a result."""
        model_id, _, seq = request_id.rpartition(":")
        session = self.sessions.get(request_id.split(":")[0])
        operations = session.models.get(model_id) if session else None
        if operations and isinstance(future.result, dict) and "error" in future.result:
            operations.failure_told = max(operations.failure_told, int(seq))

    def _operations(self, model_id: str) -> OrderedOperations:
        session_id = model_id.split(":")[0]
        operations = self.get(session_id).models.get(model_id)
        if operations is None:
            raise Refused(f"there is no training client {model_id}.")
        return operations

    # ---- samplers

    def create_sampler(
        self, session_id: str, sampler_seq_id: int, base_model: str, model_path: str | None
    ) -> tuple[str, bool]:
        """Enter a sampling client; returns its id, and whether it is new."""
        session = self.get(session_id)
        sampler_id = f"{session_id}:sample:{sampler_seq_id}"
        if sampler_id in session.samplers:
            return sampler_id, False
        self.store.add_sampler(sampler_id, session_id, base_model, model_path)
        session.samplers.add(sampler_id)
        return sampler_id, True

    def sample(self, sampler_id: str, seq_id: int, request: SampleRequest) -> str:
        """Queue a sample request; returns its future's id."""
        if sampler_id not in self.get(sampler_id.split(":")[0]).samplers:
            raise Refused(f"there is no sampling client {sampler_id}.")
        request_id = f"{sampler_id}:{seq_id}"
        if request_id not in self.futures:
            future = self.futures[request_id] = Future()
            self.thread.submit(sampler_id, SampleJob(request, future))
        return request_id

    # ---- futures

    def run(self, lane: str, run: Callable[[Any], dict[str, Any] | bytes]) -> Future:
        """Queue a job that no client polls for."""
        future = Future()
        self.thread.submit(lane, Job(run, future))
        return future

    def _start(self, lane: str, request_id: str, run: Callable[[Any], dict[str, Any]]) -> None:
        self.futures[request_id] = self.run(lane, run)

    def future(self, request_id: str) -> Future:
        """Raises: Gone: the result was dropped or never existed here."""
        if request_id not in self.futures:
            raise Gone(
                f"the result of {request_id} is gone: it was delivered long ago, or belongs to an "
                "engine that was restarted."
            )
        return self.futures[request_id]


def _free(run: Callable[[Any], None]) -> Job:
    def free(models: Any) -> dict[str, Any]:
        run(models)
        return {}

    return Job(free, Future())
