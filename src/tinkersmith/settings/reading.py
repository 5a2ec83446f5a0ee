"""config.py and --set -> a `Settings` value; each mistake is one sentence."""

import ast
import difflib
import io
import json
import re
import runpy
import shlex
import tokenize
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast, get_origin

from pydantic import ValidationError

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
from tinkersmith.settings.fields import FIELDS, Settings, about_setting, python_text

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
    about = about_setting(FIELDS[field])
    value = python_text(problem["input"])
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
                    f"{field.upper()} is {python_text(text)}; it contains a NUL. Remove that."
                )
            if field in _NAME_FILES and _is_too_long(text):
                raise UserError(
                    f"{field.upper()} is {python_text(text)}; it is too long for a file's name."
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
