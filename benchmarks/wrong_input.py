"""How soon wrong input is answered with a sentence, while another client trains undisturbed.

The cases come from tests/support/wrong_input.py, sent by the unmodified SDK, and from
tests/support/wrong_bodies.py: malformed, growing and too large bodies, sent without the SDK. All go
to a separate engine process on loopback. Tests check the answers and their effects.
"""

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import tinker

from benchmarks.results_file import write_results
from tests.support.clients import new_client, train
from tests.support.engine import RunningEngine, no_proxy_for_loopback, running_engine
from tests.support.raw_client import batch, call, new_model, result, stream
from tests.support.tiny_models import make_tiny_model
from tests.support.wrong_bodies import BROKEN, GIB, encoding_of, memory, pieces_of
from tests.support.wrong_input import BATCHES, CASES, World, new_world

Timed = Callable[[], tuple[float, str]]  # seconds to the answer, and the answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    no_proxy_for_loopback()
    with tempfile.TemporaryDirectory() as temporary:
        model = make_tiny_model(Path(temporary) / "model")
        with (
            running_engine(Path(temporary) / "engine", model) as engine,
            engine.client() as service,
        ):
            world = new_world(engine, service, engine.rest())
            steps: list[float] = []
            with _training(world.bystander, steps):
                time.sleep(2.0)  # its steps without wrong input
            alone = max(steps)
            begin = memory(engine, "VmRSS")
            kinds = _cases(world, repeats)
            with _training(world.bystander, steps):
                cases = {name: _measured(timed, repeats) for name, timed in kinds.items()}
            grown = memory(engine, "VmHWM") - begin
            assert engine.process.poll() is None
    slowest = max(cases, key=lambda name: cases[name]["milliseconds"])
    figures = {
        "repeats": repeats,
        "cases": len(cases),
        "slowest": slowest,
        "milliseconds": {name: case["milliseconds"] for name, case in cases.items()},
        "slowest single answer, milliseconds": max(case["worst"] for case in cases.values()),
        "answers": {name: case["answer"] for name, case in cases.items()},
        "another client's slowest step, milliseconds": {
            "alone": round(1e3 * alone, 1),
            "meanwhile": round(1e3 * max(steps), 1),
        },
        "engine's memory, grown by at most, MiB": grown >> 20,
    }
    for name, case in cases.items():
        print(f"{case['milliseconds']:8.1f} ms  {name}: {case['answer']}")
    print({name: value for name, value in figures.items() if not isinstance(value, dict)})
    print("written:", write_results("wrong_input", "python -m benchmarks.wrong_input", figures))


@contextmanager
def _training(client: tinker.TrainingClient, seconds: list[float]) -> Iterator[None]:
    """Time each step of another client, one step after the other."""
    over = threading.Event()
    seconds.clear()

    def train_on() -> None:
        while not over.is_set():
            begin = time.perf_counter()
            train(client, BATCHES[0])
            seconds.append(time.perf_counter() - begin)

    thread = threading.Thread(target=train_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _measured(timed: Timed, repeats: int) -> dict:
    answers = [timed() for _ in range(repeats)]
    seconds = [elapsed for elapsed, _ in answers]
    return {
        "milliseconds": round(1e3 * median(seconds), 1),
        "worst": round(1e3 * max(seconds), 1),
        "answer": answers[0][1],
    }


def _cases(world: World, repeats: int) -> dict[str, Timed]:
    timed = {case.name: _by_sdk(world, lambda do=case.call: do(world)) for case in CASES}
    timed["a call after its session has ended"] = _by_sdk(world, _ended(world.engine))
    for name in BROKEN:
        timed[f"a batch: {name}"] = _broken(world.engine, name, repeats)
    timed["1 GB, its length declared"] = _gigabyte(world.engine, GIB)
    timed["1 GB of unknown length, after the limit"] = _gigabyte(world.engine, None)
    return timed


def _by_sdk(world: World, do: Callable[[], object]) -> Timed:
    def timed() -> tuple[float, str]:
        train(world.client, BATCHES[0])  # removes what the case before left
        begin = time.perf_counter()
        try:
            do()
        except tinker.TinkerError as error:
            seconds = time.perf_counter() - begin
            return seconds, str(error).split(" for self.request_id")[0]
        raise AssertionError("nothing was refused")

    return timed


def _ended(engine: RunningEngine) -> Callable[[], object]:
    client = new_client(engine.client())
    session_id = client.model_id.split(":")[0]
    call(engine, f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
    return lambda: train(client, BATCHES[0])


def _broken(engine: RunningEngine, name: str, repeats: int) -> Timed:
    spoil, _ = BROKEN[name]
    # Made beforehand: it takes seconds, in which the other client of this process could not step.
    bodies = [spoil(batch(new_model(engine), 1, [5, 6, 7])) for _ in range(repeats)]

    def timed() -> tuple[float, str]:
        body = bodies.pop()
        begin = time.perf_counter()
        encoding = encoding_of(body)
        _, future = call(engine, "/forward_backward", body, content_encoding=encoding)
        failed = result(engine, future["request_id"])
        return time.perf_counter() - begin, failed["error"]

    return timed


def _gigabyte(engine: RunningEngine, length: int | None) -> Timed:
    def timed() -> tuple[float, str]:
        pieces = pieces_of(batch(new_model(engine), 1, [5, 6, 7]))
        answer = stream(
            engine, "/forward_backward", itertools.islice(pieces, 2 if length else 1024), length
        )
        failed = result(engine, answer.body["request_id"])
        return answer.seconds, failed["error"]

    return timed


if __name__ == "__main__":
    main()
