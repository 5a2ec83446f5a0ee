"""NAME=VALUE,VALUE texts and settings -> the settings of every combination, all checked."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.names import field_named
from tinkersmith.settings.reading import settings_from
from tinkersmith.settings.spelling import kind_of_value, names_in, read_overrides

MOST_RUNS = 500
# The settings that make another model. The others decide how it is measured, where it is kept and
# what is printed: runs that differ in them cannot be compared, or do not differ.
SWEPT = (
    *("data_files", "base_model", "lora_rank", "learning_rate", "num_epochs", "batch_size"),
    *("lr_schedule", "warmup_ratio", "grad_clip_norm", "max_sequence_length"),
    *("truncate_long_sequences", "prompt_template", "train_on", "thinking"),
    *("train_attn", "train_mlp", "train_unembed", "optimizer", "weight_decay", "adam_betas"),
)


@dataclass(frozen=True, slots=True)
class Combination:
    """One value for each setting of a grid, and the settings that this makes."""

    values: dict[str, object]  # by upper-case names
    settings: Settings

    @property
    def label(self) -> str:
        """The combination as it is written: "LEARNING_RATE=0.001 LORA_RANK=8"."""
        return label_of(self.values)


def label_of(values: Mapping[str, object]) -> str:
    """The values of a combination as they are written on the command line."""
    return " ".join(f"{name}={value_label(value)}" for name, value in values.items())


def value_label(value: object) -> str:
    """A value of a setting in a few characters."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return ",".join(f"{key}:{value_label(item)}" for key, item in items)
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast("Sequence[object]", value)))
    return one_line(str(value))


def read_grid(entries: Sequence[str], settings: Settings) -> dict[str, list[object]]:
    """The values of each setting in the texts of --grid, each of them checked alone.

    Raises:
        UserError: the sentence names the entry.
    """
    grid: dict[str, list[object]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not text.strip():
            raise UserError(
                f"--grid {one_line(entry)} has no values; write it as --grid "
                "LEARNING_RATE=1e-4,3e-4"
            )
        field = field_named(name.strip(), "--grid", any_case=True)
        _refuse_not_swept(field)
        name = field.upper()
        if name in grid:
            raise UserError(f"--grid names {name} twice. Write all its values in one entry.")
        grid[name] = _values(field, text, settings)
    return grid


def _refuse_not_swept(field: str) -> None:
    if field in SWEPT:
        return
    name = field.upper()
    if field == "seed":
        raise UserError(
            "--grid SEED: a seed is no choice that one could make well. To see how much seeds "
            "matter, repeat every combination with --seeds 3."
        )
    if field == "best_by":
        raise UserError("--grid BEST_BY: name what the runs are compared by with --by METRIC.")
    if field in ("initial_checkpoint", "initial_optimizer"):
        raise UserError(
            f"--grid {name}: all runs of a sweep begin with the same weights. Start a sweep for "
            f"each, with --set {name}=..."
        )
    raise UserError(
        f"--grid {name}: runs that differ in {name} cannot be compared, or do not differ. A sweep "
        f"takes {', '.join(known.upper() for known in SWEPT)}."
    )


def _values(field: str, text: str, settings: Settings) -> list[object]:
    name = field.upper()
    # Of files and dicts, a value with several items stands in brackets: [a.json,b.json],[c.json]
    texts = [text] if kind_of_value(field) == "text" and _is_format(text) else names_in(text)
    values: list[object] = []
    for item in texts:
        value = read_overrides([f"{name}={item}"])[field].value
        try:
            checked: object = getattr(_settings_with(settings, {name: value}), field)
        except UserError as error:
            raise UserError(f"--grid {name}={one_line(item)}: {error}") from None
        if checked in values:
            raise UserError(f"--grid names {name}={value_label(checked)} twice. Name it once.")
        values.append(checked)
    return values


def _is_format(text: str) -> bool:
    """Whether a text is one prompt template, whose commas are its own."""
    return "{" in text and not text.lstrip().startswith(("'", '"'))


def combinations_of(grid: Mapping[str, Sequence[object]], settings: Settings) -> list[Combination]:
    """Every combination of the grid's values, with its settings.

    Raises:
        UserError: a combination is none that a run can have; the sentence names it.
    """
    combinations: list[Combination] = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        try:
            combined = _settings_with(settings, chosen)
        except UserError as error:
            raise UserError(f"--grid {label_of(chosen)}: {error}") from None
        combinations.append(Combination(chosen, combined))
    return combinations


def _settings_with(settings: Settings, values: Mapping[str, object]) -> Settings:
    own = {name.upper(): value for name, value in settings.model_dump().items()}
    return settings_from({**own, **values})
