"""Fields of JSON bodies: each reader returns the checked value, or refuses with a sentence."""

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard, overload

from tinkersmith.engine.errors import Refused

MAX_NUMBER = 2**31 - 1  # of a session's clients, and of a client's operations: the SDK counts them
# Of a sampling client's requests: a copy in another process, from pickle or a handle, begins to
# count at a random multiple of 10**9, which may be 10**18.
MAX_SAMPLE_NUMBER = 2**63 - 1
MAX_TTL = 10 * 366 * 24 * 3600  # seconds

_SHOWN = 200  # characters of a value that a sentence quotes

Body = Mapping[str, Any]


def string(body: Body, name: str) -> str:
    """A string that is not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} is {shown(value)}; it must be a non-empty string.")
    return value


def flag(body: Body, name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(f"{name} is {shown(value)}; it must be true or false.")
    return value


def integer(body: Body, name: str) -> int:
    """A whole number of any size; 2.0 is one, too."""
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(f"{name} is {_shown(value)}; it must be a whole number.")
    return value


@overload
def optional_integer(body: Body, name: str, default: int) -> int: ...
@overload
def optional_integer(body: Body, name: str, default: None = None) -> int | None: ...
def optional_integer(body: Body, name: str, default: int | None = None) -> int | None:
    return default if body.get(name) is None else integer(body, name)


def sequence_number(body: Body, name: str, highest: int = MAX_NUMBER) -> int:
    """A number that the SDK has counted: of an operation, or of a client in its session."""
    value = integer(body, name)
    if not 0 <= value <= highest:
        raise Refused(f"{name} is {shown(value)}; it must be from 0 to {highest:,}.")
    return value


def number(body: Body, name: str) -> float:
    """A finite number."""
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Refused(f"{name} is {_shown(value)}; it must be a number.")
    if not abs(value) <= sys.float_info.max:  # also false for NaN
        raise Refused(f"{name} is {shown(value)}; it must be a finite number.")
    return float(value)


def optional_number(body: Body, name: str, default: float) -> float:
    return default if body.get(name) is None else number(body, name)


def _shown(value: object) -> str:
    # JSON has no NaN: the SDK sends null for it.
    return "missing, NaN or infinite" if value is None else shown(value)


def shown(value: object) -> str:
    """A value as a sentence quotes it: in full if it is short."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists a thousand deep, numbers of 5,000 digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def optional_strings(body: Body, name: str) -> dict[str, str] | None:
    """An object whose values are strings."""
    value = body.get(name)
    if value is None:
        return None
    if not is_object(value) or not all(isinstance(item, str) for item in value.values()):
        raise Refused(f"{name} is {shown(value)}; it must be an object whose values are strings.")
    return value


def string_list(body: Body, name: str) -> list[str]:
    """A list of strings; an absent one is empty."""
    value = body.get(name)
    if value is None:
        return []
    if not is_list(value) or not all(isinstance(item, str) for item in value):
        raise Refused(f"{name} is {shown(value)}; it must be a list of strings.")
    return value


def ttl(body: Body) -> int | None:
    """The time to live of a checkpoint in seconds; None: it does not expire."""
    seconds = optional_integer(body, "ttl_seconds")
    if seconds is not None and not 1 <= seconds <= MAX_TTL:
        raise Refused(
            f"ttl_seconds is {shown(seconds)}; it must be from 1 to {MAX_TTL:,} (ten years)."
        )
    return seconds


def json_object(body: Body, name: str) -> dict[str, Any]:
    """The object under `name`; an absent one is empty."""
    value = body.get(name)
    if value is None:
        return {}
    if not is_object(value):
        raise Refused(f"{name} is {shown(value)}; it must be an object.")
    return value


def object_list(body: Body, name: str) -> list[dict[str, Any]]:
    """A list of objects; an absent one is empty."""
    value = body.get(name)
    if value is None:
        return []
    if not is_list(value) or not all(is_object(item) for item in value):
        raise Refused(f"{name} must be a list of objects.")
    return value


def refuse_unknown(body: Body, known: set[str], where: str) -> None:
    for name, value in body.items():
        if name not in known and value is not None:
            raise Refused(
                f"{where} has {name[:200]} = {shown(value)}, which this engine does not support."
            )


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value that was read from JSON is an object, whose keys are always strings."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a value that was read from JSON is a list."""
    return isinstance(value, list)
