"""The options of an improvement, checked: how many answers, which of them count, how often."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.settings.spelling import read_overrides

REJECTION, GRPO = "rejection", "grpo"
METHODS = (REJECTION, GRPO)
EPOCHS_OF_ROUND = 2  # the default of NUM_EPOCHS

# Settings of the run that an improvement may change. The others decide what a prompt and a token
# are, or have no effect.
_OF_BOTH = (
    *("DATA_FILES", "COLUMNS", "ENCODING", "EVAL_FILES", "EVAL_LIMIT", "METRICS", "BEST_BY"),
    *("LEARNING_RATE", "LR_SCHEDULE", "WARMUP_RATIO", "GRAD_CLIP_NORM", "BATCH_SIZE", "SEED"),
    *("OPTIMIZER", "WEIGHT_DECAY", "ADAM_BETAS", "TOKENIZER"),
    *("SAMPLING_MAX_TOKENS", "SAMPLING_TEMPERATURE", "SAMPLING_NUM_SAMPLES"),
    *("MODEL_NAME_PREFIX", "OUTPUT_DIR", "SERVER_PATIENCE", "CHECKPOINT_TTL_DAYS"),
)
_OF_TRAINING = (
    *("NUM_EPOCHS", "MAX_SEQUENCE_LENGTH", "TRUNCATE_LONG_SEQUENCES", "SHOW_LENGTH_WARNINGS"),
    *("SAVE_EVERY", "SAVE_EVERY_MINUTES", "KEEP_LAST", "STOP_ON_DIVERGENCE"),
)


@dataclass(frozen=True, slots=True)
class ImproveOptions:
    """How a run is improved. Make it with `checked_options`."""

    method: str = REJECTION
    rounds: int = 3  # at most
    answers: int = 8  # to each training question
    limit: int = 0  # training questions; 0: all
    temperature: float = 1.0  # of the answers to training questions
    keep: int = 4  # rejection: different accepted answers to a question that are trained on
    mix: bool = True  # rejection: the original samples are trained on as well
    updates: int = 1  # grpo: optimizer steps on the answers of a step

    def to_json(self) -> dict[str, Any]:
        of_other = ("updates",) if self.method == REJECTION else ("keep", "mix")
        return {name: value for name, value in asdict(self).items() if name not in of_other}


_RANGES: dict[str, tuple[float, float, str]] = {
    "rounds": (1, 1000, "3"),
    "answers": (2, 128, "8 to 16"),
    "keep": (1, 128, "2 to 4"),
    "limit": (0, 10**9, "0 for all questions"),
    "temperature": (0.05, 2, "1"),
    "updates": (1, 64, "1 to 4"),
}


def checked_options(given: Mapping[str, Any]) -> ImproveOptions:
    """The options with their defaults.

    Args:
        given: what the user set, by the names of `ImproveOptions`; None is the default.

    Raises:
        UserError: a value is out of its range, or has no effect on the method.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    options = ImproveOptions(**chosen)
    if "keep" not in chosen:
        options = replace(options, keep=min(options.keep, options.answers))
    if options.method not in METHODS:
        raise UserError(f"--method is {options.method!r}; it must be {' or '.join(METHODS)}.")
    for name, (low, high, usual) in _RANGES.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UserError(
                f"--{name} is {value}; it must be between {low:,} and {high:,} (a usual choice: "
                f"{usual})."
            )
    if options.method == GRPO:
        for name, words in (("keep", "--keep"), ("mix", "--alone")):
            if name in chosen:
                raise UserError(
                    f"{words} has no effect with --method grpo, which learns from all answers. "
                    "Leave it out."
                )
        if options.temperature != 1:
            raise UserError(
                f"--temperature is {options.temperature}; --method grpo needs 1: the losses "
                "compare the probabilities of the model as it is. Leave it out."
            )
    elif "updates" in chosen:
        raise UserError("--updates has no effect without --method grpo. Leave it out.")
    if options.method == REJECTION and options.keep > options.answers:
        raise UserError(
            f"--keep is {options.keep}, and only {options.answers} answers are sampled to a "
            "question. Lower it, or raise --answers."
        )
    return options


