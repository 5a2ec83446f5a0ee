"""A message whose content is a list of parts, with calls of tools and results -> plain messages.

The forms of Claude, Gemini, Bedrock and the AI SDK are known. OpenAI's has none in its contents.
"""

from typing import Any, cast

from tinkersmith.data.shapes.values import Unusable, check_repeated, is_missing

_CALLS = {  # the kind of a part -> the names of the call's id, name and arguments
    "tool_use": ("id", "name", ("input",)),
    "tool-call": ("toolCallId", "toolName", ("args", "input")),
    "toolUse": ("toolUseId", "name", ("input",)),
    "functionCall": ("id", "name", ("args",)),
    "function_call": ("id", "name", ("args", "arguments")),
}
_RESULTS = {  # the kind of a part -> the names of the call's id, the tool's name and the result
    "tool_result": ("tool_use_id", "name", ("content",)),
    "tool-result": ("toolCallId", "toolName", ("result", "output")),
    "toolResult": ("toolUseId", "name", ("content",)),
    "functionResponse": ("id", "name", ("response",)),
    "function_response": ("id", "name", ("response", "output")),
}
_HIDDEN = ("redacted_thinking", "redacted_reasoning")
LEFT_OUT_HIDDEN = "its thoughts that are encrypted were left out"


def messages_of_parts(
    message: dict[str, Any],
    content_name: str,
    role_name: str,
    role: str,
    called: dict[str, str],
    place: tuple[int, str],
    notes: list[str],
) -> list[dict[str, Any]]:
    """The messages that a message with parts stands for: results of tools, and all else of it.

    Args:
        role: ours, "" if it is not known.
        called: the names of the tools by the ids of earlier calls; those of this message are added.
        place: the message's number, and the record's field that is reported.

    Raises:
        Unusable: a call is not in an assistant's message, or a result is in one.
    """
    number, field = place
    content: Any = message.get(content_name)
    if isinstance(content, dict):
        content = cast("dict[str, Any]", content).get("parts")
    if not isinstance(content, list):
        return [message]
    parts = cast("list[Any]", content)
    kinds = [_kind(part) for part in parts]
    if not any(kind in _CALLS or kind in _RESULTS or kind in _HIDDEN for kind in kinds):
        return [message]
    check_repeated(content, f'"{content_name}" of message {number}', field)
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    others: list[Any] = []
    for kind, part in zip(kinds, parts, strict=True):
        if kind in _CALLS:
            call_id, name, arguments = _values(part, kind, _CALLS[kind])
            if isinstance(call_id, str) and isinstance(name, str):
                called[call_id] = name
            call: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
            calls.append(call if is_missing(call_id) else {"id": call_id, **call})
        elif kind in _RESULTS:
            call_id, name, result = _values(part, kind, _RESULTS[kind])
            if is_missing(name) and isinstance(call_id, str):
                name = called.get(call_id, "")
            written = {content_name: _result(result), "tool_call_id": call_id, "name": name}
            results.append({**message, **written, role_name: "tool"})
        elif kind in _HIDDEN:
            notes.append(LEFT_OUT_HIDDEN)
        else:
            others.append(part)
    if calls and role != "assistant":
        raise Unusable(
            field,
            f"message {number} calls a tool, which only a message of the role assistant can. Fix "
            "its role, or remove the record.",
        )
    if results and role == "assistant":
        raise Unusable(
            field,
            f"message {number} has the result of a tool, which a message of the role assistant "
            "cannot have. Fix its role, or remove the record.",
        )
    if results and not others:
        return results
    rest = {**message, content_name: others}
    if calls:
        if not is_missing(message.get("tool_calls")) and message["tool_calls"]:
            raise Unusable(
                field,
                f'message {number} has calls in "tool_calls" and in "{content_name}". Keep those '
                "of one place.",
            )
        rest["tool_calls"] = calls
    return [*results, rest]


def _kind(part: Any) -> str:
    """What a part is: its type, or the name of its only field."""
    if not isinstance(part, dict):
        return ""
    fields = cast("dict[str, Any]", part)
    kind = fields.get("type")
    if isinstance(kind, str):
        return kind
    return next((name for name in fields if name in _CALLS or name in _RESULTS), "")


def _values(part: Any, kind: str, names: tuple[str, str, tuple[str, ...]]) -> tuple[Any, Any, Any]:
    """The id, the name, and the arguments or the result."""
    fields = cast("dict[str, Any]", part)
    if isinstance(fields.get(kind), dict):
        fields = cast("dict[str, Any]", fields[kind])
    held = next((fields[name] for name in names[2] if not is_missing(fields.get(name))), None)
    return fields.get(names[0]), fields.get(names[1]), held


def _result(value: Any) -> Any:
    """A result as the content of a message: a text, an object, or a list of parts."""
    if is_missing(value):
        return ""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if fields.keys() == {"type", "value"} and fields["type"] in ("text", "json"):
            return fields["value"]
        return fields
    if isinstance(value, list):
        return [
            cast("dict[str, Any]", part)["json"]
            if isinstance(part, dict) and cast("dict[str, Any]", part).keys() == {"json"}
            else part
            for part in cast("list[Any]", value)
        ]
    return value
