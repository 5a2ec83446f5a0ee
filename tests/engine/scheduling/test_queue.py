"""The per-client queues, the order of numbered operations, and the lives of futures."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.processes import PATIENCE
from tests.support.sampling import CountingModels
from tinkersmith.engine.errors import Gone, Refused
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.scheduling.queue import (
    SEQUENCES_TAKEN,
    EngineThread,
    Future,
    Job,
    OrderedOperations,
    SampleJob,
)
from tinkersmith.engine.scheduling.sessions import (
    KEEP_DELIVERED,
    KEEP_RESULTS,
    QUEUE_SILENCE,
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


def preparing(models: Any) -> Any:
    return lambda: models


class Clock:
    """Seconds that pass only when work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def started(prepare: Any = CountingModels) -> tuple[EngineThread, threading.Event]:
    """An engine thread that runs no job until the returned event is set.

    All turns cost the same: the time that the machine takes for them would decide their order.
    """
    thread = EngineThread(asyncio.get_running_loop(), prepare, Clock())
    thread.start()
    gate = threading.Event()
    thread.submit("gate", Job(lambda models: {"waited": gate.wait(PATIENCE)}, Future()))
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


# ---- sampling


def sample_job(future: Future, seed: int = 0, tokens: int = 1, samples: int = 1) -> SampleJob:
    """A request for so many steps, whose result is its seed."""
    request = SampleRequest([1], samples, tokens, seed=seed)
    return SampleJob(request, lambda result: {"seed": seed}, future)


async def results_of(futures: list[Future]) -> list[Any]:
    for future in futures:
        await asyncio.wait_for(future.done.wait(), PATIENCE)
    return [future.result for future in futures]


def test_requests_of_all_clients_of_the_same_weights_are_answered_together() -> None:
    together: list[tuple[str, list[int]]] = []
    models = CountingModels(
        weights=lambda sampler_id: "tuned" if sampler_id.startswith("tuned") else "base",
        step=lambda weights_id, requests: together.append(
            (weights_id, sorted(request.seed or 0 for request in requests))
        ),
    )

    async def main() -> list[Any]:
        thread, gate = started(lambda: models)
        futures = [Future() for _ in range(6)]
        clients = ["a", "b", "tuned:1", "a", "tuned:2", "c"]
        for number, (client_id, future) in enumerate(zip(clients, futures, strict=True)):
            thread.submit(client_id, sample_job(future, 10 + number, tokens=2))
        gate.set()
        return await results_of(futures)

    results = asyncio.run(main())
    assert [result["seed"] for result in results] == list(range(10, 16))
    assert sorted(together) == [("base", [10, 11, 13, 15])] * 2 + [("tuned", [12, 14])] * 2


def test_a_bad_request_fails_alone_and_an_unknown_client_is_told() -> None:
    def weights(sampler_id: str) -> str:
        if sampler_id == "gone":
            raise Refused("there is no such client.")
        return "weights"

    async def main() -> list[Any]:
        thread, gate = started(lambda: CountingModels(weights))
        futures = [Future() for _ in range(7)]
        for seed, future in enumerate(futures):
            thread.submit("gone" if seed == 6 else "s", sample_job(future, seed, tokens=3))
        gate.set()
        return await results_of(futures)

    results = asyncio.run(main())
    assert [result.get("seed") for result in results] == [0, 1, 2, None, 4, 5, None]
    assert results[3]["category"] == "server" and "bad request" in results[3]["error"]
    assert results[6] == {"error": "there is no such client.", "category": "user"}


def test_a_step_that_breaks_fails_all_who_took_part_and_the_engine_goes_on() -> None:
    broken = [True]

    def step(weights_id: str, requests: list[SampleRequest]) -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("out of order")

    async def main() -> list[Any]:
        thread, gate = started(lambda: CountingModels(step=step))
        futures = [Future() for _ in range(3)]
        thread.submit("s", sample_job(futures[0], 7))
        thread.submit("s", sample_job(futures[1], 8))
        gate.set()
        first = await results_of(futures[:2])
        thread.submit("s", sample_job(futures[2], 9))
        return first + await results_of(futures[2:])

    results = asyncio.run(main())
    assert all("out of order" in result["error"] for result in results[:2])
    assert results[2] == {"seed": 9}


