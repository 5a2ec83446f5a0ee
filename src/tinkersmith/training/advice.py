"""Loss curves -> a few lines of plain advice."""

from collections.abc import Sequence
from itertools import pairwise

_LEARNT = 0.02  # mean loss of an epoch: 98 % of the probability on every right token


def advice(
    epoch_losses: Sequence[float],
    validation_losses: Sequence[float],
    step_losses: Sequence[float],
    truncated_share: float,
) -> list[str]:
    """What the curves suggest for the next run; an empty list where they suggest nothing."""
    lines = []
    learnt = bool(epoch_losses) and epoch_losses[-1] < _LEARNT
    if rising := _rising(validation_losses):
        lines.append(rising)
    elif not learnt and (falling := _falling(epoch_losses, step_losses)):
        lines.append(falling)
    if _noisy(step_losses):
        lines.append(
            "The loss jumps from step to step: a lower LEARNING_RATE or a larger BATCH_SIZE "
            "makes it calmer."
        )
    if truncated_share > 0.05:
        lines.append(
            f"{truncated_share:.0%} of the answers were cut and have no end: raise "
            "MAX_SEQUENCE_LENGTH, or set TRUNCATE_LONG_SEQUENCES = False."
        )
    if learnt:
        lines.append(
            "The training loss is close to 0: either the answers follow surely from the "
            "questions, or the samples were learnt by heart. Only the test set tells."
        )
    if not validation_losses:
        lines.append("There was no validation data: VALIDATION_RATIO = 0.05 shows when to stop.")
    return lines


def _rising(validation_losses: Sequence[float]) -> str | None:
    if len(validation_losses) < 2:
        return None
    best = min(validation_losses)
    if validation_losses[-1] <= 1.02 * best:
        return None
    return (
        f"The validation loss rose from {best:.4f} to {validation_losses[-1]:.4f}: the model "
        "begins to learn by heart. Use fewer epochs, or the checkpoint with the lowest value."
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
    return f"The loss still fell by {1 - after / before:.0%} in {what}: more NUM_EPOCHS may help."


def _noisy(step_losses: Sequence[float]) -> bool:
    """Neighbouring steps of the second half differ by much more than the level of the loss."""
    half = list(step_losses[len(step_losses) // 2 :])
    if len(half) < 20:
        return False
    jumps = sum(abs(a - b) for a, b in pairwise(half)) / (len(half) - 1)
    return jumps > 0.75 * sum(half) / len(half) and sum(half) / len(half) > 0.1
