"""The part of JSON Schema that our schemas use: what is wrong with a value, by its place."""

from collections.abc import Iterator
from typing import Any

_KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
_KNOWN = {
    *("$schema", "$defs", "title", "description", "type", "properties", "required", "items"),
    *("additionalProperties", "enum", "const", "minimum", "maximum", "minItems", "maxItems"),
    *("anyOf", "$ref"),
}


def violations(value: Any, schema: dict[str, Any]) -> list[str]:
    """Everything in `value` that `schema` does not allow, as "place: what"."""
    return list(_violations(value, schema, schema, "$"))


def undescribed(value: Any, schema: dict[str, Any]) -> set[str]:
    """The places of fields that the schema allows without describing them."""
    return set(_undescribed(value, schema, schema, "$"))


def _violations(value: Any, schema: dict[str, Any], root: Any, place: str) -> Iterator[str]:
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        tried = [list(_violations(value, option, root, place)) for option in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=len)
        return
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not _is_of(value, schema["type"]):
        yield f"{place}: {value!r} is no {schema['type']}"
        return
    is_number = isinstance(value, int | float)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value!r} is out of range"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place}: it has {len(value)} items"
        for number, item in enumerate(value):
            yield from _violations(item, schema.get("items", {}), root, f"{place}[{number}]")
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{place}: {name} is missing"
        for name, inner in value.items():
            described = schema.get("properties", {}).get(name)
            rest = schema.get("additionalProperties", True)
            if described is None and rest is False:
                yield f"{place}: {name} is not allowed"
            inner_schema = described or (rest if isinstance(rest, dict) else {})
            yield from _violations(inner, inner_schema, root, f"{place}.{name}")


def _undescribed(value: Any, schema: dict[str, Any], root: Any, place: str) -> Iterator[str]:
    schema = _resolved(schema, root)
    for option in schema.get("anyOf", ()):
        if not list(_violations(value, option, root, place)):
            yield from _undescribed(value, option, root, place)
            return
    if isinstance(value, list):
        for item in value:
            yield from _undescribed(item, schema.get("items", {}), root, f"{place}[]")
    if isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from _undescribed(inner, schema["properties"][name], root, f"{place}.{name}")
            else:
                yield f"{place}.{name}"


def _resolved(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    target = root
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return target


def _is_of(value: Any, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _KINDS[name]) for name in names)
