"""The settings -> the JSON Schema of a settings file, for editors that complete and check one."""

from typing import Any, cast

from tinkersmith.settings.fields import (
    FIELDS,
    LARGEST_WEIGHT,
    SMALLEST_WEIGHT,
    Settings,
    about_setting,
)

_NAME = {"type": "string", "pattern": r"\S"}
_FILES: dict[str, dict[str, Any]] = {
    "data_files": {
        "anyOf": [
            _NAME,
            {"type": "array", "items": _NAME, "minItems": 1},
            {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "number",
                    "minimum": SMALLEST_WEIGHT,
                    "maximum": LARGEST_WEIGHT,
                },
            },
        ]
    },
    "validation_files": {"anyOf": [_NAME, {"type": "array", "items": _NAME}]},
    "eval_files": {"anyOf": [_NAME, {"type": "array", "items": _NAME}]},
}
_KEYWORDS = (
    "type",
    "enum",
    "pattern",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "additionalProperties",
)


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12: upper-case names at the top level, and no others."""
    made = cast("dict[str, dict[str, Any]]", Settings.model_json_schema()["properties"])
    properties: dict[str, Any] = {}
    for field, info in FIELDS.items():
        usual = about_setting(info)["usual"]
        checks = _FILES.get(field) or {
            key: made[field][key] for key in _KEYWORDS if key in made[field]
        }
        properties[field.upper()] = {
            "description": f"{info.description}" + (f" A usual choice: {usual}." if usual else ""),
            "default": info.default,
            **checks,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of Tinkersmith",
        "type": "object",
        "properties": {"$schema": {"type": "string"}, **properties},
        "additionalProperties": False,
    }
