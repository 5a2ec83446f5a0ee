"""A settings file and --set -> a `Settings` value; each mistake is one sentence."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_regular
from tinkersmith.metrics.names import KNOWN_SCORES, may_give, user_function
from tinkersmith.paths import (
    data_file_seen_from_folder,
    data_files_seen_from_here,
    seen_from_folder,
    seen_from_here,
)
from tinkersmith.settings.fields import (
    FIELDS,
    FILE_FIELDS,
    Settings,
    about_setting,
    python_text,
)
from tinkersmith.settings.measures import VALIDATION_LOSS, best_by
from tinkersmith.settings.names import LARGEST_SETTINGS_FILE, Given, field_named


def load_settings(config_file: Path | str | None, overrides: Sequence[str] = ()) -> Settings:
    """Read a settings file: Python, whose upper-case names are settings, YAML, JSON or TOML.

    None gives the defaults. Relative names of files start from the folder of `config_file`; those
    in `overrides` and without a `config_file` start from the current folder.

    Raises:
        UserError: there is no such file, it is in another format, or a setting is wrong.
    """
    return load_with_origins(config_file, overrides)[0]


def load_with_origins(
    config_file: Path | str | None, overrides: Sequence[str] = (), folder: Path | str = "."
) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`, with the place that each field which is not a default comes from.

    Args:
        folder: where names of files start without a `config_file`.
    """
    if config_file is None:
        given: dict[str, Given] = {}
    else:
        folder = Path(config_file).parent
        given = _read_file(Path(config_file))
    return _settings_of(given, overrides, folder)


def settings_from(
    namespace: Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    where: str = "",
    folder: Path | str = ".",
) -> Settings:
    """Settings from the upper-case names of `namespace` (a script's globals) and NAME=VALUE texts.

    Lower-case names, names with a leading underscore, and imported things are left alone, unless a
    script does not use them and they look like a setting.

    Args:
        where: the file to name in an error.
        folder: where relative names of files start that `overrides` do not set; a name that
            `namespace` leaves to its default starts there as well.

    Raises:
        UserError: an unknown name, or a value that a setting cannot have.
    """
    from tinkersmith.settings.python_files import values_of_script

    return _settings_of(values_of_script(namespace, where), overrides, folder)[0]


def has_settings(path: Path) -> bool:
    """Whether a YAML, JSON or TOML file names one of our settings, as another tool's would not."""
    from tinkersmith.settings.formats import upper_case_names

    try:
        return any(name.lower() in FIELDS for name in upper_case_names(path))
    except OSError:
        return False


def settings_for_file(settings: Settings, folder: Path | str) -> dict[str, object]:
    """Settings by their upper-case names, with relative names of files starting from `folder`.

    `settings_from(..., folder=folder)` reads them back.
    """
    names = [data_file_seen_from_folder(folder, name) for name in settings.training_files]
    weights = settings.file_weights
    values: dict[str, object] = {
        **settings.model_dump(),
        "data_files": dict(zip(names, weights.values(), strict=True)) if weights else names,
        **{
            field: [data_file_seen_from_folder(folder, name) for name in getattr(settings, field)]
            for field in ("validation_files", "eval_files")
        },
        "output_dir": seen_from_folder(folder, settings.output_dir),
        "metrics": _metrics_from(settings.metrics, lambda file: seen_from_folder(folder, file)),
    }
    if _is_relative_model_folder(settings.base_model, Path()):
        values["base_model"] = f"./{seen_from_folder(folder, settings.base_model)}"
    if _is_relative_folder(settings.initial_checkpoint, Path()):
        values["initial_checkpoint"] = seen_from_folder(folder, settings.initial_checkpoint)
    if settings.tokenizer and not settings.tokenizer.startswith("~"):
        values["tokenizer"] = seen_from_folder(folder, settings.tokenizer)
    return {name.upper(): value for name, value in values.items()}


