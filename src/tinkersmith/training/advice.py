"""A finished run's curves and settings -> a few lines of plain advice that can be followed.

No line names a setting that is already so, or a value beyond the model or the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median

from tinkersmith.command_line import command_line
from tinkersmith.settings.fields import Settings
from tinkersmith.training.divergence import lower_rate

_NEAR_ZERO = 0.02  # loss: 98 % of the probability on every right token
_END = 50  # steps, at most, that tell whether the loss is near 0
_MOST_EPOCHS, _MOST_BATCH = 1000, 65536  # of the settings
_MOST_LEFT_OUT = 0.5  # of the samples
_FEW = 10  # steps, with which a rise may be noise
_BEGINNING, _WINDOW = 3, 20  # steps whose mean is taken
_NO_LANGUAGE = 0.4  # of ln(vocabulary): a pretrained model loses less on any text


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run came to, as far as advice needs it."""

    settings: Settings
    vocabulary: int  # tokens
    samples: int  # trained on
    max_length: int  # tokens of a sample
    context: int | None = None  # tokens that the model holds; None: not known
    truncated: int = 0  # of `samples`
    longest: int = 0  # tokens of the longest of them, before it was cut; 0: not known
    epoch_losses: Sequence[float] = field(default_factory=list[float])
    step_losses: Sequence[float] = field(default_factory=list[float])
    validation_losses: Sequence[float] = field(default_factory=list[float])  # as they were measured
    best_checkpoint: str = ""  # the name of the one with the lowest validation loss
    earlier_best: str = ""  # the name of the best checkpoint by BEST_BY, if it is not the last
    hard_samples: str = ""  # a sentence about them
    test_file: str = "data/test_set.json"

    @property
    def wants_validation(self) -> bool:
        return bool(self.settings.validation_files or self.settings.validation_ratio)


def advice(outcome: RunOutcome) -> list[str]:
    """What the curves suggest for the next run; empty if they suggest nothing."""
    rising = _diverged(outcome) or _rose_between(outcome)
    near_zero = _ends_near_zero(outcome.step_losses)
    lines = [rising] if rising else []
    if not rising:
        memorises = _validation_rises(outcome)
        lines += memorises or ([] if near_zero or outcome.earlier_best else _falls(outcome))
        if _is_noisy(outcome.step_losses):
            lines.append(_smoother(outcome))
    lines += _cut(outcome)
    if near_zero:
        lines.append(_memorised(outcome))
    lines += _validation(outcome)
    # After a rise, the losses of samples tell which batch fell into it.
    if outcome.hard_samples and not rising:
        lines.append(outcome.hard_samples)
    return lines


