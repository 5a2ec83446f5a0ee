"""Losses of steps, as they come -> whether the loss has risen for long, and what was sound before.

Single losses are noisy: a batch may hold one hard sample. Therefore means over `SMOOTHED_STEPS` are
compared, and a rise must be larger than the noise between steps explains. A run has diverged if

- it is worse than chance: the losses of `_CHANCE_STEPS` steps in a row are above ln(vocabulary) by
  more than 1, so that the right token gets less than 1/e of an equal share, and were not before; or
- it is worse than at its beginning, for `_ABOVE_BEGINNING` steps; or
- it has lost half of what it had gained, for `_HALF_LOST` steps. A stream may go from easy files to
  hard ones, which lifts the loss, too: this rule needs samples that are shuffled as a whole.

A loss that is on its way down again is waited for. During the warm-up, only a loss that stays far
worse than chance for `_FAR_STEPS` steps has diverged.
"""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.settings.fields import Settings, python_text

SMOOTHED_STEPS = 20  # steps of a smoothed loss
_CHANCE_STEPS = 12
_FAR_STEPS = 40  # during the warm-up
_ABOVE_BEGINNING = 40  # steps
_HALF_LOST = 100  # steps
_STANDARD_ERRORS = 6.0  # of the difference of two windows: noise alone makes no such rise
_LEAST_RISE = 0.1  # of ln(vocabulary)
_NO_LANGUAGE = 0.4  # of ln(vocabulary): a pretrained model loses less on any text
_BEGINNING = 3  # steps
_NOISE_STEPS = 200  # steps that the noise is measured over
_USUAL_RATE, _USUAL_RATE_BUNDLED = 5e-4, 5e-3  # the highest LEARNING_RATE that is usual


class Diverged(UserError):
    """Training has diverged. The sentence says how to go on: to resume as it was is no use."""


