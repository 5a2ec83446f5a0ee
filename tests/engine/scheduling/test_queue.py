"""The engine thread's lanes, the order of numbered operations, and the futures' lives."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.engine.errors import Gone, Refused
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.scheduling.queue import (
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


def started(sample: Any = None, prepare: Any = lambda: None) -> tuple[EngineThread, Any]:
    """An engine thread that stands still until the returned event is set."""
    thread = EngineThread(asyncio.get_running_loop(), prepare, sample)
    thread.start()
    gate = threading.Event()
    thread.submit("gate", Job(lambda made: {"waited": gate.wait(5)}, Future()))
    return thread, gate


def test_lanes_take_turns_so_that_a_long_queue_does_not_starve_a_short_one() -> None:
    order: list[str] = []

    async def main() -> None:
        thread, gate = started()
        futures = []
        for lane, count in (("long", 10), ("short", 2)):
            for _ in range(count):
                futures.append(Future())

                def run(made: Any, lane: str = lane) -> dict:
                    order.append(lane)
                    return {}

                thread.submit(lane, Job(run, futures[-1]))
        gate.set()
        for future in futures:
            await future.done.wait()

    asyncio.run(main())
    assert order[:4] == ["long", "short", "long", "short"]


def test_waiting_samples_of_one_lane_are_answered_together_and_a_bad_one_fails_alone() -> None:
    calls: list[int] = []

    def sample(made: Any, lane: str, requests: list[SampleRequest]) -> list[Any]:
        calls.append(len(requests))
        if any(request.seed == 3 for request in requests):
            raise RuntimeError("bad request")
        return [{"seed": request.seed} for request in requests]

    async def main() -> list[Any]:
        thread, gate = started(sample)
        futures = [Future() for _ in range(6)]
        for seed, future in enumerate(futures):
            thread.submit("s", SampleJob(SampleRequest([1], seed=seed), future))
        gate.set()
        for future in futures:
            await future.done.wait()
        return [future.result for future in futures]

    results = asyncio.run(main())
    assert calls == [6, 1, 1, 1, 1, 1, 1]
    assert [result.get("seed") for result in results] == [0, 1, 2, None, 4, 5]
    assert results[3]["category"] == "server" and "bad request" in results[3]["error"]


def test_if_the_engine_cannot_be_prepared_every_job_says_why() -> None:
    def prepare() -> None:
        raise OSError(28, "No space left on device")

    async def main() -> Any:
        thread = EngineThread(asyncio.get_running_loop(), prepare, lambda *_: [])
        thread.start()
        future = Future()
        thread.submit("a", Job(lambda made: {}, future))
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


def open_client(sessions: Sessions) -> str:
    session_id = sessions.create({}, None)
    model_id, _ = sessions.create_model(
        session_id, 0, "tiny", LoraConfig(4), None, None, lambda models, model_id: {}
    )
    return model_id


def test_a_silent_session_is_freed_and_its_waiting_operations_fail(store: Store) -> None:
    models = _Models()

    async def main() -> None:
        thread, gate = started(prepare=lambda: models)
        sessions = Sessions(store, thread)
        model_id = open_client(sessions)
        begun: list[int] = []
        futures = [
            sessions.future(
                sessions.operate(model_id, seq, "step", lambda made: begun.append(1) or {})
            )
            for seq in (1, 3)
        ]
        session = sessions.get(model_id.split(":")[0])
        sessions.sweep_once(session.last_seen + SESSION_SILENCE - 1)
        assert sessions.operations(model_id)
        sessions.sweep_once(session.last_seen + SESSION_SILENCE + 1)
        with pytest.raises(Gone, match="has ended"):
            sessions.operations(model_id)
        last = sessions.run("last", lambda made: {})
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
        kept = list(sessions.futures)
        assert kept == ["a:train:0:2", "a:train:0:3", "a:train:0:4"]
        newest = sessions.futures[kept[-1]]
        sessions.sweep_once(newest.finished + KEEP_RESULTS + 1)
        with pytest.raises(Gone, match="is gone"):
            sessions.future(kept[-1])

    asyncio.run(main())


def test_a_base_model_that_cannot_be_fetched_fails_the_client_that_wanted_it(store: Store) -> None:
    def fetch() -> None:
        raise Refused("no such model.")

    async def main() -> Any:
        sessions = Sessions(store, started()[0])
        _, request_id = sessions.create_model(
            sessions.create({}, None), 0, "a/b", LoraConfig(4), None, fetch, lambda *_: {}
        )
        future = sessions.future(request_id)
        await asyncio.wait_for(future.done.wait(), 5)
        return future.result

    assert asyncio.run(main()) == {"error": "no such model.", "category": "user"}