def test_a_request_that_comes_later_joins_and_need_not_wait_for_those_before() -> None:
    steps: list[list[int | None]] = []
    begun = threading.Event()

    def step(weights_id: str, requests: list[SampleRequest]) -> None:
        steps.append([request.seed for request in requests])
        begun.set()
        if len(steps) == 1:
            joined.wait(PATIENCE)

    joined = threading.Event()

    async def main() -> list[str]:
        thread, gate = started(lambda: CountingModels(step=step))
        long, short, ended = Future(), Future(), []
        thread.submit("a", sample_job(long, seed=1, tokens=50))
        gate.set()
        await asyncio.to_thread(begun.wait, PATIENCE)
        thread.submit("a", sample_job(short, seed=2, tokens=2))
        joined.set()
        await short.done.wait()
        ended.append("short")
        await long.done.wait()
        return [*ended, "long"]

    asyncio.run(main())
    assert steps[0] == [1] and steps[1] == [1, 2] == steps[2] and len(steps) == 50
    assert steps[3:] == [[1]] * 47


def test_what_is_sampled_for_a_client_that_has_ended_is_broken_off() -> None:
    counts: list[int] = []
    reached = threading.Event()

    def step(weights_id: str, requests: list[SampleRequest]) -> None:
        counts.append(len(requests))
        if len(counts) == 3:
            reached.set()
            dropped.wait(PATIENCE)

    dropped = threading.Event()

    async def main() -> Any:
        models = CountingModels(lambda sampler_id: "weights", step)
        thread, gate = started(lambda: models)
        leaving, staying = Future(), Future()
        thread.submit("leaving", sample_job(leaving, tokens=10**6))
        thread.submit("staying", sample_job(staying, seed=1, tokens=8))
        gate.set()
        await asyncio.to_thread(reached.wait, PATIENCE)
        thread.drop("leaving")
        dropped.set()
        return await results_of([staying])

    assert asyncio.run(main()) == [{"seed": 1}]
    assert counts == [2, 2, 2, 1, 1, 1, 1, 1]


def test_a_client_with_much_waits_with_the_rest_so_that_others_join_soon() -> None:
    sequences: list[int] = []
    ended: list[str] = []

    def step(weights_id: str, requests: list[SampleRequest]) -> None:
        sequences.append(sum(request.num_samples for request in requests))

    async def main() -> None:
        thread, gate = started(lambda: CountingModels(lambda sampler_id: "weights", step))
        futures: list[tuple[str, Future]] = []
        half = SEQUENCES_TAKEN // 2
        for client_id, count, samples in (("much", 9, half), ("little", 1, 1)):
            for _ in range(count):
                futures.append((client_id, Future()))
                thread.submit(client_id, sample_job(futures[-1][1], samples=samples, tokens=2))
        gate.set()

        async def note(client_id: str, future: Future) -> None:
            await future.done.wait()
            ended.append(client_id)

        await asyncio.gather(*(note(*pair) for pair in futures))

    asyncio.run(main())
    assert max(sequences) <= SEQUENCES_TAKEN
    assert ended.index("little") < 3


def test_one_request_may_ask_for_more_sequences_than_are_taken_at_a_time() -> None:
    async def main() -> list[Any]:
        thread, gate = started(lambda: CountingModels())
        futures = [Future(), Future()]
        for future in futures:
            thread.submit("s", sample_job(future, samples=2 * SEQUENCES_TAKEN))
        gate.set()
        return await results_of(futures)

    assert asyncio.run(main()) == [{"seed": 0}] * 2


