"""A value of a record -> the text that a sample can hold, or why it cannot."""

import json
import math
import unicodedata
from typing import Any, cast

from tinkersmith.files import kind_of_json
from tinkersmith.sources.json_files import Repeated

_NESTED = (dict, list)
DEEPEST = 100  # levels of lists and objects in a record


class Unusable(Exception):
    """A record that cannot be a sample: the field, and a sentence with the reason."""

    def __init__(self, field: str, reason: str, *, unclear: bool = False) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason
        self.unclear = unclear  # whether the user must see the record to know what to do


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: null, or NaN, as programs for tables write it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank_text(text: str) -> bool:
    """Whether a text shows nothing: white space of any script, or characters without width."""
    text = text.strip()
    if not text or text[0] < "\xad":  # the first letter that shows nothing
        return not text
    return all(map(_is_invisible, text))


_INVISIBLE_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def _is_invisible(character: str) -> bool:
    return (
        character.isspace()
        or character in _INVISIBLE_LETTERS
        or unicodedata.category(character) == "Cf"
    )


def check_text(value: Any, what: str, field: str, *, required: bool = False) -> str:
    """A string of the record, as it is.

    Args:
        what: names the value at the beginning of a sentence.
        field: the record's field that is reported.
        required: whether it must show something.

    Raises:
        Unusable: it is no string, or cannot be written as UTF-8; or it is blank.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise Unusable(field, f"{what} is {kind_of_json(value)}; it must be a string.")
        value = str(value)
    if required and is_blank_text(value):
        raise Unusable(field, f"{what} is empty. Fill it in, or remove the record.")
    if not value.isascii() and has_lone_surrogate(value):
        raise Unusable(field, f"{what} contains an unpaired surrogate (\\ud8xx). Fix the text.")
    return value


def has_lone_surrogate(text: str) -> bool:
    """Whether `text` holds half of a pair of UTF-16, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not true or false."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_too_deep(record: Any) -> bool:
    """Whether lists and objects are nested deeper than files can be written with."""
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            for item in (
                cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
            )
            if isinstance(item, _NESTED)
        ]
        if not level:
            return False
    return True


def json_value(text: str) -> Any:
    """The list or object that a text holds as JSON; None if it holds none."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if is_too_deep(value) else value


def check_repeated(value: Any, what: str, field: str) -> None:
    """Refuse a value in which an object names a field twice.

    Raises:
        Unusable: there is one.
    """
    inside = [value]
    while inside:
        item = inside.pop()
        if isinstance(item, Repeated):
            raise Unusable(
                field, f'{what} has "{item.names[0]}" twice. Keep one, or remove the record.'
            )
        if isinstance(item, dict):
            inside += cast("dict[str, Any]", item).values()
        elif isinstance(item, list):
            inside += cast("list[Any]", item)


def kind_of(value: Any) -> str:
    """Like `kind_of_json`, and NaN is called missing."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN, which counts as missing"
    return kind_of_json(value)
