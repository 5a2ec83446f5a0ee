"""YAML, JSON and TOML files -> the values of their upper-case names, each with its line.

A value is read as its setting needs it: `no` is a text for EXPORT_AFTER_TRAINING and False for
SHOW_LENGTH_WARNINGS, and 1e-4 is a number, which YAML 1.1 denies.
"""

import ast
import datetime
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from tinkersmith.errors import UserError, one_line
from tinkersmith.files import read_regular
from tinkersmith.settings.fields import FIELDS
from tinkersmith.settings.names import LARGEST_SETTINGS_FILE, Given, not_a_setting
from tinkersmith.settings.spelling import flag_from, kind_of_value, number_from

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_TOML_KEY = r"""(?:[\w-]+\s*\.\s*)*("[^"]*"|'[^']*'|[\w-]+)"""
_TOML_NAME = re.compile(rf"\s*(?:{_TOML_KEY}\s*=|\[+\s*{_TOML_KEY}\s*\])")
_JSON_COLON = re.compile(r"\s*:")
_DEEPEST = 20  # levels of lists within lists
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_data_format(path: Path, data: bytes) -> dict[str, Given]:
    """Read a settings file whose name ends with one of `DATA_FORMATS`.

    Raises:
        UserError: it is not in that format, or a name of it is not a setting.
    """
    text = _decoded(path, data)
    values = DATA_FORMATS[path.suffix.lower()](path, text)
    if not values:
        raise UserError(f"{path} sets nothing. {_example(path)}")
    return values


def look_alike(text: str, suffix: str) -> str:
    """The advice to name the file otherwise, if its text is in another format; else ""."""
    for kind, suffixes, names in (
        ("Python", (".py",), _names_in_python),
        ("TOML", (".toml",), _names_in(tomllib.loads)),
        ("JSON", (".json",), _names_in(json.loads)),
        ("YAML", (".yaml", ".yml"), _names_in(yaml.safe_load)),
    ):
        if suffix.lower() not in suffixes and any(name.lower() in FIELDS for name in names(text)):
            return f"It looks like {kind}: give it a name that ends with {suffixes[0]}."
    return ""