def _read_file(path: Path) -> dict[str, Given]:
    """The names that a settings file sets, in the format that its name says.

    Raises:
        UserError: there is no such file, or it is in another format.
    """
    try:
        data = read_regular(path, LARGEST_SETTINGS_FILE)
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(
                f"The settings file {path} is a link to a file that does not exist. Correct the "
                "link, or replace it by the file."
            ) from None
        raise UserError(
            f"The settings file {path} does not exist. Name another with --config, or write a new "
            f"project folder with: {command_line('init', 'my-project')}"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if path.suffix.lower() in (".yaml", ".yml", ".json", ".toml"):
        from tinkersmith.settings.formats import read_data_format

        return read_data_format(path, data)
    from tinkersmith.settings.python_files import HOW_TO_WRITE, read_python

    values = read_python(path, data)
    if path.suffix.lower() != ".py" and not values:
        raise UserError(f"{path} sets nothing. {HOW_TO_WRITE}")
    return values


def _settings_of(
    named: Mapping[str, Given], overrides: Sequence[str], folder: Path | str
) -> tuple[Settings, dict[str, str]]:
    """The settings, and where each field comes from that is not a default."""
    given = {field_named(name, value.where): value for name, value in named.items()}
    for field in FILE_FIELDS:
        if field in given:
            _refuse_names_in_one_text(field, given[field], Path(folder))
    overridden: dict[str, Given] = {}
    if overrides:
        from tinkersmith.settings.spelling import read_overrides

        overridden = read_overrides(list(overrides))
    given |= overridden
    settings = _validated(given)
    _refuse_impossible_names(settings)
    _refuse_settings_without_effect(settings)
    try:
        moved = _file_names_from(folder, settings)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise UserError(f"A file that the settings name cannot be looked up: {error}.") from None
    settings = settings.model_copy(
        update={field: value for field, value in moved.items() if field not in overridden}
    )
    return settings, {field: value.where for field, value in given.items()}


def _validated(given: Mapping[str, Given]) -> Settings:
    values = {field: value.value for field, value in given.items()}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        field = str(error.errors(include_url=False)[0]["loc"][0])
        raise UserError(_placed(given.get(field), _sentence(error))) from None
    except UserError as error:  # of a validator; its sentence begins with the setting's name
        field = re.split(r"\W", str(error), maxsplit=1)[0].lower()
        raise UserError(_placed(given.get(field), str(error))) from None


def _placed(given: Given | None, sentence: str) -> str:
    """The sentence with the place in a file; what --set says stands in the sentence."""
    is_in_file = given is not None and given.where not in ("", "--set")
    return f"{given.where}: {sentence}" if given and is_in_file else sentence


def _file_names_from(folder: Path | str, settings: Settings) -> dict[str, object]:
    """The settings that name files, for names that start from `folder`."""
    base_model = settings.base_model
    if _is_relative_model_folder(base_model, Path(folder)):
        place = seen_from_here(folder, base_model)
        # "./" says that it is a folder, and not a name on the hub, also where it does not exist.
        explicit = place == base_model or Path(place).is_absolute()
        base_model = place if explicit else f"./{place}"
    names = data_files_seen_from_here(folder, settings.training_files)
    weights = settings.file_weights
    if weights and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"DATA_FILES names {twice} twice, with two weights. Name it once.")
    initial = settings.initial_checkpoint
    if _is_relative_folder(initial, Path(folder)):
        initial = seen_from_here(folder, initial)
    return {
        "initial_checkpoint": initial,
        "data_files": dict(zip(names, weights.values(), strict=True)) if weights else names,
        "validation_files": data_files_seen_from_here(folder, settings.validation_files),
        "eval_files": data_files_seen_from_here(folder, settings.eval_files),
        "output_dir": seen_from_here(folder, settings.output_dir),
        "metrics": _metrics_from(settings.metrics, lambda file: seen_from_here(folder, file)),
        "base_model": base_model,
        "tokenizer": _folder_from(folder, settings.tokenizer),
    }


def _folder_from(folder: Path | str, name: str) -> str:
    """The name of a folder as it is written here; "" and one in the home folder stay."""
    return name if not name or name.startswith("~") else seen_from_here(folder, name)


