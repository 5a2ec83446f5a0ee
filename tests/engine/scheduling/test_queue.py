"""The per-client queues, the order of numbered operations, and the lives of futures."""

import asyncio
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.engine.errors import Gone, Refused
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.scheduling.queue import (
    SEQUENCES_PER_TURN,
    EngineThread,
    Future,
    Job,
    OrderedOperations,
    SampleJob,
)
from tinkersmith.engine.scheduling.sessions import (
    KEEP_DELIVERED,
    KEEP_RESULTS,
    SESSION_SILENCE,
    Sessions,
)
from tinkersmith.engine.storage.store import Store


def test_numbered_operations_begin_in_order_whatever_order_they_come_in() -> None:
    seed = random.randrange(10**6)
    numbers = list(range(1, 40)) * 2
    random.Random(seed).shuffle(numbers)
    operations, begun = OrderedOperations(), []
    for number in numbers:
        operations.submit(number, lambda number=number: begun.append(number))
    assert begun == list(range(1, 40)), f"seed {seed}"


def started(prepare: Any = lambda: None) -> tuple[EngineThread, threading.Event]:
    """An engine thread that runs no job until the returned event is set."""
    thread = EngineThread(asyncio.get_running_loop(), prepare)
    thread.start()
    gate = threading.Event()
    thread.submit("gate", Job(lambda models: {"waited": gate.wait(5)}, Future()))
    return thread, gate


def test_queues_take_turns_so_that_a_long_one_does_not_starve_a_short_one() -> None:
    order: list[str] = []

    async def main() -> None:
        thread, gate = started()
        futures = []
        for client_id, count in (("long", 10), ("short", 2)):
            for _ in range(count):
                futures.append(Future())

                def run(models: Any, client_id: str = client_id) -> dict:
                    order.append(client_id)
                    return {}

                thread.submit(client_id, Job(run, futures[-1]))
        gate.set()
        for future in futures:
            await future.done.wait()

    asyncio.run(main())
    assert order[:4] == ["long", "short", "long", "short"]


def test_waiting_samples_of_one_client_are_answered_together_and_a_bad_one_fails_alone() -> None:
    calls: list[int] = []

    def answer(models: Any, requests: Sequence[SampleRequest]) -> list[Any]:
        calls.append(len(requests))
        if any(request.seed == 3 for request in requests):
            raise RuntimeError("bad request")
        return [{"seed": request.seed} for request in requests]

    async def main() -> list[Any]:
        thread, gate = started()
        futures = [Future() for _ in range(6)]
        for seed, future in enumerate(futures):
            thread.submit("s", SampleJob(SampleRequest([1], seed=seed), answer, future))
        gate.set()
        for future in futures:
            await future.done.wait()
        return [future.result for future in futures]

    results = asyncio.run(main())
    assert calls == [6, 1, 1, 1, 1, 1, 1]
    assert [result.get("seed") for result in results] == [0, 1, 2, None, 4, 5]
    assert results[3]["category"] == "server" and "bad request" in results[3]["error"]