def upper_case_names(path: Path) -> list[str]:
    """The upper-case names at the top level of a file; none of a file in another format.

    Raises:
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    loaders: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}
    text = read_regular(path, LARGEST_SETTINGS_FILE).decode("utf-8", "replace")
    names = _names_in(loaders.get(suffix, yaml.safe_load))(text.removeprefix("\ufeff"))
    return [name for name in names if name.isupper()]


def _read_yaml(path: Path, text: str) -> dict[str, Given]:
    try:
        untyped = cast("Any", yaml)
        compose = cast("Callable[..., yaml.Node | None]", untyped.compose)
        root = compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise _wrong(path, text, f"{where}: {one_line(str(problem), 200)}", "YAML") from None
    except (RecursionError, ValueError) as error:
        raise _wrong(path, text, f"{path}: {one_line(str(error), 200)}", "YAML") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise _wrong(path, text, f"{path} does not hold names with values", "YAML")
    values: dict[str, Given] = {}
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", root.value)
    for key, node in pairs:
        where = f"{path}, line {key.start_mark.line + 1}"
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or section"
        field = _field(name, isinstance(node, yaml.MappingNode), where)
        if name in values:
            raise _repeated(name, where, values[name].where)
        value = _yaml_value(node, kind_of_value(field), where, 0)
        if value is None:
            raise UserError(f"{where}: {name} has no value. Write one, or remove the line.")
        values[name] = Given(value, where)
    return values


def _yaml_value(node: yaml.Node, kind: str, where: str, depth: int) -> object:
    if depth > _DEEPEST:
        raise UserError(f"{where}: the value is nested too deeply.")
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise UserError(f"{where}: the tag {one_line(node.tag)} is not read. Remove it.")
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        if node.style is not None or (node.tag.endswith(":str") and kind != "number"):
            return text
        if node.tag.endswith(":null"):
            return None
        if kind == "number":
            number = number_from(text)
            return text if number is None else number
        if kind == "flag":
            flag = flag_from(text)
            return text if flag is None else flag
        return text
    if isinstance(node, yaml.SequenceNode):
        items = cast("list[yaml.Node]", node.value)
        inner = "number" if kind == "number list" else "text"
        return [_yaml_value(item, inner, where, depth + 1) for item in items]
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    result: dict[str, object] = {}
    places: dict[str, str] = {}
    for key, value in pairs:
        place = f"{where.rpartition(', line ')[0]}, line {key.start_mark.line + 1}"
        name = _yaml_value(key, "text", place, depth + 1)
        if not isinstance(name, str):
            raise UserError(f"{place}: a name is a text. Put it in quotes.")
        if name in result:
            raise _repeated(name, place, places[name])
        places[name] = place
        inner = "number" if kind in ("files", "numbers") else "text"
        result[name] = _yaml_value(value, inner, place, depth + 1)
    return result


def _read_json(path: Path, text: str) -> dict[str, Given]:
    try:
        values: object = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            return {}
        words = f"{path}, line {error.lineno}: {_json_problem(error)}"
        raise _wrong(path, text, words, "JSON") from None
    except (RecursionError, ValueError) as error:
        raise _wrong(path, text, f"{path}: {one_line(str(error), 200)}", "JSON") from None
    _refuse_repeated_in_json(path, text)
    if not isinstance(values, dict):
        raise _wrong(path, text, f"{path} does not hold an object", "JSON")
    return {
        name: _given(name, value, _at(path, (_lines_of_json_key(text, name) or [0])[0]))
        for name, value in cast("dict[str, object]", values).items()
        if name != "$schema"  # tells an editor where the schema is
    }


def _refuse_repeated_in_json(path: Path, text: str) -> None:
    """Refuse sound JSON in which an object has a name twice: json would take the last one."""
    enclosing: list[dict[str, int]] = []  # the lines of the names so far; an array has none
    line, counted_to = 1, 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "{[":
            enclosing.append({})
        elif token[0] in "}]":
            enclosing.pop()
        elif _JSON_COLON.match(text, token.end()):
            line, counted_to = line + text.count("\n", counted_to, token.end()), token.end()
            name, names = cast("str", json.loads(token[0])), enclosing[-1]
            if name in names:
                raise _repeated(name, _at(path, line), _at(path, names[name]))
            names[name] = line


def _json_problem(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos :].lstrip()
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove this one, or write the file as YAML"
    if rest.startswith("'"):
        return "JSON has texts in double quotes"
    word = re.match(r"True|False|None", rest)
    if word:
        return f"{word[0]} is written {word[0].lower().replace('none', 'null')} in JSON"
    at_bracket = rest.startswith(("}", "]")) and error.doc[: error.pos].rstrip().endswith(",")
    if at_bracket or re.match(r",\s*[}\]]", rest):  # Python 3.13 points at the comma
        return "a comma stands before the closing bracket, which JSON does not allow"
    return error.msg


def _read_toml(path: Path, text: str) -> dict[str, Given]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        where = f"{path}, line {line[1]}" if line else str(path)
        if name := _repeated_in_toml(text, problem, int(line[1]) if line else 0):
            raise _repeated(name[0], _at(path, name[1]), "") from None
        raise _wrong(path, text, f"{where}: {problem}", "TOML") from None
    except (RecursionError, ValueError) as error:
        raise _wrong(path, text, f"{path}: {one_line(str(error), 200)}", "TOML") from None
    result: dict[str, Given] = {}
    for name, value in values.items():
        form = rf"^[ \t]*\[?\[?[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*[=\].]"
        match = re.search(form, text, re.MULTILINE)
        line = text.count("\n", 0, match.end()) + 1 if match else 0
        result[name] = _given(name, value, _at(path, line))
    return result


def _repeated_in_toml(text: str, problem: str, line: int) -> tuple[str, int] | None:
    """The name that tomllib finds for the second time, and its line; None for other problems.

    Args:
        line: where tomllib stopped reading, counted from 1; 0 is the end.
    """
    lines = text.splitlines()
    line = line or len(lines)
    if inline := re.match(r"Duplicate inline table key '(.*)'", problem):
        return inline[1], line
    if section := re.match(r"Cannot declare \((.*?),?\) twice", problem):
        return ".".join(part.strip(" '\"") for part in section[1].split(",")), line
    if "Cannot overwrite" not in problem:
        return None
    while line > 1 and not _TOML_NAME.match(lines[line - 1]):  # within a value of several lines
        line -= 1
    name = _TOML_NAME.match(lines[line - 1])
    return ((name[1] or name[2]).strip("\"'"), line) if name else None


DATA_FORMATS: Mapping[str, Callable[[Path, str], dict[str, Given]]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
    ".toml": _read_toml,
}


def _given(name: str, value: object, where: str) -> Given:
    is_section = isinstance(value, dict)
    field = _field(name, is_section, where)
    if value is None:
        raise UserError(f"{where}: {name} has no value. Write one, or remove the line.")
    if isinstance(value, datetime.date | datetime.time):
        raise UserError(f"{where}: {name} is a date or a time. Put it in quotes.")
    if isinstance(value, dict) and kind_of_value(field) in ("files", "names", "numbers"):
        for key, inner in cast("dict[str, object]", value).items():
            if isinstance(inner, dict):  # what TOML makes of a.jsonl = 2.0
                more = next(iter(cast("dict[str, object]", inner)), "...")
                raise UserError(
                    f'{where}: {name} has a section {key}. Put a name with a dot in quotes: "{key}.'
                    f'{more}".'
                )
    return Given(cast("object", value), where)


def _field(name: str, is_section: bool, where: str) -> str:
    """The field that a name in a file means: only our own names may stand there."""
    field = name.lower()
    if field in FIELDS and name.isupper():
        return field
    if is_section and field not in FIELDS:
        raise UserError(
            f"{where}: {one_line(name)} is a section. Settings stand at the top level, without "
            "sections. Remove it, and write them without indentation."
        )
    raise not_a_setting(name, where)


def _repeated(name: str, where: str, first: str) -> UserError:
    also = f" ({first} sets it as well)" if first and first != where else ""
    return UserError(f"{where}: {one_line(name)} is named twice{also}. Name it once.")


def _wrong(path: Path, text: str, problem: str, kind: str) -> UserError:
    """The sentence about a file that is not in the format that its name says."""
    advice = look_alike(text, path.suffix) or f"Correct that: {_example(path)}"
    return UserError(f"{problem.rstrip('.')}. The file is not {kind} as settings need it. {advice}")


def _example(path: Path) -> str:
    example = {".json": '{"LORA_RANK": 16}', ".toml": "LORA_RANK = 16"}
    line = example.get(path.suffix.lower(), "LORA_RANK: 16")
    return f"a setting is written as {line}"[0].upper() + f"a setting is written as {line}."[1:]


def _decoded(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02X} is not {encoding}. Save the "
            "file as UTF-8."
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is not plain text: there is a NUL in it. Save the file as UTF-8.")
    return text


def _at(path: Path, line: int) -> str:
    return f"{path}, line {line}" if line else str(path)


def _lines_of_json_key(text: str, name: str) -> list[int]:
    form = re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:"
    return [text.count("\n", 0, match.start()) + 1 for match in re.finditer(form, text)]


def _names_in(read: Callable[[str], Any]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        try:
            values = read(text)
        except (ValueError, RecursionError, yaml.YAMLError):
            return []
        return (
            list(map(str, cast("dict[object, object]", values))) if isinstance(values, dict) else []
        )

    return names


def _names_in_python(text: str) -> list[str]:
    try:
        tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