def _metrics_from(names: Sequence[str], seen: Callable[[str], str]) -> list[str]:
    """METRICS with the files of the user's own functions as they are written elsewhere."""
    functions = [user_function(name) for name in names]
    return [
        f"{seen(function[0])}:{function[1]}" if function else name
        for name, function in zip(names, functions, strict=True)
    ]


def _is_relative_model_folder(name: str, folder: Path) -> bool:
    if name in BUNDLED_MODELS or name.startswith("~") or Path(name).is_absolute():
        return False
    return name.startswith(".") or (folder / name / "config.json").is_file()


def _is_relative_folder(name: str, folder: Path) -> bool:
    return bool(name.strip()) and not Path(name).is_absolute() and _is_there(folder / name)


def _refuse_names_in_one_text(field: str, given: Given, folder: Path) -> None:
    """Refuse "a.json, b.json" in a file, where a list is meant, unless a file has that name."""
    text = given.value
    if not isinstance(text, str) or not any(c in text for c in ",;，；"):
        return
    from tinkersmith.settings.spelling import names_in

    names = names_in(text)
    if len(names) < 2 or any(_is_there(place / text) for place in (folder, folder / "data")):
        return
    items = json.dumps(names, ensure_ascii=False)
    raise UserError(
        f"{given.where}: {field.upper()} is {python_text(text)}, which is one text. Write a list "
        f"of files: {items}"
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


_TYPE_ERRORS = (
    "int_type",
    "int_from_float",
    "float_type",
    "bool_type",
    "string_type",
    "list_type",
    "dict_type",
)


def _sentence(error: ValidationError) -> str:
    """The first problem in one sentence: the value, what it must be, the usual choice."""
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0])
    about = about_setting(FIELDS[field])
    value = python_text(problem["input"])
    if field == "columns" and len(problem["loc"]) > 1:
        key = python_text(problem["loc"][1])
        return f"COLUMNS[{key}] is {value}; it must be the name of a field in your records."
    if field in ("token_price", "judge_price") and len(problem["loc"]) > 1:
        key = python_text(problem["loc"][1])
        if problem["loc"][-1] == "[key]":
            return f"{field.upper()} has the name {key}; it must be {about['kind']}."
        return f"{field.upper()}[{key}] is {value}; it must be a price, as a number."
    index = next((step for step in problem["loc"][1:] if isinstance(step, int)), None)
    if field == "metrics" and index is not None:
        return f"METRICS[{index}] is {value}; it must be the name of a metric."
    if field == "trackers" and index is not None:
        return f"TRACKERS[{index}] is {value}; it must be the name of a tracker."
    if field == "adam_betas" and index is not None:
        return f"ADAM_BETAS[{index}] is {value}; it must be a number {about['limits']}."
    if index is not None:
        return f"{field.upper()}[{index}] is {value}; it must be the name of a file."
    if problem["type"] in (*_TYPE_ERRORS, "too_short", "too_long") or not about["limits"]:
        must = " ".join(part for part in (about["kind"], about["limits"]) if part)
    else:
        must = about["limits"]
    usual = f" (a usual choice: {about['usual']})" if about["usual"] else ""
    return f"{field.upper()} is {value}; it must be {must}{usual}."


def _refuse_impossible_names(settings: Settings) -> None:
    """Refuse names that no file can have, and texts that no file can hold."""
    for field, value in settings.model_dump().items():
        for text in _texts_in(value):
            if "\0" in text:
                raise UserError(
                    f"{field.upper()} is {python_text(text)}; it contains a NUL. Remove that."
                )
            if field in _NAME_FILES and _is_too_long(text):
                raise UserError(
                    f"{field.upper()} is {python_text(text)}; it is too long for a file's name."
                )


def _texts_in(value: object) -> list[str]:
    if isinstance(value, dict):
        items: list[object] = [*value, *cast("dict[object, object]", value).values()]
    else:
        items = cast("list[object]", value) if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


_NAME_FILES = (*FILE_FIELDS, "output_dir", "base_model", "tokenizer", "initial_checkpoint")