def options_of(run: RunFolder, facts: Mapping[str, Any]) -> ImproveOptions:
    """The options that an improvement began with.

    Raises:
        UserError: settings.json is damaged.
    """
    known = {name: facts[name] for name in ImproveOptions.__slots__ if name in facts}
    try:
        return checked_options(known)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{run.file('settings.json')} is damaged: {error} Restore the file from a backup, or "
            "start a new improvement."
        ) from None


def settings_of_improvement(
    parent: Settings, overrides: Sequence[str], questions: str, seed: int | None, method: str
) -> Settings:
    """The settings of the run that is improved, with what the user changes.

    The questions of EVAL_FILES are all asked, unless EVAL_LIMIT is set, and a round has
    EPOCHS_OF_ROUND epochs, unless NUM_EPOCHS is: the run's own number was chosen for other data.

    Args:
        questions: a file of held-out questions in place of EVAL_FILES; "" for those.

    Raises:
        UserError: a setting has no effect here, or its value is wrong; no held-out questions.
    """
    takes = _OF_BOTH if method == GRPO else (*_OF_BOTH, *_OF_TRAINING)
    for override in overrides:
        name = override.partition("=")[0].strip().upper()
        if name.lower() in FIELDS and name not in takes:
            reason = "an improvement goes on with the run's own"
            if name in _OF_TRAINING:
                reason = "--method grpo has no epochs and saves after each round"
            raise UserError(
                f"--set {override} has no effect on improve: {reason}. It takes {', '.join(takes)}."
            )
    changed = {
        field.upper(): given.value for field, given in read_overrides(list(overrides)).items()
    }
    if questions:
        _refuse_both("--questions", "EVAL_FILES", changed)
        changed["EVAL_FILES"] = [questions]
    if seed is not None:
        _refuse_both("--seed", "SEED", changed)
        changed["SEED"] = seed
    own = {name.upper(): value for name, value in parent.model_dump().items()}
    alone: dict[str, Any] = {
        "VALIDATION_FILES": [],
        "VALIDATION_RATIO": 0.0,
        "PATIENCE": 0,
        "EVAL_LIMIT": 0,
        "NUM_EPOCHS": EPOCHS_OF_ROUND,
        "TRACKERS": [],
        "BUDGET_USD": 0.0,
        "BUDGET_MINUTES": 0.0,
    }
    if parent.best_by in ("auto", "validation_loss"):
        alone["BEST_BY"] = "auto"
    if not changed.get("EVAL_FILES", parent.eval_files):
        raise UserError(
            "The score after each round needs questions that are held out, and the run has no "
            "EVAL_FILES. Name a file of questions with their answers: --questions FILE."
        )
    return settings_from(
        {**own, **alone, "EXPORT_AFTER_TRAINING": "no", "EVAL_EVERY": 0, **changed}
    )


def budget_lines(run: RunFolder) -> list[str]:
    """What is said of the budgets of a run that is improved."""
    settings = run.settings()
    return [
        f"{name} of {run.name} is {value:g}. It limited that run, and does not limit this one."
        for name, value in (
            ("BUDGET_USD", settings.budget_usd),
            ("BUDGET_MINUTES", settings.budget_minutes),
        )
        if value
    ]


def _refuse_both(option: str, name: str, changed: Mapping[str, object]) -> None:
    if name in changed:
        raise UserError(f"{option} and --set {name} say the same. Leave one of the two out.")


def fact_of_improvement(run: RunFolder, facts: Mapping[str, Any], name: str) -> str:
    """A string that settings.json holds of an improvement.

    Raises:
        UserError: it is missing.
    """
    value = facts.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(
            f'{run.file("settings.json")} is damaged: "{name}" of the improvement is missing. '
            "Restore the file from a backup, or start a new improvement."
        )
    return value