@dataclass
class LossWatch:
    """Sees every loss once, in order."""

    vocabulary: int  # tokens
    warmup_steps: int = 0  # the learning rate still rises: only an explosion is judged
    shuffled: bool = True  # the samples are shuffled as a whole
    diverged: bool = False
    protected_step: int = 0  # the last state that was saved up to this step must stay
    steps: list[int] = field(default_factory=list[int])  # of the losses; some steps have none
    losses: list[float] = field(default_factory=list[float])  # a mean per completion token each
    _means: list[float] = field(
        default_factory=list[float]
    )  # of windows: the last SMOOTHED_STEPS + 1
    _best: float = math.inf  # the lowest mean of a window that the last one does not overlap
    _best_step: int = 0
    _lowest: float = math.inf  # the lowest smoothed loss, be it of a shorter window
    _squares: deque[float] = field(default_factory=lambda: deque[float](maxlen=_NOISE_STEPS))
    _above_chance: int = 0  # steps in a row, as the next two
    _above_beginning: int = 0
    _half_lost: int = 0

    @property
    def is_raised(self) -> bool:
        """Whether the loss stands where it should not, be it for a moment."""
        return bool(self._above_chance or self._above_beginning or self._half_lost)

    def add(self, step: int, loss: float) -> None:
        """Take the loss of a step, counted from 1, into account."""
        if self.losses:
            self._squares.append((loss - self.losses[-1]) ** 2)
        self.steps.append(step)
        self.losses.append(loss)
        count = len(self.losses)
        if count >= SMOOTHED_STEPS // 2:
            self._lowest = min(self._lowest, _mean(self.losses[-SMOOTHED_STEPS:]))
        self._judge_chance(step, loss)
        if count >= SMOOTHED_STEPS:
            self._judge_rise(step, _mean(self.losses[-SMOOTHED_STEPS:]))
        if not self.is_raised:
            certain = count - 2 * SMOOTHED_STEPS if count > 4 * SMOOTHED_STEPS else count // 2
            step = self._step_of(certain)
            self.protected_step = max(self.protected_step, step, self._best_step)

    def last_sound_step(self) -> int:
        """The last step whose state was sound; 0 if that is the beginning.

        Looking back, the loss must have been near its best for a while: within 15 % of the rise.
        """
        if not self.losses:
            return 0
        best = min(self._best, self._beginning())
        # Any loss far above chance is as bad: an explosion must not make its first steps look good.
        last = min(_mean(self.losses[-_CHANCE_STEPS:]), 2 * math.log(self.vocabulary))
        level = best + 0.15 * (last - best)
        for end in range(len(self.losses), 0, -1):
            if _mean(self.losses[max(end - SMOOTHED_STEPS // 2, 0) : end]) <= level:
                break
        else:
            return 0
        while end and self.losses[end - 1] > best + 0.25 * (last - best):  # hidden by the mean
            end -= 1
        return self._step_of(max(end - 1, 0))  # which gave the loss of the step `end`

    def _step_of(self, count: int) -> int:
        return self.steps[count - 1] if count else 0

    def _judge_chance(self, step: int, loss: float) -> None:
        chance = math.log(self.vocabulary)
        self._above_chance = self._above_chance + 1 if loss > chance + 1 else 0
        if self._above_chance < _CHANCE_STEPS:
            return
        last = self.losses[: -self._above_chance][-SMOOTHED_STEPS:] or self.losses[:1]
        before = min(_mean(last), self._lowest)
        far = 2 * max(chance, before) + 1  # new weights are as bad as chance, with some noise
        if step < self.warmup_steps + _CHANCE_STEPS:
            recent = self.losses[-_FAR_STEPS:]
            self.diverged |= len(recent) == _FAR_STEPS and min(recent) > far
            return
        is_known = len(self.losses) - self._above_chance >= SMOOTHED_STEPS // 2
        self.diverged |= min(self.losses[-_CHANCE_STEPS:]) > far or (is_known and before < chance)

    def _judge_rise(self, step: int, mean: float) -> None:
        """Compare the last window with the best of those that it does not overlap."""
        self._means.append(mean)
        if len(self._means) <= SMOOTHED_STEPS:
            return
        former = self._means.pop(0)
        if former < self._best:
            self._best, self._best_step = former, self.steps[-SMOOTHED_STEPS - 1]
        if step <= self.warmup_steps + SMOOTHED_STEPS:
            return
        log_vocabulary, beginning = math.log(self.vocabulary), self._beginning()
        noise = math.sqrt(_mean(self._squares) / 2)  # of a step, from those of its neighbours
        error = noise * math.sqrt(2 / SMOOTHED_STEPS)  # of the difference of two windows
        rise = max(_LEAST_RISE * log_vocabulary, _STANDARD_ERRORS * error)
        # The beginning alone tells less, as it is few steps. It has to do for an early rise.
        few = noise * math.sqrt(1 / _BEGINNING + 1 / SMOOTHED_STEPS)
        early = beginning + max(_LEAST_RISE * log_vocabulary, _STANDARD_ERRORS * few)
        least = 0.0 if self.shuffled else _NO_LANGUAGE * log_vocabulary
        is_above = mean > max(min(max(beginning, self._best) + rise, early), least)
        half = self._best + 0.5 * max(beginning - self._best, 0.0)
        is_lost = self.shuffled and mean > max(half, self._best + rise)
        self._above_beginning = self._above_beginning + 1 if is_above else 0
        self._half_lost = self._half_lost + 1 if is_lost else 0
        is_long = self._above_beginning >= _ABOVE_BEGINNING or self._half_lost >= _HALF_LOST
        self.diverged |= is_long and mean > former - error

    def _beginning(self) -> float:
        """The loss before training did anything: a rate that is far too high does harm at once."""
        return min(self.losses[0], _mean(self.losses[:_BEGINNING]))


def lower_rate(settings: Settings) -> str:
    """A LEARNING_RATE to try next, as Python code: a fifth, and not more than is usual."""
    bundled = settings.base_model in BUNDLED_MODELS
    usual = _USUAL_RATE_BUNDLED if bundled else _USUAL_RATE
    return python_text(float(f"{min(settings.learning_rate / 5, usual):.1g}"))


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
