"""NAME=VALUE of /set -> the fields of a request. The server judges their ranges."""

import difflib
import json
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.errors import UserError

_KINDS = {
    "temperature": float,
    "max_tokens": int,
    "top_p": float,
    "top_k": int,
    "seed": int,
    "stop": str,
    "thinking": str,
}


@dataclass(slots=True)
class ChatSettings:
    """What requests say beside their messages; a name that is not there is the server's default."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def change(self, text: str) -> None:
        """Take NAME=VALUE; an empty value goes back to the server's default.

        Raises:
            UserError: there is no such setting, or the value is of another kind.
        """
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if name not in _KINDS:
            begun = [known for known in _KINDS if name and known.startswith(name)]
            near = begun or difflib.get_close_matches(name, _KINDS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KINDS)}."
            raise UserError(f"There is no setting {name!r}; {advice}")
        if not equals:
            raise UserError(f"/set {name} has no value. Write /set {name}=VALUE.")
        if not value:
            self.values.pop(name, None)
            return
        self.values[name] = _read(name, value)

    def lines(self) -> list[str]:
        return [
            f"{name}={self.values[name]}" if name in self.values else f"{name}= (server's default)"
            for name in _KINDS
        ]

    def fields(self) -> dict[str, Any]:
        """The fields of a request."""
        fields = {name: value for name, value in self.values.items() if name != "thinking"}
        thinking = self.values.get("thinking")
        if thinking is not None:
            fields["reasoning_effort"] = "high" if thinking == "on" else "none"
        return fields


def _read(name: str, value: str) -> Any:
    if name == "thinking":
        if value not in ("on", "off"):
            raise UserError(f"thinking is {value!r}; it must be on or off.")
        return value
    if name == "stop":
        try:
            return [json.loads(value)] if value.startswith('"') else [value]
        except ValueError:
            raise UserError(f"stop is {value}; write it plainly, or as a JSON string.") from None
    kind = _KINDS[name]
    try:
        number = kind(value)
        json.dumps(number, allow_nan=False)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {value!r}; it must be {what}.") from None
    return number