def test_a_job_behind_a_request_of_its_client_does_not_wait_for_the_answer() -> None:
    async def main() -> list[Any]:
        models = CountingModels()
        thread, gate = started(lambda: models)
        answer, job = Future(), Future()
        thread.submit("s", sample_job(answer, tokens=10**6))
        thread.submit("s", Job(lambda _: {"job": len(models.running)}, job))
        gate.set()
        first = await results_of([job])
        thread.drop("s")
        return first

    assert asyncio.run(main()) == [{"job": 1}]


# ---- shares


def spender(
    clock: Clock, spent: dict[str, float], enough: threading.Event
) -> Callable[[str, float], None]:
    """Work of so many seconds, added to what is spent until 100 seconds are over."""

    def spend(what: str, seconds: float) -> None:
        clock.now += seconds
        if not enough.is_set():
            spent[what] += seconds
        if clock.now > 100:
            enough.set()
            threading.Event().wait()  # for ever: else this thread works on beside other tests

    return spend


@pytest.mark.parametrize(("weights", "job_seconds"), [(1, 0.1), (1, 0.7), (16, 0.1)])
def test_a_training_client_beside_sixteen_sampling_clients_gets_more_than_half_of_the_time(
    weights: int, job_seconds: float
) -> None:
    clock, spent = Clock(), dict[str, float](sampling=0.0, training=0.0)
    enough = threading.Event()
    spend = spender(clock, spent, enough)

    models = CountingModels(
        lambda sampler_id: str(int(sampler_id) % weights),
        lambda weights_id, requests: spend("sampling", 0.01),
    )

    async def main() -> None:
        thread = EngineThread(asyncio.get_running_loop(), preparing(models), clock)
        for number in range(16):
            thread.submit(str(number), sample_job(Future(), tokens=10**6))
        for _ in range(2000):
            thread.submit("trainer", Job(lambda models: spend("training", job_seconds), Future()))
        thread.start()
        await asyncio.to_thread(enough.wait, PATIENCE)

    asyncio.run(main())
    assert enough.is_set()
    assert spent["training"] == pytest.approx(60, abs=1.0)


def test_three_training_clients_have_equal_time_and_all_sampling_two_thirds_of_one() -> None:
    clock, spent = Clock(), dict[str, float](a=0.0, b=0.0, c=0.0, sampling=0.0)
    enough = threading.Event()
    spend = spender(clock, spent, enough)

    models = CountingModels(step=lambda weights_id, requests: spend("sampling", 0.02))

    async def main() -> None:
        thread = EngineThread(asyncio.get_running_loop(), preparing(models), clock)
        for number in range(16):
            thread.submit(str(number), sample_job(Future(), tokens=10**6))
        for name, seconds in (("a", 0.1), ("b", 0.4), ("c", 0.03)):
            for _ in range(2000):
                thread.submit(
                    name,
                    Job(lambda models, name=name, seconds=seconds: spend(name, seconds), Future()),
                )
        thread.start()
        await asyncio.to_thread(enough.wait, PATIENCE)

    asyncio.run(main())
    expected = {**dict.fromkeys("abc", 100 * 3 / 11), "sampling": 100 * 2 / 11}
    assert spent == pytest.approx(expected, abs=1)


