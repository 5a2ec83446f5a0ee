"""A user's text -> the same text with its special tokens broken by a guard character, and back."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

# Unicode reserves these two for internal use, so an exchanged text does not hold them. If it does,
# the second escapes the first, and nothing is lost.
GUARDED = "\ufdd0"
_ESCAPE = "\ufdd1"


def guard(text: str, special_tokens: Sequence[str]) -> str:
    """`text` with every special token in it broken by the guard character."""
    if GUARDED in text:
        text = text.replace(GUARDED, GUARDED + _ESCAPE)
    pattern, beginnings = _special_pattern(tuple(special_tokens))
    if pattern is None:
        return text
    for beginning in beginnings:  # a loop takes less time than any()
        if beginning in text:
            break
    else:
        return text
    while pattern.search(text):  # again, as two tokens may overlap
        text = pattern.sub(lambda match: match[0][0] + GUARDED + match[0][1:], text)
    return text


def guard_all(value: Any, special_tokens: Sequence[str]) -> Any:
    """A JSON value with every string in it guarded, names of fields excepted."""
    if isinstance(value, str):
        return guard(value, special_tokens)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: guard_all(inner, special_tokens) for name, inner in fields.items()}
    if isinstance(value, list | tuple):
        return [guard_all(inner, special_tokens) for inner in cast("Sequence[Any]", value)]
    return value


def unguarded(text: str) -> str:
    """The text without guard characters, as the user wrote it."""
    if GUARDED not in text:
        return text
    return re.sub(f"{GUARDED}({_ESCAPE}?)", lambda match: GUARDED if match[1] else "", text)


@lru_cache(maxsize=8)
def _special_pattern(tokens: tuple[str, ...]) -> tuple[re.Pattern[str] | None, frozenset[str]]:
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    if not longest_first:
        return None, frozenset()
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    # Looking for a few beginnings first is much faster than the pattern on text without any.
    return pattern, frozenset(token[:2] for token in longest_first)
