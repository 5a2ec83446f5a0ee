"""Batches and learning rates are functions of seed and step alone."""

import numpy as np
import pytest

from tinkersmith.batches.order import batch_indices, learning_rate_at, steps_per_epoch


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    seed = int(np.random.default_rng().integers(2**31))
    rng = np.random.default_rng(seed)
    for _ in range(50):
        n, size = int(rng.integers(1, 200)), int(rng.integers(1, 50))
        print(f"seed {seed}, n {n}, batch size {size}")
        steps = steps_per_epoch(n, size)
        epochs = [
            np.concatenate(
                [batch_indices(n, size, seed, epoch * steps + step) for step in range(steps)]
            )
            for epoch in range(3)
        ]
        for order in epochs:
            assert sorted(order) == list(range(n))
        if n > 20:
            assert not np.array_equal(epochs[0], epochs[1])


def test_only_the_last_batch_of_an_epoch_is_short() -> None:
    assert steps_per_epoch(10, 4) == 3
    assert [len(batch_indices(10, 4, 42, step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert steps_per_epoch(3, 8) == 1
    assert steps_per_epoch(8, 8) == 1


def test_a_step_gives_the_same_batch_when_asked_alone_and_out_of_order() -> None:
    forward = [batch_indices(100, 8, 7, step).tolist() for step in range(26)]
    backward = [batch_indices(100, 8, 7, step).tolist() for step in reversed(range(26))]
    assert forward == backward[::-1]
    assert batch_indices(100, 8, 8, 0).tolist() != forward[0]


def test_the_order_is_the_one_it_has_always_been() -> None:
    # A change here makes runs of older versions impossible to resume with the same batches.
    assert batch_indices(10, 4, 42, 0).tolist() == GOLDEN[0]
    assert batch_indices(10, 4, 42, 4).tolist() == GOLDEN[1]


GOLDEN = ([4, 8, 1, 9], [3, 9, 6, 0])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.2, 0.5])
@pytest.mark.parametrize("total", [1, 2, 7, 400])
def test_the_rate_rises_to_its_peak_and_never_again(
    schedule: str, warmup: float, total: int
) -> None:
    rates = [learning_rate_at(step, total, 1e-3, schedule, warmup) for step in range(total)]
    peak = int(np.argmax(rates))
    assert max(rates) == pytest.approx(1e-3)
    assert min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= total * warmup


def test_the_schedules_have_the_values_of_their_formulas() -> None:
    def rates(schedule: str) -> list[float]:
        return [learning_rate_at(step, 10, 1.0, schedule, 0.2) for step in range(10)]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert rates("linear") == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 0.5, 3 / 8, 0.25, 1 / 8]
    )
    assert rates("cosine")[6] == pytest.approx(0.5)
    assert rates("cosine")[9] == pytest.approx(0.5 * (1 + np.cos(np.pi * 7 / 8)))
