"""A value as it is typed -> the value that its setting needs, for --set and for YAML."""

import ast
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_origin

from tinkersmith.errors import UserError, one_line
from tinkersmith.settings.fields import FIELDS, FILE_FIELDS
from tinkersmith.settings.names import Given, field_named

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_BEFORE_QUOTES = ("", ":", "=", "：")
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+)?")


def kind_of_value(field: str) -> str:
    """How a setting is written: "flag", "number", "text", "list", "files", "names", "numbers".

    "numbers" are a dict of names and numbers, "number list" a list of numbers.
    """
    annotation: Any = FIELDS[field].annotation
    if field in FILE_FIELDS:
        return "files"
    if annotation == dict[str, float]:
        return "numbers"
    if field == "adam_betas":
        return "number list"
    if get_origin(annotation) is list:
        return "list"
    if annotation is bool:
        return "flag"
    if annotation in (int, float):
        return "number"
    return "names" if get_origin(annotation) is dict else "text"


def number_from(text: str) -> int | float | None:
    """The number that a text is in decimal digits, such as 1e-4 or 1_000; None if it is none."""
    if not text.isascii() or not _NUMBER.fullmatch(text) or re.match(r"[+-]?0_?\d", text):
        return None  # 010 is 10 for some and 8 for others
    try:
        return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else float(text)
    except ValueError:  # thousands of digits
        return None


def flag_from(text: str) -> bool | None:
    """True or False for "true", "yes", "on" and their opposites, in any case; else None."""
    return _FLAGS.get(text.lower())


def read_overrides(overrides: list[str]) -> dict[str, Given]:
    """The fields that NAME=VALUE texts of --set change.

    Raises:
        UserError: a text has no value, names no setting, or names one for the second time.
    """
    values: dict[str, Given] = {}
    typed: dict[str, str] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"--set {one_line(override)} has no value; write it as --set NAME=VALUE."
            )
        field = field_named(name.strip(), "--set", any_case=True)
        if field in values:
            raise UserError(_given_twice(field, typed[field], text.strip()))
        typed[field] = text.strip()
        if field == "prompt_template":
            values[field] = Given(_template(text), "--set")
        else:
            values[field] = Given(_typed_value(field, text.strip()), "--set")
    return values


def _template(text: str) -> object:
    """A value of PROMPT_TEMPLATE. White space belongs to a format string.

    Raises:
        UserError: it holds a backslash and an n, where a new line is meant.
    """
    value = _typed_value("prompt_template", text.strip())
    if value != text.strip() or "{" not in text:
        return value
    if "\\n" in text:
        quoted = shlex.quote(f'PROMPT_TEMPLATE="{text}"')
        raise UserError(
            "--set PROMPT_TEMPLATE has a backslash and an n, which stay two letters. For a new "
            f"line put the text in quotes: --set {quoted}"
        )
    return text


def override_text(field: str, value: str) -> str:
    """NAME=VALUE for a setting that is a text: `read_overrides` reads the same text back."""
    same = _typed_value(field, value.strip()) == value
    return f"{field.upper()}={value if same else repr(value)}"


def output_dir_option(output_dir: Path | str) -> tuple[str, ...]:
    """The option of a command that is to find runs in a folder which is not the default."""
    place = str(output_dir)
    if place == FIELDS["output_dir"].default:
        return ()
    return ("--set", override_text("output_dir", place))


def _given_twice(field: str, first: str, second: str) -> str:
    values = f"{one_line(first)} and {one_line(second)}"
    advice = "Give it once."
    if kind_of_value(field) in ("files", "names", "numbers", "list"):
        advice = f"Write both in one: --set {field.upper()}={one_line(first)},{one_line(second)}"
    return f"--set {field.upper()} is given twice: {values}. {advice}"


def _typed_value(field: str, text: str) -> object:
    """The value of a text from the command line; a text that is none stays as it is."""
    kind = kind_of_value(field)
    if kind == "number":
        number = number_from(text)
        return text if number is None else number
    if kind == "flag":
        flag = {"1": True, "0": False}.get(text, flag_from(text))
        return text if flag is None else flag
    if kind == "files":
        return _files(field, text)
    if kind == "names":
        return _pairs(field, text, str)
    if kind == "numbers":
        return _pairs(field, text, _weight)
    if kind in ("list", "number list"):
        literal = _literal(text)
        if isinstance(literal, str | list | tuple):
            return cast(object, literal)
        names = names_in(text[1:-1] if _is_enclosed(text, "[(") else text)
        return names if kind == "list" else [_weight(name) for name in names]
    literal = _literal(text)
    return literal if isinstance(literal, str) else text


