"""Fields of JSON bodies: each reader returns the checked value, or refuses with a sentence."""

import sys
from collections.abc import Mapping
from typing import Any

from tinkersmith.engine.errors import Refused

MAX_TTL = 10 * 366 * 24 * 3600  # seconds


def text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} is {value!r}; it must be a text that is not empty.")
    return value


def flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(f"{name} is {value!r}; it must be true or false.")
    return value


def number(body: Mapping[str, Any], name: str, kind: type = float) -> Any:
    value: Any = body.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or (kind is int and isinstance(value, float) and not value.is_integer()):
        shown = "missing, NaN or infinite" if value is None else repr(value)  # JSON has no NaN
        raise Refused(f"{name} is {shown}; it must be a {'whole ' if kind is int else ''}number.")
    if kind is float and not abs(value) <= sys.float_info.max:  # NaN is not, either
        raise Refused(f"{name} is {value}; it must be a finite number.")
    return kind(value)


def text_map(body: Mapping[str, Any], name: str) -> dict[str, str] | None:
    value = body.get(name)
    texts = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if value is not None and not texts:
        raise Refused(f"{name} is {value!r}; it must be a map of texts.")
    return value


def texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused(f"{name} is {value!r}; it must be a list of texts.")
    return value


def ttl(body: Mapping[str, Any]) -> int | None:
    seconds = optional_number(body, "ttl_seconds", int)
    if seconds is not None and not 1 <= seconds <= MAX_TTL:
        raise Refused(f"ttl_seconds is {seconds}; it must be from 1 to {MAX_TTL:,} (ten years).")
    return seconds


def part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under `name`; an absent one is empty."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(f"{name} is {value!r}; it must be an object.")
    return value or {}


def optional_number(body: Mapping[str, Any], name: str, kind: type = float) -> Any:
    return None if body.get(name) is None else number(body, name, kind)


def refuse_unknown(body: Mapping[str, Any], known: set[str], where: str) -> None:
    for name, value in body.items():
        if name not in known and value is not None:
            raise Refused(f"{where} has {name} = {value!r}, which this engine does not support.")
