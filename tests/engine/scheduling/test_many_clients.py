"""Eight training and eight sampling clients at once: each gets exactly what it would get alone.

Only the last digits of sampled tokens' log-probabilities may differ: requests to one model share
their matrix products, which round differently with the number of rows.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from tests.support.engine import MODEL, random_datums, running_engine
from tests.support.programs import WITHOUT_MEMORY

pytestmark = pytest.mark.engine

CLIENTS = 8
STEPS = 4


@dataclass(frozen=True)
class Trained:
    losses: list[float]
    logprobs: list[list[float]]  # of each step's tokens, joined
    answer: list[int]  # sampled from the weights at the end


def train(service: tinker.ServiceClient, number: int) -> Trained:
    """Train a client with its own rank, seed, data and rate; save and load its state."""
    client = service.create_lora_training_client(MODEL, rank=1 + number, seed=number).result()
    losses, logprobs = [], []
    for step in range(STEPS):
        data = random_datums(3 + number % 3, seed=100 * number + step)
        first = client.forward_backward(data[:2], "cross_entropy")
        rest = client.forward_backward(data[2:], "cross_entropy")
        update = client.optim_step(tinker.AdamParams(learning_rate=0.01 * (1 + number)))
        for future in (first, rest):
            output = future.result()
            losses.append(output.metrics["loss:sum"])
            logprobs.append(joined(output))
        update.result()
        if step == 1:
            state = client.save_state(f"step-{step}").result().path
        if step == 2 and number % 2:
            client.load_state_with_optimizer(state).result()
        logprobs.append(joined(client.forward(data, "cross_entropy").result()))
    sampler = client.save_weights_and_get_sampling_client().result()
    return Trained(losses, logprobs, sample(sampler, number).tokens)


def joined(output: tinker.ForwardBackwardOutput) -> list[float]:
    results = output.loss_fn_outputs
    return np.concatenate([result["logprobs"].to_numpy() for result in results]).tolist()


@dataclass(frozen=True)
class Sampled:
    tokens: list[int]
    logprobs: list[float | None]  # of the tokens, then of the prompt


def sample(sampler: tinker.SamplingClient, number: int) -> Sampled:
    """The answers to several requests, whose parameters depend on the client's number."""
    prompt = tinker.ModelInput.from_ints(list(range(10, 20 + number)))
    params = tinker.SamplingParams(
        max_tokens=8 + number,
        temperature=(0.0, 0.7, 1.0, 1.3)[number % 4],
        top_p=(1.0, 0.9)[number % 2],
        top_k=(-1, 20, 5)[number % 3],
        seed=number,
        stop=[],
    )
    futures = [sampler.sample(prompt, 1 + number % 3, params) for _ in range(3)]
    sequences = [sequence for future in futures for sequence in future.result().sequences]
    scores = sampler.compute_logprobs(prompt).result()
    return Sampled(
        [token for sequence in sequences for token in sequence.tokens],
        [value for sequence in sequences for value in sequence.logprobs or []] + scores[1:],
    )


