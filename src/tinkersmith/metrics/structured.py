"""Answers that should be JSON: whether they are, whether they equal, and which fields are right."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

from tinkersmith.plurals import counted

MOSTLY_JSON = 0.9  # of the expected outputs: then the test set asks for JSON
_FENCE = re.compile(
    r"```[ \t]*(?:json5?|jsonc|javascript|js)?[ \t]*\r?\n(.*?)\n?[ \t]*```", re.S | re.I
)
_SHOWN = 5  # fields that are named; the file has all
_STORED = 100


@dataclass(frozen=True, slots=True)
class JsonOutput:
    """A text that is JSON."""

    value: Any  # an object or a list
    fenced: bool  # within ``` and ```


@dataclass(frozen=True, slots=True)
class FieldMatch:
    """How the fields of an answer compare with the expected ones."""

    valid: bool  # the answer is JSON
    fenced: bool
    surrounded: bool  # not JSON, but there is a fenced JSON within other text
    equal: bool
    right: int = 0  # fields with the expected value
    expected: int = 0
    missing: list[str] = field(default_factory=list[str])
    extra: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])  # fields with another value

    def scores(self) -> dict[str, float]:
        return {
            "json_valid": float(self.valid),
            "json_match": float(self.equal),
            "json_fields": self.right / self.expected,
        }


def read_structure(text: str) -> JsonOutput | None:
    """The object or list that a text is, also in a code fence; None if it is none.

    A key that occurs twice, NaN and Infinity are not JSON here: readers disagree about them.
    """
    text = text.strip().removeprefix("\ufeff")
    fence = _FENCE.fullmatch(text)
    try:
        value = json.loads(
            fence[1] if fence else text,
            object_pairs_hook=_object,
            parse_float=_number,
            parse_int=_number,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        return None
    return JsonOutput(value, bool(fence)) if isinstance(value, dict | list) else None


def match_fields(expected: JsonOutput, produced: str) -> FieldMatch:
    """Compare an answer with the expected structure, field by field.

    A field is a leaf: a value that is no object and no list, or an empty one. Its path names it.
    """
    wanted = _leaves(expected.value)
    given = read_structure(produced)
    if given is None:
        inner = _FENCE.search(produced)
        surrounded = inner is not None and read_structure(inner[0]) is not None
        return FieldMatch(False, False, surrounded, False, 0, len(wanted))
    found = _leaves(given.value)
    right = [path for path in wanted if path in found and _same(wanted[path], found[path])]
    missing = [_name(path) for path in wanted if path not in found]
    extra = [_name(path) for path in found if path not in wanted]
    wrong = [_name(p) for p in wanted if p in found and not _same(wanted[p], found[p])]
    return FieldMatch(
        valid=True,
        fenced=given.fenced,
        surrounded=False,
        equal=len(right) == len(wanted) == len(found),
        right=len(right),
        expected=len(wanted),
        missing=missing,
        extra=extra,
        wrong=wrong,
    )


def asks_for_json(expected: Sequence[str]) -> int:
    """How many expected outputs are JSON objects or lists."""
    return sum(read_structure(text) is not None for text in expected)


def structure_summary(matches: Sequence[FieldMatch]) -> dict[str, Any]:
    """What the file of results says of one model's answers."""
    fields = sum(match.expected for match in matches)
    by_kind = {
        kind: Counter(name for match in matches for name in set(getattr(match, kind)))
        for kind in ("missing", "extra", "wrong")
    }
    return {
        "answers": len(matches),
        "valid": sum(match.valid for match in matches),
        "equal": sum(match.equal for match in matches),
        "in_code_fence": sum(match.fenced for match in matches),
        "with_text_around": sum(match.surrounded for match in matches),
        "fields": fields,
        "fields_right": sum(match.right for match in matches),
        **{f"{kind}_fields": dict(names.most_common(_STORED)) for kind, names in by_kind.items()},
    }


def structure_lines(summary: dict[str, Any]) -> list[str]:
    """The summary of one model in sentences."""
    n, fields = summary["answers"], summary["fields"]
    lines = [
        f"JSON: {summary['valid']:,} of {counted(n, 'answer')} valid, {summary['equal']:,} equal; "
        f"{summary['fields_right']:,} of {counted(fields, 'field')} right."
    ]
    if summary["in_code_fence"]:
        are = "is" if summary["in_code_fence"] == 1 else "are"
        lines.append(f"{summary['in_code_fence']:,} {are} in a code fence, which is allowed.")
    if summary["with_text_around"]:
        have = "has" if summary["with_text_around"] == 1 else "have"
        lines.append(
            f"{summary['with_text_around']:,} that are not valid {have} JSON in a code fence with "
            "other text around it."
        )
    for kind in ("missing", "extra", "wrong"):
        names = cast("dict[str, int]", summary[f"{kind}_fields"])
        if names:
            shown = ", ".join(f"{name} {n:,}" for name, n in list(names.items())[:_SHOWN])
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            lines.append(f"{kind.capitalize()} fields: {shown}{more}.")
    return lines


# ---- reading


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _number(text: str) -> Decimal | tuple[str, str]:
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent that no machine holds
        return ("number", text)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _leaves(value: Any) -> dict[tuple[str | int, ...], Any]:
    """The leaves by path, without recursion: depth is what a hostile answer has."""
    leaves: dict[tuple[str | int, ...], Any] = {}
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, dict) and item:
            content = cast("dict[str, Any]", item)
            waiting += [((*path, _normal(key)), inner) for key, inner in reversed(content.items())]
        elif isinstance(item, list) and item:
            inner_items = list(enumerate(cast("list[Any]", item)))
            waiting += [((*path, place), inner) for place, inner in reversed(inner_items)]
        else:
            leaves[path] = item
    return leaves


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, str) and isinstance(second, str):
        return _normal(first) == _normal(second)
    return type(first) is type(second) and first == second  # True is not 1


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _name(path: tuple[str | int, ...]) -> str:
    """items[].price: places in lists are left out, so that equal mistakes count together."""
    name = "".join("[]" if isinstance(step, int) else f".{step}" for step in path)
    return name.removeprefix(".") or "(all of it)"
