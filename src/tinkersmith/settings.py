"""The user's settings: every name, type, range, default and help text, in one typed place.

Users write them upper-case in config.py or as --set NAME=VALUE; code reads `settings.lora_rank`.
Names of files in a `Settings` value are as seen from the current folder.
"""

import ast
import difflib
import io
import json
import os
import re
import runpy
import shlex
import tokenize
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.files import read_regular
from tinkersmith.paths import (
    data_file_seen_from_folder,
    data_files_seen_from_here,
    seen_from_folder,
    seen_from_here,
)


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


FileNames = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"\S")]], BeforeValidator(_as_file_list)
]


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

    data_files: FileNames = _setting(
        ["data/train_set.json"],
        "The files to train on: JSON arrays or JSON Lines, also gzip-ed.",
        "a list of at least one file name",
        min_length=1,
    )
    base_model: str = _setting(
        "tinkersmith/tiny-math",
        "The model to start from: the bundled one, a name that the server offers, or a folder "
        "in Hugging Face format.",
        "the name of a model, or a folder",
        pattern=r"\S",
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
    eval_every: int = _setting(
        0,
        "Measure the validation data every so many steps; 0 is at the end of each epoch.",
        "a whole number",
        "between 0 and 1000000000",
        "0, or 50 for long runs",
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
        "How many states of a run stay on the server, beside the best one and the last of each "
        "epoch: older ones are deleted after each save. 0 keeps all. Sampler weights always stay.",
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

    @field_validator("prompt_template")
    @classmethod
    def _known_template_or_sound_format(cls, value: str) -> str:
        from tinkersmith.text.templates import check_template_setting

        check_template_setting(value)
        return value


FIELDS: Mapping[str, FieldInfo] = Settings.model_fields
_LARGEST_FILE = 10_000_000  # bytes of a settings file
_ENVIRONMENT = ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_CREDENTIAL_CMD")


def load_settings(config_file: Path | str | None, overrides: Sequence[str] = ()) -> Settings:
    """Run `config_file` as Python and read its upper-case names; None gives the defaults.

    Relative names of files start from the folder of `config_file`; those in `overrides` and without
    a `config_file` start from the current folder.

    Raises:
        UserError: there is no such file, it is not Python, or a setting is wrong.
    """
    if config_file is None:
        return settings_from({}, overrides)
    path = Path(config_file)
    _check_text(path)
    try:
        namespace = runpy.run_path(str(path))
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}" if error.lineno else str(path)
        raise UserError(f"{where}: {error.msg}. {_hint(path)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a program of the user: it can end in any way
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {_kind_and_text(error)}. {_hint(path)}") from None
    if path.suffix != ".py" and not _named_values(namespace):
        raise UserError(f"{path} sets nothing. {_HOW_TO_WRITE}")
    return settings_from(namespace, overrides, where=str(path), folder=path.parent)


def _check_text(path: Path) -> None:
    """Refuse a settings file that cannot be Python, before Python tries.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    try:
        data = read_regular(path, _LARGEST_FILE)
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
    if b"\0" in data:  # compiled Python, an archive, UTF-16: runpy would try some of these
        offset = data.index(b"\0")
        raise UserError(
            f"{path} is not plain text in UTF-8: there is a NUL at byte {offset:,}. {_HOW_TO_WRITE}"
        )
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02X} is not {error.encoding}. "
            "Save the file as UTF-8."
        ) from None
    except (SyntaxError, LookupError) as error:
        raise UserError(f"{path}: {error}. Save the file as UTF-8.") from None


def _kind_and_text(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def settings_from(
    namespace: Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    where: str = "",
    folder: Path | str = ".",
) -> Settings:
    """Settings from the upper-case names of `namespace` (a script's globals) and NAME=VALUE texts.

    Lower-case names, names with a leading underscore, and imported things are left alone.

    Args:
        where: the file to name in an error.
        folder: where relative names of files start that `overrides` do not set; a name that
            `namespace` leaves to its default starts there as well.

    Raises:
        UserError: an unknown name, or a value that a setting cannot have.
    """
    values: dict[str, object] = {
        _field_name(name, where): value for name, value in _named_values(namespace).items()
    }
    overridden: set[str] = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"--set {one_line(override)} has no value; write it as --set NAME=VALUE."
            )
        field = _field_name(name.strip(), "--set")
        values[field] = _override_value(field, text.strip())
        overridden.add(field)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None
    _refuse_impossible_names(settings)
    _refuse_settings_without_effect(settings)
    try:
        moved = _file_names_from(folder, settings)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise UserError(f"A file that the settings name cannot be looked up: {error}.") from None
    return settings.model_copy(
        update={field: value for field, value in moved.items() if field not in overridden}
    )


def settings_for_file(settings: Settings, folder: Path | str) -> dict[str, object]:
    """Settings by their upper-case names, with relative names of files starting from `folder`.

    `settings_from(..., folder=folder)` reads them back.
    """
    values: dict[str, object] = {
        **settings.model_dump(),
        "data_files": [data_file_seen_from_folder(folder, name) for name in settings.data_files],
        "validation_files": [
            data_file_seen_from_folder(folder, name) for name in settings.validation_files
        ],
        "output_dir": seen_from_folder(folder, settings.output_dir),
    }
    if _is_relative_model_folder(settings.base_model, Path()):
        values["base_model"] = f"./{seen_from_folder(folder, settings.base_model)}"
    return {name.upper(): value for name, value in values.items()}


def settings_table() -> str:
    """The Markdown table of all settings for docs/reference/settings.md."""
    rows = ["| Name | Default | Meaning | Allowed |", "| --- | --- | --- | --- |"]
    for name, field in FIELDS.items():
        allowed = " ".join(
            part for part in (_about(field)["kind"], _about(field)["limits"]) if part
        )
        usual = _about(field)["usual"]
        if usual:
            allowed += f" (a usual choice: {usual})"
        rows.append(
            f"| `{name.upper()}` | `{_python_text(field.default)}` | "
            f"{field.description} | {allowed} |"
        )
    return "\n".join(rows) + "\n"


def _named_values(namespace: Mapping[str, object]) -> dict[str, object]:
    """The upper-case names that hold values."""
    return {
        name: value
        for name, value in namespace.items()
        if name.isupper()
        and not name.startswith("_")
        and not isinstance(value, types.ModuleType | type | types.FunctionType)
    }


def _file_names_from(folder: Path | str, settings: Settings) -> dict[str, object]:
    """The settings that name files, for names that start from `folder`."""

    def data_files(names: list[str]) -> list[str]:
        return data_files_seen_from_here(folder, names)

    base_model = settings.base_model
    if _is_relative_model_folder(base_model, Path(folder)):
        place = seen_from_here(folder, base_model)
        # "./" says that it is a folder, and not a name on the hub, also where it does not exist.
        explicit = place == base_model or Path(place).is_absolute()
        base_model = place if explicit else f"./{place}"
    return {
        "data_files": data_files(settings.data_files),
        "validation_files": data_files(settings.validation_files),
        "output_dir": seen_from_here(folder, settings.output_dir),
        "base_model": base_model,
    }


def _is_relative_model_folder(name: str, folder: Path) -> bool:
    if name in BUNDLED_MODELS or name.startswith("~") or Path(name).is_absolute():
        return False
    return name.startswith(".") or (folder / name / "config.json").is_file()


_HOW_TO_WRITE = "A settings file is Python: one line such as LORA_RANK = 16 for each setting."


def _hint(path: Path) -> str:
    return "Fix that line." if path.suffix == ".py" else _HOW_TO_WRITE


def _field_name(name: str, where: str) -> str:
    field = name.lower()
    if field in FIELDS:
        return field
    place = f"{where}: " if where else ""
    if name.upper() in _ENVIRONMENT:
        raise UserError(
            f"{place}{name} is not a setting. Set it in the environment, where it is not saved "
            f'with the run: export {name.upper()}="..."'
        )
    near = difflib.get_close_matches(name.upper(), [known.upper() for known in FIELDS], n=1)
    advice = (
        f"did you mean {near[0]}?"
        if near
        else "docs/reference/settings.md lists all of them; write names of your own in lower case."
    )
    raise UserError(f"{place}{one_line(name)} is not a setting; {advice}")


def _override_value(field: str, text: str) -> object:
    """The value of a Python literal ("16", "['a.json']"); any other text is the value itself."""
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        literal: object = words[text.lower()]
    else:
        try:
            literal = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if field in ("data_files", "validation_files") and re.search(r",|^\[", text):
                _refuse_list_of_bare_names(field, text)
            return text
    annotation = FIELDS[field].annotation
    is_text = annotation is str or get_origin(annotation) is Literal
    # MODEL_NAME_PREFIX=2024 names a model, although 2024 is also a number.
    return text if is_text and not isinstance(literal, str) else literal


def _refuse_list_of_bare_names(field: str, text: str) -> None:
    """Refuse "a.json,b.json" and "[a.json]", unless a file really has that name."""
    if Path(text).exists() or (Path("data") / text).exists():
        return
    names = [name.strip(" '\"") for name in text.strip("[] ").split(",")]
    literal = json.dumps([name for name in names if name], ensure_ascii=False)
    raise UserError(
        f"--set {field.upper()}={text} is not a list of files. Write it as a Python list: "
        f"--set {shlex.quote(f'{field.upper()}={literal}')}"
    )


_TYPE_ERRORS = ("int_type", "int_from_float", "float_type", "bool_type", "string_type", "list_type")


def _sentence(error: ValidationError) -> str:
    """The first problem in one sentence: the value, what it must be, the usual choice."""
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0])
    about = _about(FIELDS[field])
    value = _python_text(problem["input"])
    place = f"{field.upper()}[{problem['loc'][1]}]" if len(problem["loc"]) > 1 else field.upper()
    if problem["type"] in _TYPE_ERRORS or not about["limits"]:
        must = " ".join(part for part in (about["kind"], about["limits"]) if part)
    else:
        must = about["limits"]
    if len(problem["loc"]) > 1:
        must = "the name of a file"
    usual = f" (a usual choice: {about['usual']})" if about["usual"] else ""
    return f"{place} is {value}; it must be {must}{usual}."


def _refuse_impossible_names(settings: Settings) -> None:
    """Refuse names that no file can have, and texts that no file can hold."""
    for field, value in settings.model_dump().items():
        for text in cast("list[object]", value) if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if "\0" in text:
                raise UserError(
                    f"{field.upper()} is {_python_text(text)}; it contains a NUL. Remove that."
                )
            if field in _NAME_FILES and _is_too_long(text):
                raise UserError(
                    f"{field.upper()} is {_python_text(text)}; it is too long for a file's name."
                )


_NAME_FILES = ("data_files", "validation_files", "output_dir", "base_model")


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
    if settings.eval_every and not (settings.validation_files or settings.validation_ratio):
        raise UserError(
            f"EVAL_EVERY is {settings.eval_every}, but there is no validation data to measure. "
            "Set VALIDATION_FILES or VALIDATION_RATIO, or remove EVAL_EVERY."
        )


def _about(field: FieldInfo) -> dict[str, str]:
    about = cast(dict[str, str], field.json_schema_extra)
    return {name: about[name] for name in ("kind", "limits", "usual")}


def _python_text(value: object) -> str:
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
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return repr(value)