def all_at_once(*works: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[list, list]:
    """The results of each client when it is alone on the engine."""
    with running_engine(tmp_path_factory.mktemp("alone"), tiny_model) as engine:
        trained = []
        for number in range(CLIENTS):
            with engine.client() as service:
                trained.append(train(service, number))
        with engine.client() as service:
            sampler = service.create_sampling_client(base_model=MODEL).result()
            return trained, [sample(sampler, number) for number in range(CLIENTS)]


@pytest.mark.parametrize(
    "program",
    [
        ("-m", "tinkersmith.engine"),
        pytest.param(("-c", WITHOUT_MEMORY), marks=pytest.mark.long),
    ],
)
def test_each_of_many_clients_gets_exactly_what_it_gets_alone(
    tmp_path: Path, tiny_model: Path, alone: tuple[list, list], program: tuple[str, str]
) -> None:
    with (
        running_engine(tmp_path, tiny_model, program=program) as engine,
        engine.client() as service,
    ):
        samplers = [
            service.create_sampling_client(base_model=MODEL).result() for _ in range(CLIENTS)
        ]
        together = all_at_once(
            *(lambda number=number: train(service, number) for number in range(CLIENTS)),
            *(lambda number=number: sample(samplers[number], number) for number in range(CLIENTS)),
        )
        on_disk = len(list(tmp_path.glob("idle/*/*.safetensors")))
    assert on_disk >= 2 * CLIENTS - 1 if "-c" in program else on_disk == 0
    trained, sampled = alone
    for number in range(CLIENTS):
        assert together[number] == trained[number], f"training client {number}"
        answer, expected = together[CLIENTS + number], sampled[number]
        assert answer.tokens == expected.tokens, f"sampling client {number}"
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_clients_of_different_adapters_share_a_batch_and_get_what_each_gets_alone(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Adapters that were trained a little, and the base model, sampled alone and then at once."""

    def new_sampler(service: tinker.ServiceClient, number: int) -> tinker.SamplingClient:
        parts: dict[str, Any] = {
            "train_attn": number != 3,
            "train_mlp": number != 4,
            "train_unembed": number != 5,
        }
        client = service.create_lora_training_client(
            MODEL, rank=(8, 3, 16)[number % 3], seed=number, **parts
        ).result()
        for step in range(3):
            data = random_datums(4, seed=100 * number + step)
            client.forward_backward(data, "cross_entropy").result()
            client.optim_step(tinker.AdamParams(learning_rate=0.02)).result()
        return client.save_weights_and_get_sampling_client().result()

    def long(sampler: tinker.SamplingClient) -> Any:
        params = tinker.SamplingParams(max_tokens=200, seed=1, stop=[])
        return sampler.sample(tinker.ModelInput.from_ints([1, 2, 3]), 16, params)

    with running_engine(tmp_path, tiny_model) as engine, engine.client() as service:
        samplers = [new_sampler(service, number) for number in range(7)]
        samplers.append(service.create_sampling_client(base_model=MODEL).result())
        # The same requests of all, so that only the adapter makes the answers differ.
        expected = [sample(sampler, 2) for sampler in samplers]
        assert len({tuple(answer.tokens) for answer in expected}) == len(samplers)
        running = [long(sampler) for sampler in samplers[:3]]  # rows that the others join
        works = [lambda sampler=sampler: sample(sampler, 2) for sampler in samplers]
        for answers in (all_at_once(*works), all_at_once(*reversed(works))[::-1]):
            for answer, alone in zip(answers, expected, strict=True):
                assert answer.tokens == alone.tokens
                assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        for future in running:
            assert [len(one.tokens) for one in future.result().sequences] == [200] * 16


def test_sixteen_sampling_clients_share_a_batch_that_later_ones_join(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Short requests are answered while a long one of another client goes on."""
    prompt = tinker.ModelInput.from_ints(list(range(10, 60)))

    def ask(sampler: tinker.SamplingClient, seed: int, tokens: int, samples: int = 1) -> Any:
        params = tinker.SamplingParams(max_tokens=tokens, seed=seed, stop=[])
        return sampler.sample(prompt, samples, params)

    with (
        running_engine(tmp_path, tiny_model) as engine,
        engine.client() as service,
        ThreadPoolExecutor(1) as pool,
    ):
        samplers = [service.create_sampling_client(base_model=MODEL).result() for _ in range(16)]
        expected = [ask(samplers[0], seed, 12).result().sequences[0].tokens for seed in range(16)]
        for _ in range(20):  # the long one may have ended first, on a loaded machine
            long = pool.submit(ask(samplers[0], 99, 450, samples=64).result)
            found = [ask(sampler, seed, 12) for seed, sampler in enumerate(samplers)]
            answers = [future.result() for future in found]
            overtaken = not long.done()
            assert [answer.sequences[0].tokens for answer in answers] == expected
            # The first prompt of those that joined together was read for the others, too.
            assert {answer.prompt_cache_hit_tokens for answer in answers} <= {0, 49}
            assert [len(one.tokens) for one in long.result().sequences] == [450] * 64
            if overtaken:
                return
    pytest.fail("no request was answered while the long one went on")
