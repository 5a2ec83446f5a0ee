"""The user's settings: every name, type, range, default and help text, in one typed place.

Users write them upper-case in config.py or as --set NAME=VALUE; code reads `settings.lora_rank`.
Names of files in a `Settings` value are as seen from the current folder.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from tinkersmith.errors import UserError, one_line
from tinkersmith.metrics.names import check_metric_names
from tinkersmith.settings.tracker_names import check_tracker_names

# How often an epoch may take a file: beyond these, a smaller or larger file is what is meant.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 0.001, 1000.0
FILE_FIELDS = ("data_files", "validation_files", "eval_files")  # those that name data files


def _as_file_list(value: object) -> object:
    if isinstance(value, str | os.PathLike):
        names: Sequence[object] = [cast(object, value)]
    elif isinstance(value, list | tuple):
        names = cast(Sequence[object], value)
    else:
        return value
    return [
        os.fspath(cast("os.PathLike[str]", name)) if isinstance(name, os.PathLike) else name
        for name in names
    ]


def _as_files_with_weights(value: object) -> object:
    if not isinstance(value, Mapping):
        return _as_file_list(value)
    if not value:
        return cast(object, value)
    weights: dict[object, float] = {}
    for key, weight in cast(Mapping[object, object], value).items():
        name = os.fspath(cast("os.PathLike[str]", key)) if isinstance(key, os.PathLike) else key
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"DATA_FILES names {python_text(name)}; it must be the name of a file.")
        weights[name] = _checked_weight(name, weight)
    return weights


def _checked_weight(name: str, weight: object) -> float:
    shown = f"DATA_FILES gives {one_line(name)} the weight {python_text(weight)}"
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        if weight == 0:
            raise UserError(f"{shown}, so that it is never trained on. Remove the file.")
        if SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:  # which NaN is not
            return float(weight)
    raise UserError(
        f"{shown}; it must be a number between {SMALLEST_WEIGHT:g} and {LARGEST_WEIGHT:g}: how "
        "often an epoch takes the file."
    )


def _without_weights(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Mapping):
        shown = python_text(cast(object, value))
        raise UserError(
            f"{str(info.field_name).upper()} is {shown}; it takes no weights, since each sample "
            "is measured once. Write a list of the names."
        )
    return _as_file_list(value)


_HIGHEST_PRICE = 1e6  # USD for a million tokens
_Name = Annotated[str, StringConstraints(pattern=r"\S")]
_Names = Annotated[list[_Name], Field(min_length=1)]
DataFiles = Annotated[_Names | dict[str, float], BeforeValidator(_as_files_with_weights)]
FileNames = Annotated[list[_Name], BeforeValidator(_without_weights)]


def _as_list(value: object) -> object:
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


Numbers = Annotated[list[float], BeforeValidator(_as_list)]
MetricNames = Annotated[list[_Name], BeforeValidator(_as_file_list)]
TrackerNames = Annotated[list[_Name], BeforeValidator(_as_file_list)]


def _setting(
    default: Any, meaning: str, kind: str, limits: str = "", usual: str = "", **checks: Any
) -> Any:
    """A field with help for users: its kind ("a whole number") and limits ("between 1 and 2")."""
    about: dict[str, Any] = {"kind": kind, "limits": limits, "usual": usual}
    return Field(default, description=meaning, json_schema_extra=about, **checks)


class Settings(BaseModel):
    """The settings of one training run. Make them with `load_settings` or `settings_from`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )

    data_files: DataFiles = _setting(
        ["data/train_set.json"],
        "The files to train on: JSON, JSON Lines, CSV, Parquet or Excel, also compressed; folders "
        "and patterns. A dict says how often an "
        'epoch takes each file: {"a.jsonl": 2.0, "b.jsonl": 0.5}.',
        "a list of at least one file name, or a dict of file names with weights",
    )
    base_model: str = _setting(
        "tinkersmith/tiny-math",
        "The model to start from: the bundled one, a name that the server offers, or a folder "
        "in Hugging Face format.",
        "the name of a model, or a folder",
        pattern=r"\S",
    )
    tokenizer: str = _setting(
        "",
        "A folder with the base model's tokenizer.json, for where no hub can be reached. Empty "
        "takes the base model's own folder, or else asks the hub.",
        "a folder, or an empty string",
    )
    lora_rank: int = _setting(
        16,
        "The adapter's rank: a higher one learns more and needs more memory.",
        "a whole number",
        "between 1 and 512",
        "8 to 64",
        ge=1,
        le=512,
    )
    train_attn: bool = _setting(
        True,
        "Train a LoRA on the attention layers, and on layers that take their place.",
        "True or False",
    )
    train_mlp: bool = _setting(
        True,
        "Train a LoRA on the MLP layers, experts included.",
        "True or False",
    )
    train_unembed: Literal["auto", "yes", "no"] = _setting(
        "auto",
        'Train a LoRA on the output layer. "auto" does, unless the base model is known to share '
        "this layer with its input embedding: few programs load such an adapter.",
        'one of "auto", "yes", "no"',
    )
    learning_rate: float = _setting(
        5e-3,
        "The highest learning rate of the run. The default suits only the bundled model; larger "
        "models need less.",
        "a number",
        "above 0 and at most 1",
        "1e-4 to 5e-4; 5e-3 for the bundled model",
        gt=0,
        le=1,
    )
    num_epochs: int = _setting(
        2,
        "How often training goes through the whole training data.",
        "a whole number",
        "between 1 and 1000",
        "1 to 3",
        ge=1,
        le=1000,
    )
    model_name_prefix: str = _setting(
        "my-model",
        "The trained model's name begins with this; date and time follow.",
        "a name of at most 64 letters, digits, dots, - and _ that begins with a letter or digit",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=64,
    )
    sampling_max_tokens: int = _setting(
        1024,
        "The longest answer, in tokens.",
        "a whole number",
        "between 1 and 131072",
        "256 to 4096",
        ge=1,
        le=131072,
    )
    sampling_temperature: float = _setting(
        0.0,
        "0 always takes the most likely token; higher values vary the answers.",
        "a number",
        "between 0 and 2",
        "0 for evaluation, 0.7 for variety",
        ge=0,
        le=2,
    )
    sampling_num_samples: int = _setting(
        1,
        "How many answers are sampled for one prompt.",
        "a whole number",
        "between 1 and 128",
        "1",
        ge=1,
        le=128,
    )
    max_sequence_length: int = _setting(
        16384,
        "The longest sample, prompt and answer together, in tokens.",
        "a whole number",
        "between 16 and 1048576",
        "2048 to 32768",
        ge=16,
        le=1048576,
    )
    truncate_long_sequences: bool = _setting(
        True,
        "True cuts the end off answers that are too long; False skips such samples.",
        "True or False",
    )
    show_length_warnings: bool = _setting(
        True,
        "Print the first ten samples that were cut or skipped.",
        "True or False",
    )
    backend: Literal["auto", "tinker", "local"] = _setting(
        "auto",
        '"auto" trains in Tinker\'s cloud if TINKER_API_KEY is set, else on this machine; '
        '"tinker" is the cloud or the server at TINKER_BASE_URL; "local" is this machine.',
        'one of "auto", "tinker", "local"',
    )
    batch_size: int = _setting(
        8,
        "Samples per training step.",
        "a whole number",
        "between 1 and 65536",
        "8 to 128",
        ge=1,
        le=65536,
    )
    lr_schedule: Literal["linear", "cosine", "constant"] = _setting(
        "linear",
        "How the learning rate falls over the run.",
        'one of "linear", "cosine", "constant"',
    )
    warmup_ratio: float = _setting(
        0.03,
        "The share of the run in which the learning rate rises to its highest value.",
        "a number",
        "between 0 and 0.5",
        "0.03",
        ge=0,
        le=0.5,
    )
    grad_clip_norm: float = _setting(
        1.0,
        "Gradients with a larger norm are scaled down to this one; 0 turns it off.",
        "a number",
        "between 0 and 1000000",
        "1.0",
        ge=0,
        le=1_000_000,
    )
    optimizer: Literal["adamw", "dimuon"] = _setting(
        "adamw",
        'What makes steps of the gradients: "adamw", or "dimuon", whose steps have the same size '
        "in every direction.",
        'one of "adamw", "dimuon"',
    )
    weight_decay: float = _setting(
        0.0,
        "AdamW's weight decay: each step takes the share LEARNING_RATE * WEIGHT_DECAY off the "
        "adapter's weights.",
        "a number",
        "between 0 and 1",
        "0, or 0.01 to 0.1",
        ge=0,
        le=1,
    )
    adam_betas: Numbers = _setting(
        [0.9, 0.95],
        "How long AdamW averages the gradients, and their squares: the nearer to 1, the longer.",
        "a list of two numbers",
        "from 0 to below 1",
        "[0.9, 0.95] or [0.9, 0.999]",
        min_length=2,
        max_length=2,
    )
    initial_checkpoint: str = _setting(
        "",
        "Start from weights that are trained already, with the data and settings of now: the name "
        "or folder of a run, a state's tinker:// path, or, on this machine, the folder of an "
        "exported adapter.",
        "a run, a tinker:// path, a folder, or nothing",
    )
    initial_optimizer: bool = _setting(
        False,
        "Take over the optimizer's state of INITIAL_CHECKPOINT, too.",
        "True or False",
    )
    validation_files: FileNames = _setting(
        [],
        "Files that are measured during training and never trained on.",
        "a list of file names",
    )
    validation_ratio: float = _setting(
        0.0,
        "The share of the training data held out for validation, if there are no validation files.",
        "a number",
        "between 0 and 0.5",
        "0.05",
        ge=0,
        le=0.5,
    )
    eval_files: FileNames = _setting(
        [],
        "Files whose questions the model answers during training, and is scored on. Keep them "
        "out of DATA_FILES.",
        "a list of file names",
    )
    eval_limit: int = _setting(
        100,
        "How many questions of EVAL_FILES are asked, chosen by SEED; 0 is all of them.",
        "a whole number",
        "between 0 and 1000000000",
        "100 to 500",
        ge=0,
        le=1_000_000_000,
    )
    eval_every: int = _setting(
        0,
        "Measure the validation data and EVAL_FILES every so many steps; 0 is at the end of each "
        "epoch.",
        "a whole number",
        "between 0 and 1000000000",
        "0, or 50 for long runs",
        ge=0,
        le=1_000_000_000,
    )
    best_by: str = _setting(
        "auto",
        'What the best checkpoint is best by: "validation_loss", or a score that METRICS measures '
        'on EVAL_FILES, such as "final_answer" or "token_f1". "auto" is the validation loss if '
        "there is validation data, else final_answer or the first of METRICS.",
        '"auto", "validation_loss" or the name of a score',
        pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$",
    )
    patience: int = _setting(
        0,
        "Stop training after so many measurements in a row without a better BEST_BY; 0 never.",
        "a whole number",
        "between 0 and 1000000000",
        "0, or 3 to 5",
        ge=0,
        le=1_000_000_000,
    )
    save_every: int = _setting(
        0,
        "Save a checkpoint every so many steps; 0 is only at the end of each epoch.",
        "a whole number",
        "between 0 and 1000000000",
        "0, or 100 for long runs",
        ge=0,
        le=1_000_000_000,
    )
    save_every_minutes: float = _setting(
        10.0,
        "Save a checkpoint when the last one is so many minutes old; 0 turns this off.",
        "a number",
        "between 0 and 10080",
        "10",
        ge=0,
        le=10080,
    )
    keep_last: int = _setting(
        3,
        "How many states of a run stay on the server, beside the best one, the last of each epoch "
        "and the last one at which the loss had surely not risen: older ones are deleted after "
        "each save. 0 keeps all. Sampler weights always stay.",
        "a whole number",
        "between 0 and 1000000000",
        "3",
        ge=0,
        le=1_000_000_000,
    )
    checkpoint_ttl_days: int = _setting(
        0,
        "The server deletes a run's checkpoints after so many days; 0 never. The end of a run "
        "says so.",
        "a whole number",
        "between 0 and 3650",
        "0, or 30 in the cloud",
        ge=0,
        le=3650,
    )
    server_patience: int = _setting(
        600,
        "How long a run waits for a server by URL or the cloud that does not answer, in seconds; "
        "0 gives up at once.",
        "a whole number",
        "between 0 and 86400",
        "600",
        ge=0,
        le=86400,
    )
    budget_usd: float = _setting(
        0.0,
        "What a run may cost, in USD: the plan is cut to fit, and the run stops before it, saved. "
        "0 sets no limit.",
        "a number",
        "between 0 and 1000000",
        ge=0,
        le=1e6,
    )
    budget_minutes: float = _setting(
        0.0,
        "How long training may take, in minutes: some steps are measured first, the plan is cut to "
        "fit, and the run stops before it, saved. 0 sets no limit.",
        "a number",
        "between 0 and 100000",
        ge=0,
        le=1e5,
    )
    token_price: dict[str, float] = _setting(
        {},
        'What a million tokens cost on your server, in USD, such as {"prefill": 0.2, "sample": 0.6,'
        ' "train": 0.44}. Empty takes the dated table of Tinker\'s prices.',
        'a dict with "prefill", "sample" and "train"',
    )
    seed: int = _setting(
        42,
        "Decides the order of the samples and the adapter's first weights.",
        "a whole number",
        "between 0 and 2147483647",
        "42",
        ge=0,
        le=2**31 - 1,
    )
    prompt_template: str = _setting(
        "auto",
        'How a sample becomes text: "instruction", "alpaca", "chat" (the model\'s own chat '
        "template), or a format string of your own with {instruction} and optionally {input} and "
        '{system}. "auto" uses "chat" for instruct models, else "instruction".',
        '"auto", "instruction", "alpaca", "chat" or a format string with {instruction}',
    )
    train_on: Literal["all", "last", "all_text"] = _setting(
        "all",
        'Which turns of a conversation are trained on: "all" answers, only the "last" one, or '
        '"all_text": every token, the questions too. A message\'s own flag wins.',
        'one of "all", "last", "all_text"',
    )
    thinking: Literal["auto", "keep", "strip", "off"] = _setting(
        "auto",
        'What becomes of thoughts in the answers: "keep" trains on them, "strip" removes them, '
        '"off" refuses data that has any. "auto" keeps the thoughts that the data has and uses the '
        "template's form without thoughts for the other samples.",
        'one of "auto", "keep", "strip", "off"',
    )
    columns: dict[str, str] = _setting(
        {},
        'What your records call the fields, such as {"instruction": "question"}. Common names are '
        "found without it.",
        "a dict from a field of ours to the name in your records",
    )
    encoding: str = _setting(
        "auto",
        'The encoding of the data files, such as "gb18030". "auto" reads UTF-8 and UTF-16, and '
        "another one only if it is certain, which it says.",
        '"auto" or the name of an encoding',
        pattern=r"\S",
    )
    stop_on_divergence: bool = _setting(
        True,
        "Stop a run whose loss has risen for long, and name the last good checkpoint.",
        "True or False",
    )
    metrics: MetricNames = _setting(
        ["auto"],
        'How answers are scored: "exact_match", "final_answer", "contains_answer", "token_f1", '
        '"rouge_l", "bleu", "perplexity", "json", "labels", "judge", or a function of your own '
        'as "file.py:function". "auto" has the first three, and "json" or "labels" where the '
        "expected outputs are such.",
        "a list of metrics",
    )
    judge_url: str = _setting(
        "",
        "The address of the judge's server, which has OpenAI's chat completions. Its key stands "
        "in JUDGE_API_KEY in the environment.",
        'an address such as "http://localhost:8000/v1"',
    )
    judge_model: str = _setting(
        "",
        "The model that judges, as its server names it.",
        "the name of a model",
    )
    judge_mode: Literal["graded", "right_wrong", "pairwise"] = _setting(
        "graded",
        'What the judge says: a grade from 1 to 10 ("graded"), whether an answer is right '
        '("right_wrong"), or which of the trained and the base model answers better ("pairwise", '
        "asked in both orders).",
        'one of "graded", "right_wrong", "pairwise"',
    )
    judge_rubric: str = _setting(
        "",
        "What counts for the judge, in your own words.",
        "a text",
        max_length=20_000,
    )
    judge_price: dict[str, float] = _setting(
        {},
        'What a million tokens of the judge cost, such as {"input": 0.5, "output": 1.5}: then the '
        "evaluation says what it cost.",
        'a dict with "input" and "output"',
    )
    trackers: TrackerNames = _setting(
        [],
        'Where curves go beside the run\'s folder: "tensorboard", "wandb", "swanlab", "trackio", '
        '"mlflow". Each needs its library.',
        "a list of trackers",
    )
    export_after_training: Literal["ask", "no", "adapter", "merged"] = _setting(
        "ask",
        "What to export after training: a PEFT adapter, a merged model, or nothing.",
        'one of "ask", "no", "adapter", "merged"',
    )
    output_dir: str = _setting(
        "runs",
        "The folder in which each run gets a folder of its own.",
        "the name of a folder",
        pattern=r"\S",
    )

    @property
    def training_files(self) -> list[str]:
        """The names in DATA_FILES, without their weights."""
        return list(self.data_files)

    @property
    def file_weights(self) -> dict[str, float]:
        """How often an epoch takes each file of DATA_FILES; {} where each is taken once."""
        return self.data_files if isinstance(self.data_files, dict) else {}

    @field_validator("prompt_template")
    @classmethod
    def _known_template_or_sound_format(cls, value: str) -> str:
        from tinkersmith.text.templates import check_template_setting

        check_template_setting(value)
        return value

    @field_validator("columns")
    @classmethod
    def _sensible_columns(cls, value: dict[str, str]) -> dict[str, str]:
        from tinkersmith.data.columns import check_columns

        check_columns(value)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        from tinkersmith.sources.encodings import AUTO, codec_name

        if value.strip().lower() != AUTO:
            codec_name(value)
        return value

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str]) -> list[str]:
        check_metric_names(value)
        return value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: list[str]) -> list[str]:
        check_tracker_names(value)
        return value

    @field_validator("judge_url")
    @classmethod
    def _address_without_a_key(cls, value: str) -> str:
        from tinkersmith.metrics.judge_client import judge_address

        if value:
            judge_address(value)
        return value

    @field_validator("adam_betas")
    @classmethod
    def _shares_below_1(cls, value: list[float]) -> list[float]:
        if not all(0 <= beta < 1 for beta in value):
            raise UserError(
                f"ADAM_BETAS is {python_text(value)}; it must be two numbers from 0 to below 1."
            )
        return value

    @field_validator("token_price")
    @classmethod
    def _three_prices(cls, value: dict[str, float]) -> dict[str, float]:
        if value and (set(value) != {"prefill", "sample", "train"} or not _are_prices(value)):
            raise UserError(
                f"TOKEN_PRICE is {python_text(value)}; it must be a dict with "
                '"prefill", "sample" and "train", what a million tokens of each cost in USD: '
                f"0 to {_HIGHEST_PRICE:,.0f}."
            )
        return value

    @field_validator("judge_price")
    @classmethod
    def _two_prices(cls, value: dict[str, float]) -> dict[str, float]:
        if value and (set(value) != {"input", "output"} or not _are_prices(value)):
            raise UserError(
                f"JUDGE_PRICE is {python_text(value)}; it must be a dict with "
                '"input" and "output", what a million tokens of each cost: '
                f"0 to {_HIGHEST_PRICE:,.0f}."
            )
        return value