def _files(field: str, text: str) -> object:
    """The files that a text names: one, several in any usual spelling, or files with weights."""
    if _exists(text):
        return [text]
    literal = _literal(text)
    _refuse_repeated(field, text, literal)
    if isinstance(literal, str | list | tuple | dict):
        return cast(object, literal)
    if _is_enclosed(text, "{"):
        return _pairs(field, text, _weight)
    names = names_in(text[1:-1] if _is_enclosed(text, "[(") else text)
    weighted = [name for name in names if _has_weight(name) and not _exists(name)]
    if len(weighted) == len(names):
        return _pairs(field, text, _weight)
    if weighted and len(names) > 1:
        raise UserError(
            f"--set {field.upper()}={one_line(text)} gives only some files a weight. Give each "
            "one, such as DATA_FILES=a.jsonl:2.0,b.jsonl:1.0"
        )
    if len(names) == 1 and not _is_enclosed(text, "[("):
        words = names[0].split()
        # "my file.json" is one name: its first word has no suffix and is no file.
        if len(words) > 1 and all(Path(word).suffix or _exists(word) for word in words):
            return words
    return names


def _pairs(field: str, text: str, value_of: Callable[[str], object]) -> object:
    """A dict from {"a": "b"}, {a: b}, a:b,c:d or a=b,c=d."""
    literal = _literal(text)
    _refuse_repeated(field, text, literal)
    if isinstance(literal, dict):
        return cast(object, literal)
    pairs: dict[str, object] = {}
    for item in names_in(text[1:-1] if _is_enclosed(text, "{") else text):
        name, separator, value = _pair(item) if value_of is str else _weighted(item)
        if not separator or not name or not value:
            example = {
                "columns": "COLUMNS=instruction:question,output:answer",
                "judge_price": "JUDGE_PRICE=input:0.5,output:1.5",
                "token_price": "TOKEN_PRICE=prefill:0.2,sample:0.6,train:0.44",
            }.get(field, "DATA_FILES=a.jsonl:2.0,b.jsonl:0.5")
            raise UserError(
                f"--set {field.upper()}={one_line(text)} has no name and value in {one_line(item)}."
                f" Write it as --set {example}"
            )
        if name in pairs:
            raise _named_twice(field, name)
        pairs[name] = value_of(value)
    return pairs


def _pair(item: str) -> tuple[str, str, str]:
    match = re.fullmatch(
        r"""\s*("[^"]*"|'[^']*'|[^:=：]*?)\s*([:=：])\s*(.*?)\s*""", item, re.DOTALL
    )
    return (_unquoted(match[1]), match[2], _unquoted(match[3])) if match else (item, "", "")


def _weighted(item: str) -> tuple[str, str, str]:
    """A file and its weight, which stands behind the last colon: C:\\data\\a.jsonl:2."""
    name, separator, weight = item.rpartition(":")
    return _unquoted(name.strip()), separator, weight.strip()


def _weight(text: str) -> object:
    number = number_from(text)
    return text if number is None else number


def _has_weight(name: str) -> bool:
    file, _, weight = name.rpartition(":")
    return number_from(weight.strip()) is not None and bool(file) and file not in ("hf", "ms")


def names_in(text: str) -> list[str]:
    """The items between commas or semicolons that are outside of quotes and brackets."""
    items: list[str] = []
    open_brackets: list[str] = []
    item = quote = ""
    for index, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'" and item.strip()[-1:] in _BEFORE_QUOTES and c in text[index + 1 :]:
            quote = c  # "it's.json" has no quotes around it
        elif c in _CLOSING:
            open_brackets.append(_CLOSING[c])
        elif open_brackets and c == open_brackets[-1]:
            open_brackets.pop()
        elif c in ",;，；" and not open_brackets:
            items.append(item)
            item = ""
            continue
        item += c
    return [_unquoted(item.strip()) for item in [*items, item] if item.strip()] or [text]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _is_enclosed(text: str, brackets: str) -> bool:
    return len(text) > 1 and text[0] in brackets and text[-1] == _CLOSING[text[0]]


def _literal(text: str) -> object:
    """The value of a Python or JSON literal; None if the text is none."""
    for read in (ast.literal_eval, json.loads):
        try:
            return cast(object, read(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return None


def _refuse_repeated(field: str, text: str, literal: object) -> None:
    """Refuse a literal in which a dict has a key twice: Python and json would take the last one."""
    if not isinstance(literal, dict | list | tuple):
        return

    def unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        for index, (name, _) in enumerate(pairs):
            if any(name == earlier for earlier, _ in pairs[:index]):
                raise _named_twice(field, name)
        return dict(pairs)

    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        json.loads(text, object_pairs_hook=unrepeated)
        return
    for key in repeated_keys(tree):
        raise _named_twice(field, ast.unparse(key).strip("\"'"))


def repeated_keys(tree: ast.AST) -> Iterator[ast.expr]:
    """The keys of dict displays that stand there for the second time, as the same code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            codes = set[str]()
            for key in node.keys:
                if key is None:  # **more
                    continue
                code = ast.dump(key)
                if code in codes:
                    yield key
                codes.add(code)


def _named_twice(field: str, name: str) -> UserError:
    return UserError(f"--set {field.upper()} names {one_line(name)} twice. Name it once.")


def _exists(name: str) -> bool:
    try:
        return Path(name).exists() or (Path("data") / name).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False
