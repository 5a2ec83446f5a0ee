"""config.py, a Python program -> the values of its upper-case names, each with its line."""

import ast
import io
import runpy
import tokenize
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.files import read_regular
from tinkersmith.settings.fields import FIELDS
from tinkersmith.settings.names import (
    LARGEST_SETTINGS_FILE,
    Given,
    is_of_environment,
    not_a_setting,
    setting_close_to,
)
from tinkersmith.settings.spelling import repeated_keys

_NOTHING = "sets nothing; a setting is written as LORA_RANK = 16"


def read_python(path: Path, data: bytes) -> dict[str, Given]:
    """Run a settings file and return its upper-case names.

    Raises:
        UserError: it is not Python, it fails, or a line of it has no effect.
    """
    tree = _parsed(path, data)
    refuse_lines_without_effect(tree, str(path))
    try:
        namespace = runpy.run_path(str(path))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a program of the user: it can end in any way
        if isinstance(error, SyntaxError):
            raise UserError(_syntax_sentence(path, error)) from None
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {_kind_and_text(error)}. Fix that line.") from None
    return values_of(namespace, tree, str(path))


def values_of_script(namespace: Mapping[str, object], where: str) -> dict[str, Given]:
    """The upper-case names of a script that has run, which `namespace` are the globals of.

    Raises:
        UserError: a name of it looks like a setting and has no effect.
    """
    script = namespace.get("__file__")
    try:
        tree = ast.parse(read_regular(cast(str, script), LARGEST_SETTINGS_FILE)) if script else None
    except (OSError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        tree = None  # the file may be gone, or packed
    if tree is None:
        for name in namespace:
            if not script and name.lower() in FIELDS and not name.isupper():
                raise not_a_setting(name, where)
        return {name: Given(value, where) for name, value in _settings_in(namespace).items()}
    return values_of(namespace, tree, where)


def values_of(namespace: Mapping[str, object], tree: ast.Module, where: str) -> dict[str, Given]:
    """The upper-case names that hold values.

    Names in lower case, names with a leading underscore, and imported things are the user's own,
    unless nothing uses them and they look like a setting.

    Raises:
        UserError: a name in another case looks like a setting, and the program does not use it.
    """
    _refuse_repeated_keys(tree, where)
    lines = dict(_assignments(tree.body))
    used = _used_names(tree)
    for name, line in lines.items():
        if name in used or name.isupper() or name.startswith("_") or name not in namespace:
            continue
        place = f"{where}, line {line}"
        if setting_close_to(name):
            raise not_a_setting(name, place)
        value = namespace[name]
        keys: Iterable[object] = (
            cast("Mapping[object, object]", value) if isinstance(value, Mapping) else ()
        )
        if any(isinstance(key, str) and key.lower() in FIELDS for key in keys):
            raise UserError(
                f"{place}: settings inside {name} have no effect. Write each on a line of its own, "
                "such as LORA_RANK = 16."
            )
    return {
        name: Given(value, f"{where}, line {lines[name]}" if name in lines else where)
        for name, value in _settings_in(namespace).items()
    }


def _refuse_repeated_keys(tree: ast.Module, where: str) -> None:
    """Refuse a key that is twice in a dict of a setting: Python takes the last one in silence.

    A setting may take its dict from a name in lower case, so their dicts are looked at, too.

    Raises:
        UserError: the sentence says the key, its setting and its line.
    """
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
                for name in names:
                    values.setdefault(name, []).append(node.value)
    for setting in (name for name in values if name.isupper() and name.lower() in FIELDS):
        looked_at, ahead = set[str](), [setting]
        while ahead:
            name = ahead.pop()
            if name in looked_at:
                continue
            looked_at.add(name)
            for value in values.get(name, ()):
                for key in repeated_keys(value):
                    shown = one_line(ast.unparse(key).strip("\"'"))
                    raise UserError(
                        f"{where}, line {key.lineno}: {setting} names {shown} twice. Name it once."
                    )
                ahead += [part.id for part in ast.walk(value) if isinstance(part, ast.Name)]


def refuse_unread_constants(script: Path | str) -> None:
    """Refuse constants of a project's script that nothing reads: keys, and settings of config.py.

    Raises:
        UserError: such as for TINKER_API_KEY = "..."; the value is not shown.
    """
    try:
        tree = ast.parse(read_regular(script, LARGEST_SETTINGS_FILE))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return  # packed, or gone since
    used = _used_names(tree)
    if "globals" in used:  # it gives all its names to `settings_from`
        return
    for name, line in _assignments(tree.body):
        if name in used:
            continue
        place = f"{script}, line {line}"
        if is_of_environment(name):
            raise not_a_setting(name, place)
        if name.isupper() and name.lower() in FIELDS:
            raise UserError(
                f"{place}: {name} has no effect in this script. Write it into config.py, or give "
                f"it with --set {name}=VALUE."
            )


def _used_names(tree: ast.Module) -> set[str]:
    """The names that a program reads somewhere."""
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def refuse_lines_without_effect(tree: ast.Module, where: str) -> None:
    """Refuse what is valid Python and sets nothing, although it looks like a setting.

    Raises:
        UserError: such as for `LORA_RANK: 16`, `LORA_RANK == 16` and {"LORA_RANK": 16}.
    """
    for node in tree.body:
        place = f"{where}, line {node.lineno}"
        if isinstance(node, ast.AnnAssign) and node.value is None:
            text = one_line(ast.unparse(node))
            raise UserError(f"{place}: {text} {_NOTHING} in Python, or as LORA_RANK: 16 in YAML.")
        if isinstance(node, ast.Expr) and isinstance(node.value, _DISPLAYS):
            raise UserError(f"{place}: {one_line(ast.unparse(node))} {_NOTHING}.")
        if isinstance(node, ast.ClassDef):
            for name, line in _assignments(node.body):
                if name.lower() in FIELDS:
                    raise UserError(
                        f"{where}, line {line}: {name} inside the class {node.name} has no effect. "
                        "Write it at the top level, without indentation."
                    )


_DISPLAYS = (ast.Dict, ast.Set, ast.List, ast.Tuple, ast.Compare, ast.Name)


def _parsed(path: Path, data: bytes) -> ast.Module:
    _check_text(path, data)
    try:
        return ast.parse(data, str(path))
    except SyntaxError as error:
        from tinkersmith.settings.formats import look_alike

        advice = look_alike(data.decode("utf-8-sig", "replace"), path.suffix)
        raise UserError(_syntax_sentence(path, error, advice)) from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise UserError(f"{path}: {_kind_and_text(error)}. {HOW_TO_WRITE}") from None


def _syntax_sentence(path: Path, error: SyntaxError, advice: str = "") -> str:
    where = f"{error.filename or path}, line {error.lineno}" if error.lineno else str(path)
    advice = advice or ("Fix that line." if path.suffix.lower() == ".py" else HOW_TO_WRITE)
    return f"{where}: {error.msg}. {advice}"


HOW_TO_WRITE = (
    "A settings file is Python, one line such as LORA_RANK = 16 for each setting, or a .yaml, "
    ".json or .toml file."
)


def _check_text(path: Path, data: bytes) -> None:
    """Refuse a file that cannot be Python, before Python tries."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is in UTF-16. Save it as UTF-8.")
    if b"\0" in data:  # compiled Python or an archive: runpy would try some of these
        offset = data.index(b"\0")
        raise UserError(
            f"{path} is not plain text in UTF-8: there is a NUL at byte {offset:,}. {HOW_TO_WRITE}"
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


def _settings_in(namespace: Mapping[str, object]) -> dict[str, object]:
    """The upper-case names that hold values; a module or type is one only for a setting's name."""
    return {
        name: value
        for name, value in namespace.items()
        if name.isupper()
        and not name.startswith("_")
        and (
            name.lower() in FIELDS
            or not isinstance(value, types.ModuleType | type | types.FunctionType)
        )
    }


def _assignments(body: Iterable[ast.stmt]) -> Iterator[tuple[str, int]]:
    """The names that statements assign, with their lines, functions and classes left out."""
    for node in body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id, node.lineno
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for inner in ("body", "orelse", "finalbody"):
            yield from _assignments(getattr(node, inner, []))
        for handler in getattr(node, "handlers", []):
            yield from _assignments(handler.body)


def _kind_and_text(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
