"""The watch of a run's losses stops what has diverged, and nothing healthy."""

import math
import os

import numpy as np
import pytest

from benchmarks.reliability.divergence import stopped_at, try_diverging, try_healthy
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.divergence import LossWatch, lower_rate

SIZE = int(os.environ.get("TINKERSMITH_CURVES", "300"))


def test_healthy_curves_are_never_stopped() -> None:
    tried, stopped = try_healthy(SIZE, seed=1)
    assert sum(tried.values()) == SIZE and stopped == []


def test_curves_that_rise_are_stopped_soon_and_only_sound_steps_are_called_sound() -> None:
    delays, missed, wrong = try_diverging(SIZE // 3, seed=1)
    assert wrong == []
    assert len(missed) <= 0.06 * (SIZE // 3)
    assert all(np.median(steps) <= 130 for steps in delays.values())
    explosions = [steps for kind, steps in delays.items() if kind.startswith("explosion")]
    assert all(np.median(steps) == 12 for steps in explosions)


def test_an_explosion_at_the_second_step_is_seen_and_nothing_before_it_is_sound() -> None:
    watch = LossWatch(vocabulary=2048)
    assert stopped_at(watch, np.array([1.2, *[300.0, 5000.0] * 20])) == 13
    assert watch.last_sound_step() == 0


def test_a_rise_during_the_warmup_is_judged_after_it_and_an_explosion_at_once() -> None:
    def rising(height: float) -> np.ndarray:
        return np.concatenate([np.full(30, 1.0), np.full(100, height)])

    assert stopped_at(LossWatch(vocabulary=2048, warmup_steps=100), rising(10.0)) == 112
    assert stopped_at(LossWatch(vocabulary=2048, warmup_steps=100), rising(40.0)) == 70
    assert stopped_at(LossWatch(vocabulary=2048, warmup_steps=0), rising(40.0)) == 42


@pytest.mark.parametrize("calm", [1, 20, 60, 90])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_an_explosion_during_the_warmup_stops_the_run(calm: int, noise: float) -> None:
    """It is higher at the end of the warm-up than ever after, and noise interrupts it."""
    exploded = np.concatenate([np.geomspace(22, 1587, 100 - calm), np.geomspace(1033, 107, 150)])
    exploded[20::40] *= 1 - noise * 1.99
    watch = LossWatch(vocabulary=4096, warmup_steps=100)
    step = stopped_at(watch, np.concatenate([np.linspace(3.1, 2.0, calm), exploded]))
    assert step is not None and step <= 130
    assert watch.last_sound_step() <= calm


def test_a_rise_that_passes_is_waited_for() -> None:
    steps = np.arange(400)
    passing = 1.0 + 5.0 * np.where(steps < 100, 0.0, np.exp(-(steps - 100) / 40))
    staying = np.where(steps < 100, 1.0, 5.0)
    assert stopped_at(LossWatch(vocabulary=32_000), passing) is None
    assert stopped_at(LossWatch(vocabulary=32_000), staying) is not None


def test_a_stream_may_go_from_easy_to_hard_files() -> None:
    harder = np.where(np.arange(2000) < 500, 0.4, 3.5)
    assert stopped_at(LossWatch(vocabulary=151_936, shuffled=False), harder) is None
    collapsed = np.where(np.arange(2000) < 500, 0.4, 7.5)
    assert stopped_at(LossWatch(vocabulary=151_936, shuffled=False), collapsed) is not None


@pytest.mark.parametrize("onset", [60, 150, 400])
def test_a_state_from_before_the_rise_is_protected_until_it_is_told(onset: int) -> None:
    """Whatever KEEP_LAST deletes meanwhile, a state that was saved each step is left to go on."""
    watch = LossWatch(vocabulary=151_936)
    for step in range(1, onset + 200):
        rise = min(max(step - onset, 0) / 50, 1.0) * 8.0
        watch.add(step, 1.0 + 0.05 * math.sin(step) + rise)
        if step > onset + 50:
            assert 0 < watch.protected_step <= onset + 10
        if watch.diverged:
            break
    assert watch.diverged and 0 < watch.last_sound_step() <= onset + 10


def test_a_lower_rate_is_a_fifth_and_not_above_what_is_usual() -> None:
    assert lower_rate(settings_from({"LEARNING_RATE": 5e-3})) == "1e-3"
    assert lower_rate(settings_from({"LEARNING_RATE": 1.0})) == "5e-3"
    assert lower_rate(settings_from({"LEARNING_RATE": 1.0, "BASE_MODEL": "a/b"})) == "5e-4"
    assert lower_rate(settings_from({"LEARNING_RATE": 1e-6, "BASE_MODEL": "a/b"})) == "2e-7"
