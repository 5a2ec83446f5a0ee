"""One sampling client against sixteen of the same weights, and a training client beside them.

Each figure is the median of several rounds, through the unmodified SDK. `--other SRC` measures the
engine of another version's source folder in turn with this one, so that both see the same machine.
The aims: sixteen clients get at least 90 % of the answers that one gets, a training client beside
them takes at least half of the steps that it takes alone, and a request that comes while a long
batch runs has its first token before that batch has ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tinker

from benchmarks.results_file import write_results
from tests.support.engine import no_proxy_for_loopback, random_datums

ROOT = Path(__file__).resolve().parent.parent
MODEL = "tiny-math"
KEY = "tml-local"
CLIENTS = 16
PROMPT_TOKENS = 40
ANSWER_TOKENS = 48
LONG_TOKENS = 400  # of each answer of the batch that runs already


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="the src folder of another version")
    options = parser.parse_args()
    no_proxy_for_loopback()
    versions = {"this version": ROOT / "src"}
    if options.other is not None:
        versions = {"before": options.other.resolve(), **versions}
    figures: dict[str, object] = {}
    with ExitStack() as stack:
        services = {name: stack.enter_context(running(source)) for name, source in versions.items()}
        rounds: dict[str, list[Round]] = {name: [] for name in versions}
        for _ in range(options.rounds):
            for name, service in services.items():
                rounds[name].append(measure(service, options.seconds))
                print(f"{name}: {rounds[name][-1]}", flush=True)
    for name, measured in rounds.items():
        for key, value in summary(measured).items():
            figures[f"{name}: {key}"] = value
    figures |= {
        "seconds of each measurement": options.seconds,
        "rounds": options.rounds,
        "tokens of a prompt and of an answer": [PROMPT_TOKENS, ANSWER_TOKENS],
    }
    print(json.dumps(figures, indent=2))
    command = f"python -m benchmarks.many_clients --seconds {options.seconds:g}"
    if options.rounds != 3:
        command += f" --rounds {options.rounds}"
    if options.other is not None:
        command += " --other SRC"
    print("written:", write_results("many_clients", command, figures))


@dataclass(frozen=True, slots=True)
class Round:
    """What one engine did in one round."""

    one: float  # answers a second, all through one sampling client
    sixteen: float  # answers a second, one at a time through each of sixteen
    alone: float  # training steps a second
    beside: float  # training steps a second beside the sixteen
    left: float  # answers a second beside the training client
    first_token: float  # seconds to the first token of a request beside a long batch
    batch: float  # seconds that the long batch takes


def summary(rounds: list[Round]) -> dict[str, float]:
    def mid(value: Callable[[Round], float]) -> float:
        return round(median(value(measured) for measured in rounds), 3)

    return {
        "answers a second, one client": mid(lambda r: r.one),
        "answers a second, sixteen clients": mid(lambda r: r.sixteen),
        "sixteen / one": mid(lambda r: r.sixteen / r.one),
        "training steps a second, alone": mid(lambda r: r.alone),
        "training steps a second, beside sixteen sampling clients": mid(lambda r: r.beside),
        "steps beside / alone": mid(lambda r: r.beside / r.alone),
        "answers a second beside training": mid(lambda r: r.left),
        "first token beside a long batch, seconds": mid(lambda r: r.first_token),
        "that long batch, seconds": mid(lambda r: r.batch),
    }


def measure(service: tinker.ServiceClient, seconds: float) -> Round:
    samplers: list[Any] = [service.create_sampling_client(base_model=MODEL) for _ in range(CLIENTS)]
    samplers = [
        getattr(sampler, "result", lambda sampler=sampler: sampler)() for sampler in samplers
    ]
    trainer = service.create_lora_training_client(MODEL, rank=8, seed=1)
    trainer = getattr(trainer, "result", lambda: trainer)()
    data = random_datums(8, seed=1)

    def train() -> None:
        gradients = trainer.forward_backward(data, "cross_entropy")
        step = trainer.optim_step(tinker.AdamParams(learning_rate=1e-4))
        gradients.result()
        step.result()

    train()
    sampling = [lambda sampler=sampler: ask(sampler, ANSWER_TOKENS) for sampler in samplers]
    [one] = rates([[sampling[0]] * CLIENTS], seconds)
    [sixteen] = rates([sampling], seconds)
    [alone] = rates([[train]], seconds)
    beside, left = rates([[train], sampling], seconds)
    batch, first_token = beside_long_batch(samplers)
    return Round(one, sixteen, alone, beside, left, first_token, batch)


def ask(sampler: tinker.SamplingClient, tokens: int) -> None:
    prompt = tinker.ModelInput.from_ints(list(range(10, 10 + PROMPT_TOKENS)))
    params = tinker.SamplingParams(max_tokens=tokens, temperature=1.0, stop=[])
    sampler.sample(prompt, 1, params).result()


def rates(groups: list[list[Callable[[], None]]], seconds: float) -> list[float]:
    """How often each group's works are done a second, each again and again in its own thread.

    What is under way at the end is waited for, and counts with the time that it takes.
    """
    done, last = [0] * len(groups), [0.0] * len(groups)
    lock, start = threading.Lock(), time.monotonic()

    def work(index: int, run: Callable[[], None]) -> None:
        while time.monotonic() < start + seconds:
            run()
            with lock:
                done[index] += 1
                last[index] = time.monotonic() - start

    threads = [
        threading.Thread(target=work, args=(index, run))
        for index, group in enumerate(groups)
        for run in group
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [count / elapsed for count, elapsed in zip(done, last, strict=True)]


def beside_long_batch(samplers: list[tinker.SamplingClient]) -> tuple[float, float]:
    """Seconds of a batch of long answers, and to the one token of a request that came after it."""
    started = time.monotonic()
    threads = [
        threading.Thread(target=ask, args=(samplers[0], LONG_TOKENS)) for _ in range(CLIENTS // 2)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    asked = time.monotonic()
    ask(samplers[0], 1)
    first_token = time.monotonic() - asked
    for thread in threads:
        thread.join()
    return time.monotonic() - started, first_token


@contextmanager
def running(
    source: Path, model: Path | None = None, dtype: str = "auto"
) -> Iterator[tinker.ServiceClient]:
    """An engine of the version in that source folder, and a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        model = model or ROOT / "src" / "tinkersmith" / "bundled" / MODEL
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tinkersmith.engine", "--port", "0", "--dir", folder),
                *("--base-model", f"{MODEL}={model}", "--dtype", dtype, "--exit-with-stdin"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TINKERSMITH_ENGINE_KEY": KEY, "PYTHONPATH": str(source)},
        )
        assert process.stdout is not None
        try:
            port = json.loads(process.stdout.readline())["port"]
            yield tinker.ServiceClient(base_url=f"http://127.0.0.1:{port}", api_key=KEY)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