def _diverged(outcome: RunOutcome) -> str:
    """That the loss ended clearly above where it began, or worse than chance; "" if not."""
    losses, chance = outcome.step_losses, math.log(outcome.vocabulary)
    if len(losses) < 2:
        return ""
    ends = losses[-max(len(losses) // 5, min(3, len(losses) - 1)) :]
    begin, end = _mean(losses[: min(3, len(losses) - len(ends))]), _mean(ends)
    begin = min(begin, losses[0])
    error = _noise(losses) * math.sqrt(1 / len(ends) + 1)  # the beginning may be one step
    is_above = len(losses) >= _FEW and end > begin + max(4 * error, 0.05 * chance)
    is_worse_than_chance = end > chance + 1 and (begin < chance or end > 2 * begin + 1)
    if not (is_above or is_worse_than_chance):
        return ""
    clip = "" if outcome.settings.grad_clip_norm else " and GRAD_CLIP_NORM = 1.0"
    against = f"above the {begin:.4g} it began with"
    if is_worse_than_chance:
        against += f", and above {chance:.1f}, which is as good as chance"
    return (
        f"The training loss rose: it ended at {end:.4g}, {against}. {_of_no_use(outcome)} Start "
        f"a new run with LEARNING_RATE = {lower_rate(outcome.settings)} or lower{clip}."
    )


def _of_no_use(outcome: RunOutcome) -> str:
    """What a loss that rose at the end says about the model that evaluate and export take."""
    if not outcome.earlier_best:
        return "This model is of no use."
    return (
        f"The weights at its end are of no use. Evaluate and export take {outcome.earlier_best}, "
        "which was measured to be the best: compare it with the base model before you use it "
        f"({command_line('evaluate', '--compare-base')})."
    )


def _rose_between(outcome: RunOutcome) -> str:
    """That the loss rose far above its beginning and came back; "" if not."""
    losses, chance = outcome.step_losses, math.log(outcome.vocabulary)
    width = min(_WINDOW, len(losses) // 3)
    if width < _BEGINNING:
        return ""
    begin = _mean(losses[:_BEGINNING])
    sums = [0.0, *accumulate(losses)]
    means = [(after - before) / width for before, after in zip(sums, sums[width:], strict=False)]
    peak = max(range(len(means)), key=means.__getitem__)
    error = _noise(losses) * math.sqrt(1 / _BEGINNING + 1 / width)
    window = losses[peak : peak + width]
    is_above = min(means[peak], median(window)) > max(
        begin + max(8 * error, 0.3 * chance), _NO_LANGUAGE * chance
    )
    # An explosion is noisy itself. No sound model is long worse than chance, whatever the noise.
    is_worse_than_chance = begin < chance and min(window) > chance + 1
    if not (is_above or is_worse_than_chance):
        return ""
    before, after = min([begin, *means[:peak]]), _mean(losses[-width:])
    return (
        f"The training loss rose in between, from {before:.3g} to {means[peak]:.3g}, and ended at "
        f"{after:.3g}. A new run with LEARNING_RATE = {lower_rate(outcome.settings)} or lower may "
        "do better."
    )


def _validation_rises(outcome: RunOutcome) -> list[str]:
    losses = outcome.validation_losses
    if len(losses) < 2 or losses[-1] <= 1.02 * min(losses):
        return []
    remedies = ["fewer epochs" if outcome.settings.num_epochs > 1 else "a lower LEARNING_RATE"]
    if outcome.best_checkpoint:
        remedies.append(
            f"the checkpoint with the lowest value, {outcome.best_checkpoint} (evaluate and "
            f"export: --checkpoint {outcome.best_checkpoint})"
        )
    return [
        f"The validation loss rose from {min(losses):.4f} to {losses[-1]:.4f}: the model begins to "
        f"memorise. Use {', or '.join(remedies)}."
    ]


def _falls(outcome: RunOutcome) -> list[str]:
    epochs, steps = outcome.epoch_losses, outcome.step_losses
    if len(epochs) > 1:
        before, after, what = epochs[-2], epochs[-1], "the last epoch"
    elif len(steps) >= 20:
        fifth = len(steps) // 5
        before, after = _mean(steps[-2 * fifth : -fifth]), _mean(steps[-fifth:])
        what = "the last fifth of the run"
    else:
        return []
    if after > 0.9 * before or outcome.settings.num_epochs >= _MOST_EPOCHS:
        return []
    return [f"The loss still fell by {1 - after / before:.0%} in {what}. More NUM_EPOCHS may help."]


def _ends_near_zero(losses: Sequence[float]) -> bool:
    """Whether the last fifth is: an only epoch began high, whatever it came to."""
    count = max(min(len(losses) // 5, _END), min(len(losses), _FEW))
    return count > 0 and _mean(losses[-count:]) < _NEAR_ZERO


def _is_noisy(step_losses: Sequence[float]) -> bool:
    """Whether neighbouring steps of the second half differ by much more than the loss itself."""
    half = list(step_losses[len(step_losses) // 2 :])
    if len(half) < 20:
        return False
    jumps = sum(abs(a - b) for a, b in pairwise(half)) / (len(half) - 1)
    return jumps > 0.75 * _mean(half) and _mean(half) > 0.1


def _smoother(outcome: RunOutcome) -> str:
    batch = outcome.settings.batch_size
    larger = " or a larger BATCH_SIZE" if batch < min(outcome.samples, _MOST_BATCH) else ""
    return f"The loss jumps from step to step. A lower LEARNING_RATE{larger} makes it smoother."


def _cut(outcome: RunOutcome) -> list[str]:
    share = outcome.truncated / max(outcome.samples, 1)
    if share <= 0.05:
        return []
    remedies: list[str] = []
    if outcome.context is None or outcome.max_length < outcome.context:
        remedies.append(f"raise MAX_SEQUENCE_LENGTH{_up_to(outcome)}")
    else:
        remedies.append("shorten them")
    if share <= _MOST_LEFT_OUT:
        remedies.append("leave them out with TRUNCATE_LONG_SEQUENCES = False")
    what = f"were cut at {outcome.max_length:,} tokens"
    if outcome.max_length == outcome.context:
        what += ", which is all that the model holds"
    remedy = ", or ".join(remedies)
    return [f"{share:.0%} of the training samples {what}. {remedy[0].upper()}{remedy[1:]}."]


def _up_to(outcome: RunOutcome) -> str:
    """The MAX_SEQUENCE_LENGTH that cuts no sample, or else the largest."""
    if outcome.longest and (outcome.context is None or outcome.longest <= outcome.context):
        return f" to {outcome.longest:,}, which cuts none"
    return "" if outcome.context is None else f", up to {outcome.context:,}"


def _memorised(outcome: RunOutcome) -> str:
    line = (
        "The training loss is near 0: the task may be easy, or the model may have memorised the "
        "samples."
    )
    if outcome.validation_losses:
        return f"{line} The validation loss, {outcome.validation_losses[-1]:.4f}, tells which."
    if outcome.settings.eval_files:
        return f"{line} The scores on EVAL_FILES tell which."
    if Path(outcome.test_file).is_file():
        return f"{line} The test set tells which: {command_line('evaluate')}"
    split = command_line("split")
    return f"{line} Samples that are held out tell which; {split} sets some apart for a test."


def _validation(outcome: RunOutcome) -> list[str]:
    if outcome.validation_losses or (outcome.settings.eval_files and not outcome.wants_validation):
        return []
    if outcome.wants_validation:
        return [
            "The validation loss was not measured: not one validation sample fits into "
            f"{outcome.max_length:,} tokens. Use shorter ones."
        ]
    for ratio in (0.05, 0.1, 0.2, 0.5):
        if 0 < round(outcome.samples * ratio) < outcome.samples:
            return [
                f"There is no validation data. With VALIDATION_RATIO = {ratio} you see when to "
                "stop."
            ]
    return []


def _noise(losses: Sequence[float]) -> float:
    """The standard deviation of a step, from its difference to the next."""
    return math.sqrt(_mean([(after - before) ** 2 for before, after in pairwise(losses)]) / 2)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
