"""What a run can be judged by while it trains: BEST_BY, and which way is better."""

from tinkersmith.errors import UserError
from tinkersmith.metrics.names import (
    KNOWN_SCORES,
    LOWER_IS_BETTER,
    may_give,
    metric_of,
    scores_named,
)
from tinkersmith.settings.fields import Settings

VALIDATION_LOSS = "validation_loss"
MAIN_SCORE = "final_answer"
JUDGE = "judge"  # asked by evaluations alone: each measurement would cost requests


def metrics_while_training(settings: Settings) -> list[str]:
    """METRICS without the judge."""
    return [name for name in settings.metrics if name != JUDGE]


def best_by(settings: Settings) -> str | None:
    """The measurement that decides which checkpoint is the best; None where nothing is measured."""
    if settings.best_by != "auto":
        return settings.best_by
    if settings.validation_files or settings.validation_ratio:
        return VALIDATION_LOSS
    return shown_score(settings) if settings.eval_files else None


def shown_score(settings: Settings) -> str:
    """The score on EVAL_FILES that counts where BEST_BY names none."""
    scores = scores_named(metrics_while_training(settings))
    return MAIN_SCORE if MAIN_SCORE in scores or not scores else scores[0]


def check_scores_are_measured(settings: Settings) -> None:
    """Refuse a BEST_BY that METRICS does not measure on EVAL_FILES.

    This is for training alone: an evaluation may be given other METRICS than its run had.

    Raises:
        UserError: nothing measures it.
    """
    names, by = metrics_while_training(settings), settings.best_by
    if not names and settings.eval_files:
        raise UserError(
            'METRICS names "judge" alone, and the judge is not asked during training because of '
            f'its cost: nothing scores EVAL_FILES. Add "{MAIN_SCORE}" to METRICS, or remove '
            "EVAL_FILES."
        )
    if by in ("auto", VALIDATION_LOSS) or may_give(names, by):
        return
    if by == JUDGE:
        raise UserError(
            'BEST_BY is "judge", and the judge is not asked during training because of its cost. '
            f'Name another score, such as "{MAIN_SCORE}".'
        )
    metric = metric_of(by)
    raise UserError(
        f'BEST_BY is "{by}", which METRICS does not measure. Add "{metric}" to METRICS, or name '
        f"one of {', '.join(scores_named(names))}."
    )


def measurement_name(by: str) -> str:
    """The name of a measurement in metrics.jsonl."""
    return by if by == VALIDATION_LOSS else f"eval/{by}"


def is_better(by: str, value: float, best: float) -> bool:
    """Whether a value is better than the best one before it. An equal one is not."""
    return value < best if by in (VALIDATION_LOSS, *LOWER_IS_BETTER) else value > best


def is_told_in_percent(by: str) -> bool:
    """Whether a score always lies between 0 and 1. One of the user's own may be any number."""
    return by in KNOWN_SCORES and by not in LOWER_IS_BETTER


def score_text(by: str, value: float, interval: tuple[float, float] | None, n: int) -> str:
    """A score for the user: "62.0 % (52.2 to 70.9 %, n = 100)", or "4.31 (3.9 to 4.72, n = 100)".

    Args:
        n: questions; 0 leaves them out.
    """
    if is_told_in_percent(by):
        text = f"{100 * value:.1f} %"
        ends = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
    else:
        text = f"{value:.4g}"
        ends = "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
    inside = ", ".join(part for part in (ends, f"n = {n:,}" if n else "") if part)
    return f"{text} ({inside})" if inside else text