def test_a_turn_answers_at_most_so_many_sequences_and_stops_at_another_kind_of_job() -> None:
    calls: list[int] = []

    def answer(models: Any, requests: Sequence[SampleRequest]) -> list[Any]:
        calls.append(sum(request.num_samples for request in requests))
        return [{} for _ in requests]

    async def main() -> None:
        thread, gate = started()
        half = SampleRequest([1], num_samples=SEQUENCES_PER_TURN // 2)
        jobs: list[Job | SampleJob] = [SampleJob(half, answer, Future()) for _ in range(4)]
        jobs.insert(3, Job(lambda models: {"job": calls.append(-1)}, Future()))
        for job in jobs:
            thread.submit("s", job)
        gate.set()
        for job in jobs:
            await job.future.done.wait()

    asyncio.run(main())
    half = SEQUENCES_PER_TURN // 2
    assert calls == [2 * half, half, -1, half]


def test_if_the_engine_cannot_be_prepared_every_job_says_why() -> None:
    def prepare() -> Any:
        raise OSError(28, "No space left on device")

    async def main() -> Any:
        thread = EngineThread(asyncio.get_running_loop(), prepare)
        thread.start()
        future = Future()
        thread.submit("a", Job(lambda models: {}, future))
        await asyncio.wait_for(future.done.wait(), 5)
        return future.result

    assert "No space left on device" in asyncio.run(main())["error"]


class _Models:
    def __init__(self) -> None:
        self.freed: list[str] = []

    def free(self, name: str) -> None:
        self.freed.append(name)

    free_sampler = free


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def open_client(sessions: Sessions) -> str:
    session_id = await sessions.create({}, None)
    model_id, _ = await sessions.create_model(
        session_id, 0, "tiny", LoraConfig(4), None, None, lambda models, model_id: {}
    )
    return model_id


def test_a_silent_session_is_freed_and_its_waiting_operations_fail(store: Store) -> None:
    models = _Models()

    async def main() -> None:
        thread, gate = started(prepare=lambda: models)
        sessions = Sessions(store, thread)
        model_id = await open_client(sessions)
        begun: list[int] = []
        futures = [
            sessions.future(
                sessions.operate(model_id, seq, "step", lambda models: begun.append(1) or {})
            )
            for seq in (1, 3)
        ]
        session = sessions.get(model_id.split(":")[0])
        sessions.sweep_once(session.last_seen + SESSION_SILENCE - 1)
        assert sessions.operations(model_id)
        sessions.sweep_once(session.last_seen + SESSION_SILENCE + 1)
        with pytest.raises(Gone, match="has ended"):
            sessions.operations(model_id)
        last = sessions.run("last", lambda models: {})
        gate.set()
        await last.done.wait()
        assert begun == []
        assert all("has ended" in str(future.result) for future in futures)
        assert models.freed == [model_id]

    asyncio.run(main())


def test_results_are_kept_for_a_second_poll_but_not_without_bound(store: Store) -> None:
    async def main() -> None:
        sessions = Sessions(store, started()[0])
        large = KEEP_DELIVERED // 3
        for number in range(5):
            future = sessions.futures[f"a:train:0:{number}"] = Future()
            future.finish(bytes(large))
            sessions.delivered(f"a:train:0:{number}", future)
            sessions.delivered(f"a:train:0:{number}", future)
        remaining = list(sessions.futures)
        assert remaining == ["a:train:0:2", "a:train:0:3", "a:train:0:4"]
        newest = sessions.futures[remaining[-1]]
        sessions.sweep_once(newest.finished + KEEP_RESULTS + 1)
        with pytest.raises(Gone, match="is gone"):
            sessions.future(remaining[-1])

    asyncio.run(main())


def test_a_base_model_that_cannot_be_fetched_fails_the_client_that_wanted_it(store: Store) -> None:
    def fetch() -> None:
        raise Refused("no such model.")

    async def main() -> Any:
        sessions = Sessions(store, started()[0])
        _, request_id = await sessions.create_model(
            await sessions.create({}, None), 0, "a/b", LoraConfig(4), None, fetch, lambda *_: {}
        )
        future = sessions.future(request_id)
        await asyncio.wait_for(future.done.wait(), 5)
        return future.result

    assert asyncio.run(main()) == {"error": "no such model.", "category": "user"}


def test_the_queues_say_what_waits_and_what_runs() -> None:
    async def main() -> None:
        thread, gate = started()
        while not (thread.queues() and thread.queues()[0].running):
            await asyncio.sleep(0.01)
        last = Future()
        thread.submit("a", Job(lambda models: None, Future(), "forward"))
        thread.submit("a", Job(lambda models: None, last, "optim_step"))
        queues = {queue.client_id: queue for queue in thread.queues()}
        assert queues["gate"].running == {"internal": 1}
        assert queues["gate"].waiting == {}
        assert queues["a"].waiting == {"forward": 1, "optim_step": 1}
        assert queues["a"].running == {}
        gate.set()
        await last.done.wait()
        assert thread.queues() == []
        assert thread.outcomes == {
            ("internal", False): 1,
            ("forward", False): 1,
            ("optim_step", False): 1,
        }

    asyncio.run(main())
