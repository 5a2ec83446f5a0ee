"""What a run can be judged by while it trains: BEST_BY, and which way is better."""

from tinkersmith.settings.fields import Settings

VALIDATION_LOSS = "validation_loss"
ANSWER_SCORES = ("final_answer", "exact_match", "contains_answer")  # measured on EVAL_FILES
_LOWER_IS_BETTER = (VALIDATION_LOSS,)


def best_by(settings: Settings) -> str | None:
    """The measurement that decides which checkpoint is the best; None where nothing is measured."""
    if settings.best_by != "auto":
        return settings.best_by
    if settings.validation_files or settings.validation_ratio:
        return VALIDATION_LOSS
    return ANSWER_SCORES[0] if settings.eval_files else None


def measurement_name(by: str) -> str:
    """The name of a measurement in metrics.jsonl."""
    return by if by == VALIDATION_LOSS else f"eval/{by}"


def is_better(by: str, value: float, best: float) -> bool:
    """Whether a value is better than the best one before it. An equal one is not."""
    return value < best if by in _LOWER_IS_BETTER else value > best
