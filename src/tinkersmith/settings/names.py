"""A name that a user wrote -> the setting that it means, or the sentence that it is none."""

import difflib
import os
import re
from dataclasses import dataclass

from tinkersmith.errors import UserError, one_line
from tinkersmith.settings.fields import FIELDS

LARGEST_SETTINGS_FILE = 10_000_000  # bytes
# What is set in the environment, where a run does not store it.
ENVIRONMENT = (
    "TINKER_API_KEY",
    "TINKER_BASE_URL",
    "TINKER_CREDENTIAL_CMD",
    "TINKERSMITH_ENGINE_KEY",
    "TINKERSMITH_DASHBOARD_KEY",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "JUDGE_API_KEY",
)
# What other tools call these settings.
_ALIASES = {
    "LR": "LEARNING_RATE",
    "EPOCHS": "NUM_EPOCHS",
    "NUM_TRAIN_EPOCHS": "NUM_EPOCHS",
    "MODEL": "BASE_MODEL",
    "MODEL_NAME": "BASE_MODEL",
    "MODEL_NAME_OR_PATH": "BASE_MODEL",
    "RANK": "LORA_RANK",
    "LORA_R": "LORA_RANK",
    "MAX_LENGTH": "MAX_SEQUENCE_LENGTH",
    "MAX_SEQ_LEN": "MAX_SEQUENCE_LENGTH",
    "MAX_SEQ_LENGTH": "MAX_SEQUENCE_LENGTH",
    "CUTOFF_LEN": "MAX_SEQUENCE_LENGTH",
    "BATCH": "BATCH_SIZE",
    "TRAIN_BATCH_SIZE": "BATCH_SIZE",
    "PER_DEVICE_TRAIN_BATCH_SIZE": "BATCH_SIZE",
    "DATA": "DATA_FILES",
    "DATA_PATH": "DATA_FILES",
    "DATASET": "DATA_FILES",
    "TRAIN_FILE": "DATA_FILES",
    "TRAIN_FILES": "DATA_FILES",
    "VAL_FILES": "VALIDATION_FILES",
    "EVAL_DATA": "EVAL_FILES",
    "EVAL_SAMPLES": "EVAL_LIMIT",
    "METRIC_FOR_BEST_MODEL": "BEST_BY",
    "EARLY_STOPPING": "PATIENCE",
    "EARLY_STOPPING_PATIENCE": "PATIENCE",
    "VAL_RATIO": "VALIDATION_RATIO",
    "VAL_SIZE": "VALIDATION_RATIO",
    "TEMPLATE": "PROMPT_TEMPLATE",
    "CHAT_TEMPLATE": "PROMPT_TEMPLATE",
    "MAX_TOKENS": "SAMPLING_MAX_TOKENS",
    "MAX_NEW_TOKENS": "SAMPLING_MAX_TOKENS",
    "TEMPERATURE": "SAMPLING_TEMPERATURE",
    "MAX_GRAD_NORM": "GRAD_CLIP_NORM",
    "LR_SCHEDULER_TYPE": "LR_SCHEDULE",
    "SAVE_STEPS": "SAVE_EVERY",
    "EVAL_STEPS": "EVAL_EVERY",
    "OUT_DIR": "OUTPUT_DIR",
    "OUTPUT_FOLDER": "OUTPUT_DIR",
    "METRIC": "METRICS",
    "JUDGE": "JUDGE_MODEL",
    "JUDGE_BASE_URL": "JUDGE_URL",
    "JUDGE_PROMPT": "JUDGE_RUBRIC",
}
# Settings of other tools that this one does not have, and why. See docs/decisions/0016.
_NO_ALPHA = (
    "a server of this API decides it, and the SDK has no word for it (our own engine: 32). Twice "
    "the alpha is about as much as twice the LEARNING_RATE."
)
_NO_LOSS = (
    "samples with an expected answer can feed one loss alone, cross_entropy. The others need the "
    "log-probabilities and advantages of sampled answers, as tinkersmith improve has them."
)
_NO_TARGETS = "TRAIN_ATTN, TRAIN_MLP and TRAIN_UNEMBED choose the layers that get a LoRA."
_ABSENT = {
    "LORA_ALPHA": _NO_ALPHA,
    "ALPHA": _NO_ALPHA,
    "LORA_DROPOUT": "the SDK has no dropout for a LoRA. Fewer NUM_EPOCHS overfit less.",
    "LOSS": _NO_LOSS,
    "LOSS_FN": _NO_LOSS,
    "LOSS_TYPE": _NO_LOSS,
    "LOSS_FUNCTION": _NO_LOSS,
    "TARGET_MODULES": _NO_TARGETS,
    "LORA_TARGET_MODULES": _NO_TARGETS,
    "LORA_TARGET": _NO_TARGETS,
    "GRADIENT_ACCUMULATION_STEPS": "BATCH_SIZE counts all samples of a step, however many fit into "
    "memory at a time.",
}
_KEY_NAMES = ("API_KEY", "TINKER_KEY", "TINKER_TOKEN", "TINKER_API_TOKEN")
_JUDGE_KEY_NAMES = ("JUDGE_KEY", "JUDGE_TOKEN", "OPENAI_API_KEY", "OPENAI_KEY")
_CLOSE = 0.8  # of difflib: "learning_rates" and "lora_rnk" are, "batch" and "size" are not


