"""The metrics that a user can name in METRICS, and their own functions: "file.py:function"."""

import difflib
import re
from collections.abc import Sequence

from tinkersmith.errors import UserError, one_line

ALWAYS = ("exact_match", "final_answer", "contains_answer")  # what "auto" always has
METRIC_NAMES = (
    "auto",
    *ALWAYS,
    "token_f1",
    "rouge_l",
    "bleu",
    "perplexity",
    "json",
    "labels",
    "judge",
)
# The scores of each metric, the one that best tells a good checkpoint first.
_SCORES = {name: (name,) for name in (*ALWAYS, "token_f1", "rouge_l", "judge")} | {
    "bleu": ("sentence_bleu",),
    "perplexity": ("perplexity", "bits_per_byte"),
    "json": ("json_match", "json_valid", "json_fields"),
    "labels": ("label",),
    "auto": ("final_answer", "exact_match", "contains_answer"),
}
KNOWN_SCORES: tuple[str, ...] = tuple(
    dict.fromkeys(score for scores in _SCORES.values() for score in scores)
)
LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
# What other tools call these metrics.
_OTHER_NAMES = {
    "rouge": "rouge_l",
    "rougel": "rouge_l",
    "rouge_chinese": "rouge_l",
    "sacrebleu": "bleu",
    "f1": "token_f1",
    "em": "exact_match",
    "ppl": "perplexity",
    "bits_per_byte": "perplexity",
    "accuracy": "final_answer",
    "classification": "labels",
    "macro_f1": "labels",
    "confusion_matrix": "labels",
    "llm_judge": "judge",
}


def user_function(name: str) -> tuple[str, str] | None:
    """The file and the function of "file.py:function"; None for another name."""
    file, colon, function = name.rpartition(":")
    return (file, function) if colon and file.lower().endswith(".py") else None


def scores_named(names: Sequence[str]) -> tuple[str, ...]:
    """The scores that METRICS surely gives; a function of the user's may give others by a dict."""
    scores: list[str] = []
    for name in names:
        function = user_function(name)
        scores += _SCORES[name] if function is None else (function[1],)
    return tuple(dict.fromkeys(scores))


def may_give(names: Sequence[str], score: str) -> bool:
    """Whether METRICS gives a score, with some data or by a dict of a user's function."""
    if score in scores_named(names):
        return True
    if "auto" in names and score in (*_SCORES["json"], *_SCORES["labels"]):
        return True
    functions = [function[1] for name in names if (function := user_function(name))]
    return any(score.startswith(f"{function}_") for function in functions)


def metric_of(score: str) -> str | None:
    """The metric to add to METRICS for a score; None for an unknown score."""
    return next((name for name, scores in _SCORES.items() if score in scores), None)


def check_metric_names(names: Sequence[str]) -> None:
    """Refuse names that are no metrics.

    Raises:
        UserError: the list is empty, or a name is unknown or occurs twice.
    """
    if not names:
        raise UserError('METRICS is empty; write ["auto"] for the usual ones.')
    for name in names:
        function = user_function(name)
        if function is not None:
            if not function[1].isidentifier():
                raise UserError(
                    f'METRICS names "{one_line(name)}"; after the colon stands the name of a '
                    "function of that file."
                )
        elif name not in METRIC_NAMES:
            raise UserError(_unknown(name))
        if names.count(name) > 1:
            raise UserError(f'METRICS names "{one_line(name)}" twice. Name it once.')
    again = [name for name in ALWAYS if name in names] if "auto" in names else []
    if again:
        raise UserError(f'METRICS names "auto" and "{again[0]}", which "auto" has. Remove it.')


def _unknown(name: str) -> str:
    plain = re.sub(r"\W+", "_", name.strip().lower()).strip("_")
    near = _OTHER_NAMES.get(plain) or next(
        iter(difflib.get_close_matches(plain, METRIC_NAMES, n=1, cutoff=0.75)), None
    )
    meant = f"Did you mean {near}? " if near else ""
    return (
        f'METRICS names "{one_line(name)}", which is no metric. {meant}The metrics are '
        f'{", ".join(METRIC_NAMES)}; a function of your own is "file.py:function".'
    )