def _is_too_long(name: str) -> bool:
    """Whether common file systems refuse a name: 255 bytes are the most, 4096 with its folders."""
    data = name.encode("utf-8", "surrogatepass")
    return len(data) > 2000 or any(len(part) > 255 for part in data.split(b"/"))


def _refuse_settings_without_effect(settings: Settings) -> None:
    if settings.validation_files and settings.validation_ratio:
        raise UserError(
            f"VALIDATION_FILES and VALIDATION_RATIO = {settings.validation_ratio} are both set; "
            "only one can say what the validation data is. Remove one of them."
        )
    if settings.eval_limit != FIELDS["eval_limit"].default and not settings.eval_files:
        raise UserError(
            f"EVAL_LIMIT is {settings.eval_limit}, but EVAL_FILES names no questions. Set "
            "EVAL_FILES, or remove EVAL_LIMIT."
        )
    if not settings.train_attn and not settings.train_mlp and settings.train_unembed == "no":
        raise UserError(
            'TRAIN_ATTN and TRAIN_MLP are False and TRAIN_UNEMBED is "no": nothing would train. '
            "Set one of them to True."
        )
    for field in ("weight_decay", "adam_betas") if settings.optimizer != "adamw" else ():
        value: object = getattr(settings, field)
        if value != FIELDS[field].default:
            raise UserError(
                f"{field.upper()} is {python_text(value)}, which only AdamW has, and OPTIMIZER is "
                f'"{settings.optimizer}". Remove one of them.'
            )
    if settings.initial_optimizer and not settings.initial_checkpoint.strip():
        raise UserError(
            "INITIAL_OPTIMIZER is True, but INITIAL_CHECKPOINT names no weights to start from. Set "
            "INITIAL_CHECKPOINT, or remove INITIAL_OPTIMIZER."
        )
    _refuse_unmeasured_best(settings)
    _refuse_half_a_judge(settings)
    for name, value in (("EVAL_EVERY", settings.eval_every), ("PATIENCE", settings.patience)):
        if value and best_by(settings) is None:
            raise UserError(
                f"{name} is {value}, but nothing is measured during training. Set "
                f"VALIDATION_FILES, VALIDATION_RATIO or EVAL_FILES, or remove {name}."
            )


def _refuse_unmeasured_best(settings: Settings) -> None:
    name = settings.best_by
    known = (VALIDATION_LOSS, *KNOWN_SCORES)
    if name == "auto":
        return
    if name not in known and not may_give(settings.metrics, name):
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
        meant = (
            f"did you mean {python_text(near[0])}?"
            if near
            else f"there are {', '.join(known)}. A function of your own is named in METRICS, too."
        )
        raise UserError(f"BEST_BY is {python_text(name)}, which nothing measures; {meant}")
    if name == VALIDATION_LOSS and not (settings.validation_files or settings.validation_ratio):
        raise UserError(
            'BEST_BY is "validation_loss", but there is no validation data to measure. Set '
            "VALIDATION_FILES or VALIDATION_RATIO, or remove BEST_BY."
        )
    if name != VALIDATION_LOSS and not settings.eval_files:
        raise UserError(
            f"BEST_BY is {python_text(name)}, which is measured on EVAL_FILES, and EVAL_FILES "
            "names no questions. Set EVAL_FILES, or remove BEST_BY."
        )


def _refuse_half_a_judge(settings: Settings) -> None:
    judge = {name: getattr(settings, name) for name in FIELDS if name.startswith("judge_")}
    if "judge" in settings.metrics:
        missing = [name for name in ("judge_url", "judge_model") if not judge[name].strip()]
        if missing:
            raise UserError(
                f'METRICS names "judge", which needs {missing[0].upper()}. Set it, or remove '
                '"judge".'
            )
    else:
        for name, value in judge.items():
            if value != FIELDS[name].default:
                raise UserError(
                    f'{name.upper()} is {python_text(value)}, but METRICS does not name "judge". '
                    f"Add it, or remove {name.upper()}."
                )