@dataclass(frozen=True, slots=True)
class Given:
    """A value as the user gave it, and where: "config.py, line 3", or "--set"."""

    value: object
    where: str


def field_named(name: str, where: str, *, any_case: bool = False) -> str:
    """The field that a setting's name means.

    Args:
        where: the place to name in an error.
        any_case: whether "lora_rank" is a way to write LORA_RANK.

    Raises:
        UserError: there is no such setting.
    """
    field = name.lower()
    if field in FIELDS and (any_case or name.isupper()):
        return field
    raise not_a_setting(name, where)


def not_a_setting(name: str, where: str) -> UserError:
    """The sentence that `name` is none, with the setting that is meant."""
    place = f"{where}: " if where else ""
    plain = _plain(name)
    if is_of_environment(name):
        other = "JUDGE_API_KEY" if plain in _JUDGE_KEY_NAMES else "TINKER_API_KEY"
        meant = plain if plain in ENVIRONMENT else other
        return UserError(
            f"{place}{name} is not a setting. Set {'it' if name == meant else meant} in the "
            f"environment, where it is not saved with the run: {_export(meant)}"
        )
    if plain in _ABSENT:
        return UserError(f"{place}{one_line(name)} is not a setting: {_ABSENT[plain]}")
    if plain.lower() in FIELDS:
        return UserError(f"{place}{one_line(name)} is not a setting; write {plain}.")
    near = setting_close_to(name, 0.6)
    advice = f"did you mean {near}?" if near else "config.py of `tinkersmith init` has all of them."
    if not near and ".py" in where:
        advice += " Write names of your own in lower case."
    return UserError(f"{place}{one_line(name)} is not a setting; {advice}")


def is_of_environment(name: str) -> bool:
    """Whether a name is that of a key or an address, which the environment holds."""
    plain = _plain(name)
    return plain in (*ENVIRONMENT, *_KEY_NAMES, *_JUDGE_KEY_NAMES)


def setting_close_to(name: str, cutoff: float = _CLOSE) -> str | None:
    """The setting, key or address that `name` looks like; None for a name of the user's own.

    A setting of other tools that this one does not have is returned as it is.
    """
    plain = _plain(name)
    if is_of_environment(name) or plain in _ABSENT:
        return plain
    if plain in _ALIASES:
        return _ALIASES[plain]
    known = [field.upper() for field in FIELDS]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def _plain(name: str) -> str:
    """The form of our names: LEARNING_RATE for "learning-rate" and "learningRate"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[^A-Z0-9]+", "_", words.upper()).strip("_")


def _export(name: str) -> str:
    """The command that sets a variable of the environment."""
    return f'$env:{name} = "..."' if os.name == "nt" else f'export {name}="..."'