def test_if_the_engine_cannot_be_prepared_every_job_says_why() -> None:
    def prepare() -> Any:
        raise OSError(28, "No space left on device")

    async def main() -> Any:
        thread = EngineThread(asyncio.get_running_loop(), prepare)
        thread.start()
        future = Future()
        thread.submit("a", Job(lambda models: {}, future))
        await asyncio.wait_for(future.done.wait(), PATIENCE)
        return future.result

    assert "No space left on device" in asyncio.run(main())["error"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def open_client(sessions: Sessions) -> str:
    session_id = await sessions.create({}, None)
    model_id, _ = await sessions.create_model(
        session_id, 0, "tiny", LoraConfig(4), "adamw", None, None, lambda models, model_id: {}
    )
    return model_id


def test_a_silent_session_is_freed_and_its_waiting_operations_fail(store: Store) -> None:
    models = CountingModels()

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
        sessions.sweep_once(session.last_seen + QUEUE_SILENCE - 1)
        assert sessions.operations(model_id)
        sessions.sweep_once(session.last_seen + SESSION_SILENCE + 1)
        with pytest.raises(Gone, match="has ended"):
            sessions.operations(model_id)
        last = sessions.run("last", lambda models: {})
        gate.set()
        await last.done.wait()
        assert begun == []
        # The second one waited for the number 2; the first one for its turn.
        assert "dropped" in str(futures[0].result) and "has ended" in str(futures[1].result)
        assert models.freed == [model_id]

    asyncio.run(main())


def test_what_a_gone_client_has_in_the_queues_is_dropped_after_a_minute(store: Store) -> None:
    models = CountingModels()

    async def main() -> None:
        thread, gate = started(prepare=lambda: models)
        sessions = Sessions(store, thread)
        begun: list[str] = []

        def operate(model_id: str, seq: int) -> Future:
            work = lambda models: begun.append(f"{model_id}:{seq}") or {}  # noqa: E731
            return sessions.future(sessions.operate(model_id, seq, "step", work))

        gone, polling = await open_client(sessions), await open_client(sessions)
        sampler_id, loaded, _ = await sessions.create_sampler(gone.split(":")[0], 0, "tiny", None)
        loaded.finish({})
        waiting = [operate(gone, 1), operate(gone, 2)]
        asked = sessions.sample(sampler_id, 0, SampleRequest([1], max_tokens=1), lambda _: {})
        waiting.append(sessions.futures[asked])
        kept = operate(polling, 1)
        session = sessions.sessions[gone.split(":")[0]]
        seen = sessions.sessions[polling.split(":")[0]].last_seen = session.last_seen
        sessions.sweep_once(seen + QUEUE_SILENCE - 1)
        assert not any(future.finished for future in waiting)
        sessions.sessions[polling.split(":")[0]].last_seen += 2
        sessions.sweep_once(seen + QUEUE_SILENCE + 1)
        assert all("no sign of life for 60 s. Send it again" in str(f.result) for f in waiting)
        assert not kept.finished
        gate.set()
        await asyncio.wait_for(kept.done.wait(), PATIENCE)
        again = operate(gone, 3)  # it was asleep: its client is as it was, without the step
        await asyncio.wait_for(again.done.wait(), PATIENCE)
        assert begun == [f"{polling}:1", f"{gone}:3"]
        assert models.dropped == [gone]

    asyncio.run(main())


def test_work_waits_while_the_engine_itself_stands_still(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("tinkersmith.engine.scheduling.sessions.time", clock)

    async def main() -> None:
        sessions = Sessions(store, started()[0])
        model_id = await open_client(sessions)
        gate = threading.Event()

        def held(models: object) -> dict[str, Any]:
            gate.wait(PATIENCE)
            return {}

        sessions.run(model_id, held)
        waiting = sessions.run(model_id, lambda models: {"result": 1})
        sweeping = asyncio.create_task(sessions.sweep(every=0.06))
        await asyncio.sleep(0)
        now[0] += 5 * QUEUE_SILENCE  # the process was stopped for so long
        await asyncio.sleep(0.2)
        assert not sweeping.done() and not waiting.finished
        gate.set()
        await asyncio.wait_for(waiting.done.wait(), PATIENCE)
        sweeping.cancel()
        assert waiting.result == {"result": 1}

    asyncio.run(main())


def test_a_poll_is_a_sign_of_life(store: Store) -> None:
    async def main() -> None:
        sessions = Sessions(store, started()[0])
        model_id = await open_client(sessions)
        session = sessions.sessions[model_id.split(":")[0]]
        session.last_seen -= 1000
        sessions.future(f"{model_id}:0")
        before = session.last_seen
        sessions.sweep_once(before + QUEUE_SILENCE - 1)
        assert not sessions.futures[f"{model_id}:0"].finished

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
            *(await sessions.create({}, None), 0, "a/b", LoraConfig(4), "adamw", None, fetch),
            lambda *_: {},
        )
        future = sessions.future(request_id)
        await asyncio.wait_for(future.done.wait(), PATIENCE)
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
