"""Loss curves -> a few lines of plain advice."""

from collections.abc import Sequence
from itertools import pairwise

_NEAR_ZERO = 0.02  # mean loss of an epoch: 98 % of the probability on every right token


def advice(
    epoch_losses: Sequence[float],
    validation_losses: Sequence[float],
    step_losses: Sequence[float],
    truncated_share: float,
) -> list[str]:
    """What the curves suggest for the next run; empty if they suggest nothing.

    Args:
        epoch_losses: the mean loss of each epoch.
        validation_losses: in the order in which they were measured.
        step_losses: the loss of each step.
        truncated_share: the share of the samples that were truncated, from 0 to 1.
    """
    lines: list[str] = []
    near_zero = bool(epoch_losses) and epoch_losses[-1] < _NEAR_ZERO
    if rising := _rising(validation_losses):
        lines.append(rising)
    elif not near_zero and (falling := _falling(epoch_losses, step_losses)):
        lines.append(falling)
    if _noisy(step_losses):
        lines.append(
            "The loss jumps from step to step. A lower LEARNING_RATE or a larger BATCH_SIZE "
            "makes it smoother."
        )
    if truncated_share > 0.05:
        lines.append(
            f"{truncated_share:.0%} of the samples were cut and have no end. Raise "
            "MAX_SEQUENCE_LENGTH, or set TRUNCATE_LONG_SEQUENCES = False."
        )
    if near_zero:
        lines.append(
            "The training loss is near 0: the task may be easy, or the model may have memorised "
            "the samples. Check the test set."
        )
    if not validation_losses:
        lines.append(
            "There is no validation data. With VALIDATION_RATIO = 0.05 you see when to stop."
        )
    return lines


def _rising(validation_losses: Sequence[float]) -> str | None:
    if len(validation_losses) < 2:
        return None
    best = min(validation_losses)
    if validation_losses[-1] <= 1.02 * best:
        return None
    return (
        f"The validation loss rose from {best:.4f} to {validation_losses[-1]:.4f}: the model "
        "begins to memorise. Use fewer epochs, or the checkpoint with the lowest value."
    )


def _falling(epoch_losses: Sequence[float], step_losses: Sequence[float]) -> str | None:
    if len(epoch_losses) > 1:
        before, after, what = epoch_losses[-2], epoch_losses[-1], "the last epoch"
    elif len(step_losses) >= 20:
        fifth = len(step_losses) // 5
        before = sum(step_losses[-2 * fifth : -fifth]) / fifth
        after, what = sum(step_losses[-fifth:]) / fifth, "the last fifth of the run"
    else:
        return None
    if after > 0.9 * before:
        return None
    return f"The loss still fell by {1 - after / before:.0%} in {what}. More NUM_EPOCHS may help."


def _noisy(step_losses: Sequence[float]) -> bool:
    """Whether neighbouring steps of the second half differ by much more than the loss itself."""
    half = list(step_losses[len(step_losses) // 2 :])
    if len(half) < 20:
        return False
    jumps = sum(abs(a - b) for a, b in pairwise(half)) / (len(half) - 1)
    return jumps > 0.75 * sum(half) / len(half) and sum(half) / len(half) > 0.1