def _are_prices(prices: Mapping[str, float]) -> bool:
    return all(0 <= price <= _HIGHEST_PRICE for price in prices.values())


FIELDS: Mapping[str, FieldInfo] = Settings.model_fields


def settings_table() -> str:
    """The Markdown table of all settings for docs/reference/settings.md."""
    rows = ["| Name | Default | Meaning | Allowed |", "| --- | --- | --- | --- |"]
    for name, field in FIELDS.items():
        allowed = " ".join(
            part for part in (about_setting(field)["kind"], about_setting(field)["limits"]) if part
        )
        usual = about_setting(field)["usual"]
        if usual:
            allowed += f" (a usual choice: {usual})"
        rows.append(
            f"| `{name.upper()}` | `{python_text(field.default)}` | "
            f"{field.description} | {allowed} |"
        )
    return "\n".join(rows) + "\n"


def about_setting(field: FieldInfo) -> dict[str, str]:
    about = cast(dict[str, str], field.json_schema_extra)
    return {name: about[name] for name in ("kind", "limits", "usual")}


def python_text(value: object) -> str:
    """A value as Python code, shortened to fit into a sentence."""
    try:
        text = _python_code(value)
    except Exception:  # it holds itself, has thousands of digits, or its own repr fails
        text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _python_code(value: object) -> str:
    if isinstance(value, str):
        return f'"{one_line(value)}"'
    if isinstance(value, list):
        items = cast(list[object], value)[:100]
        return "[" + ", ".join(_python_code(item) for item in items) + "]"
    if isinstance(value, dict):
        pairs = list(cast(dict[object, object], value).items())[:100]
        return "{" + ", ".join(f"{_python_code(a)}: {_python_code(b)}" for a, b in pairs) + "}"
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return repr(value)
