"""Every mistake of a user, sent by the unmodified SDK, is answered with a sentence within a second.

The next correct calls of that client give the results they would give without the mistake, and
another client, whose step runs meanwhile, computes what it computes alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import tinker

from tests.support.clients import greedy, new_client, train
from tests.support.engine import MODEL, RunningEngine
from tests.support.raw_client import call
from tests.support.stopwatch import Stopwatch
from tests.support.wrong_input import BATCHES, CASES, NAN, Case, T, World, as_input, new_world

pytestmark = pytest.mark.engine

SECOND = 1.0  # on a Stopwatch


@pytest.fixture
def world(engine: RunningEngine, service: tinker.ServiceClient, rest: tinker.RestClient) -> World:
    return new_world(engine, service, rest)


def live(world: World, wrong: Callable[[World], Any] | None) -> tuple[Any, ...]:
    """Losses and tokens that the clients get, with or without a mistake in between."""
    losses = [train(world.client, BATCHES[0]), train(world.bystander, BATCHES[0])]
    under_way = world.bystander.forward_backward(BATCHES[1], "cross_entropy")
    update = world.bystander.optim_step(tinker.AdamParams(learning_rate=1e-2))
    if wrong is not None:
        wrong(world)
    losses += [train(world.client, BATCHES[2]), under_way.result().metrics["loss:sum"]]
    update.result()
    losses += [train(world.bystander, BATCHES[3]), train(world.client, BATCHES[3])]
    assert world.rest.list_sessions(limit=1).result().sessions
    return (*losses, *greedy(world.sampler))


@pytest.fixture(scope="module")
def undisturbed(
    engine: RunningEngine, service: tinker.ServiceClient, rest: tinker.RestClient
) -> tuple[Any, ...]:
    return live(new_world(engine, service, rest), None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_refused_within_a_second_and_changes_nothing_else(
    world: World, undisturbed: tuple, case: Case
) -> None:
    def wrong(world: World) -> None:
        error = refused_in_time(world, lambda: case.call(world), case.sentence)
        if isinstance(error, tinker.RequestFailedError):
            assert str(error.category).lower().endswith(case.category) and not case.status
        else:
            assert getattr(error, "status_code", None) == case.status

    assert live(world, wrong) == undisturbed


def refused_in_time(world: World, call_it: Callable[[], Any], sentence: str) -> tinker.TinkerError:
    """The error that the call raises within a second; it must contain the sentence."""
    watch = Stopwatch(world.engine)
    with pytest.raises(tinker.TinkerError) as caught:
        call_it()
    assert watch.seconds() < SECOND
    assert sentence in str(caught.value)
    return caught.value


def test_after_its_session_has_ended_every_call_says_so_and_a_new_session_works(
    world: World, undisturbed: tuple
) -> None:
    def wrong(world: World) -> None:
        with world.engine.client() as service:
            client = new_client(service)
            sampler = service.create_sampling_client(base_model=MODEL).result()
            session_id = client.model_id.split(":")[0]
            call(world.engine, f"/sessions/{session_id}/finish", {"reason": {"type": "success"}})
            for call_it in (
                lambda: train(client, BATCHES[0]),
                lambda: client.optim_step(tinker.AdamParams()).result(),
                lambda: client.save_state("late").result(),
                lambda: client.save_weights_and_get_sampling_client().result(),
                lambda: greedy(sampler),
                lambda: new_client(service),
                lambda: service.create_sampling_client(base_model=MODEL).result(),
            ):
                error = refused_in_time(world, call_it, "has ended")
                assert getattr(error, "status_code", None) == 410
        with world.engine.client() as service:
            assert train(new_client(service, seed=1), BATCHES[0]) == undisturbed[0]

    assert live(world, wrong) == undisturbed


def test_a_refused_step_leaves_the_gradients_for_the_right_one(
    world: World, undisturbed: tuple
) -> None:
    client = world.client
    before = client.forward_backward(BATCHES[0], "cross_entropy").result().metrics["loss:sum"]
    wrong = client.optim_step(tinker.AdamParams(learning_rate=NAN))
    refused_in_time(world, wrong.result, "learning_rate is missing, NaN or infinite")
    client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    assert (before, train(client, BATCHES[2])) == (undisturbed[0], undisturbed[2])


def test_weights_that_have_diverged_are_reported_in_training_and_sampling(
    world: World, undisturbed: tuple
) -> None:
    def wrong(world: World) -> None:
        path = world.client.save_state("whole").result().path
        train(world.client, BATCHES[0], rate=1e30)
        broken = world.client.forward_backward(BATCHES[1], "cross_entropy")
        refused_in_time(world, broken.result, "lower the learning rate")
        sampler = world.client.save_weights_and_get_sampling_client().result()
        for temperature in (0.0, 1.0):
            params = tinker.SamplingParams(max_tokens=4, temperature=temperature)
            answer = sampler.sample(as_input(T), 3, params)
            refused_in_time(
                world, answer.result, "its weights are broken; use an earlier checkpoint"
            )
        load = world.service.create_training_client_from_state_with_optimizer
        world.client = load(path).result()

    assert live(world, wrong) == undisturbed
