"""A list of chat messages -> turns. It reads the forms of OpenAI, ShareGPT and their relatives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.columns import columns_text
from tinkersmith.data.samples import Role, Turn
from tinkersmith.data.shapes.layout import our_name
from tinkersmith.data.shapes.parts import messages_of_parts
from tinkersmith.data.shapes.values import (
    Unusable,
    check_repeated,
    check_text,
    is_blank_text,
    is_missing,
    is_number,
    json_value,
    kind_of,
)
from tinkersmith.data.shapes.verdicts import BLAMES, PRAISES, verdict_of
from tinkersmith.sources.json_files import Repeated

LEFT_OUT_LAST = "its last message, which no answer follows, was left out"
LEFT_OUT_LATER = "its last messages, which no answer follows, were left out"
LEFT_OUT_FIRST = "its first message, an answer that follows no question, was left out"
JOINED = "messages of one role in a row were joined"
JOINED_SYSTEM = "its system messages were joined"

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "用户"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "助手"), "assistant"),
    **dict.fromkeys(("助理", "机器人", "模型"), "assistant"),
    **dict.fromkeys(("bing", "bard", "claude", "agent"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "function_response", "tool_result"), "tool"),
    **dict.fromkeys(("tool_results", "tool_output", "function_result", "function_output"), "tool"),
    **dict.fromkeys(("tool_responses", "function_results", "observations", "工具"), "tool"),
}
_CALLS = (
    "function_call",
    "tool_call",
    "function_calls",
    "tool_calls",
)  # roles of ShareGPT's messages that hold a call
_ROLE_NAMES = ("role", "from")
_CONTENT_NAMES = ("content", "value", "parts", "text")
_THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking")
_FLAG_NAMES = ("weight", "train", "trainable", "loss")
# Flags of other programs, some of which mean the opposite. None may be passed over.
_OTHER_FLAGS = ("mask", "masked", "loss_mask", "loss_weight", "train_on", "training", "ignore")
_JUDGING = frozenset((*PRAISES, *BLAMES))
_ARGUMENT_NAMES = ("arguments", "parameters", "args")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS: Mapping[Any, tuple[str, ...]] = {
    "thinking": ("thinking",),
    "reasoning": ("text", "reasoning"),
}
_PAIRS = ("user", "assistant") * 1000


def is_messages(value: Any) -> bool:
    """Whether a value is a list of objects with a role."""
    if not isinstance(value, list) or not value:
        return False
    first = cast("list[Any]", value)[0]
    return isinstance(first, dict) and ("role" in first or "from" in first)


def is_sharegpt(value: Any) -> bool:
    """Whether messages have ShareGPT's names."""
    first = cast("list[Any]", value)[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def messages_of_pairs(messages: list[Any]) -> list[Any]:
    """The messages of XTuner's conversations, whose items are an input with its output."""
    pairs = [cast("dict[str, Any]", item) for item in messages if isinstance(item, dict)]
    if len(pairs) < len(messages) or is_messages(messages):
        return messages
    if not all("input" in pair and "output" in pair for pair in pairs):
        return messages
    written: list[Any] = []
    for pair in pairs:
        if not is_missing(pair.get("system")):
            written.append({"role": "system", "content": pair["system"]})
        written.append({"role": "user", "content": pair["input"]})
        written.append({"role": "assistant", "content": pair["output"]})
    return written


def turns_of(
    messages: Sequence[Any],
    field: str,
    names: Mapping[str, str] | None = None,
    system: str = "",
    *,
    ends_with_answer: bool = True,
) -> tuple[list[Turn], list[str]]:
    """The turns of a conversation, up to its last answer, and notes about what was changed.

    Args:
        field: the record's field that is reported.
        names: the names of "role" and "content" in each message, where COLUMNS gives them.
        system: a system message that the record has in a field of its own.
        ends_with_answer: whether an answer is needed, and what follows the last one is left out.

    Raises:
        Unusable: a message is wrong, or there is no answer.
    """
    turns = [Turn("system", system)] if system else []
    numbers = [0] if system else []  # of the message that each turn is
    notes: list[str] = []
    called: dict[str, str] = {}  # tools by the ids of calls, where calls are parts of a content
    flagged = False
    for number, message in enumerate(messages, start=1):
        # Most messages are a role and a text: the long way costs four times as much.
        if type(message) is dict and len(cast("dict[str, Any]", message)) == 2 and not names:
            simple = cast("dict[str, Any]", message)
            role, text = simple.get("role"), simple.get("content")
            if text is None:
                role, text = simple.get("from"), simple.get("value")
            # From "!" on: the text begins with something that can be seen.
            if type(text) is str and text >= "!" and type(role) is str and role in _ROLES:
                known = _ROLES[role]
                if known != "tool":
                    if not text.isascii():
                        check_text(text, f'"content" of message {number}', field, required=True)
                    turns.append(Turn(known, text))
                    numbers.append(number)
                    continue
        for plain in _plain_messages(message, number, field, names or {}, called, notes):
            turn = _turn(plain, number, field, names or {}, notes)
            if turn is not None:
                turns.append(turn)
                numbers.append(number)
                flagged = flagged or turn.trained is not None
    roles = tuple([turn.role for turn in turns])
    spoken = roles[1:] if roles[:1] == ("system",) else roles
    in_pairs = bool(spoken) and len(spoken) % 2 == 0 and spoken == _PAIRS[: len(spoken)]
    if in_pairs and not flagged:
        return turns, notes
    if ends_with_answer:
        turns = _until_last_answer(turns, notes)
    if not in_pairs:
        turns = _in_order(turns, numbers[: len(turns)], field, notes)
    if ends_with_answer:
        _check_answers(turns, field)
    return turns, notes


def tools_of(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """The functions that a record offers, in OpenAI's form.

    Raises:
        Unusable: they are no list of objects with names.
    """
    if is_missing(value):
        return ()
    if isinstance(value, str):
        if is_blank_text(value):
            return ()
        value = json_value(value)
    if not isinstance(value, list):
        raise Unusable(field, f'"{field}" must be a list of functions. Fix it, or remove it.')
    check_repeated(value, f'"{field}"', field)
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(cast("list[Any]", value), start=1):
        whole = cast("dict[str, Any]", tool) if isinstance(tool, dict) else {}
        function: Any = whole.get("function", whole)
        named = cast("dict[str, Any]", function) if isinstance(function, dict) else {}
        if not isinstance(named.get("name"), str):
            raise Unusable(field, f'item {number} of "{field}" is no function with a "name".')
        if "parameters" not in named and isinstance(named.get("input_schema"), dict):
            # Claude's form.
            written = {"input_schema": "parameters"}
            whole = named = {written.get(name, name): value for name, value in named.items()}
        if named is whole:  # a type of its own, such as Claude's "custom", is not OpenAI's
            whole = {name: value for name, value in whole.items() if name != "type"}
            whole = {"type": "function", "function": whole}
        tools.append(whole)
    return tuple(tools)


def _plain_messages(
    message: Any,
    number: int,
    field: str,
    names: Mapping[str, str],
    called: dict[str, str],
    notes: list[str],
) -> list[Any]:
    """The message, or those that it stands for if its content has calls and results as parts."""
    if not isinstance(message, dict):
        return [message]
    fields = cast("dict[str, Any]", message)
    content_name = _name_of(fields, names.get("content"), _CONTENT_NAMES)
    if not isinstance(fields.get(content_name), list | dict):
        return [message]
    role_name = _name_of(fields, names.get("role"), _ROLE_NAMES)
    role, _ = _role(fields.get(role_name), role_name, number, field, names)
    return messages_of_parts(fields, content_name, role_name, role, called, (number, field), notes)


def _turn(
    message: Any, number: int, field: str, names: Mapping[str, str], notes: list[str]
) -> Turn | None:
    """One message; None if it says nothing and may."""
    if not isinstance(message, dict):
        raise Unusable(
            field, f"message {number} is {kind_of(message)}; it must be an object with a role."
        )
    fields = cast("dict[str, Any]", message)
    if isinstance(message, Repeated):
        raise Unusable(
            field,
            f'message {number} has "{message.names[0]}" twice. Keep one, or remove the record.',
        )
    role_name = _name_of(fields, names.get("role"), _ROLE_NAMES)
    content_name = _name_of(fields, names.get("content"), _CONTENT_NAMES)
    said_role = fields.get(role_name)
    role, is_call = _role(said_role, role_name, number, field, names)
    what = f'"{content_name}" of message {number}'
    value = fields.get(content_name)
    calls = _tool_calls(fields, number, field)
    if calls and role != "assistant":
        raise Unusable(
            field,
            f"message {number} calls a tool, which only a message of the role assistant can. Fix "
            "its role, or remove the record.",
        )
    thought = _thought(fields, number, field) if role == "assistant" else ""
    if is_call:
        calls, value = _calls_in_text(value, what, number, field), ""
    if role == "tool":
        value = _text_of_object(value, what, field)
    text, thought_inside = _content(value, what, number, field, optional=bool(calls))
    if role in ("user", "assistant") and not calls and is_blank_text(text):
        raise Unusable(field, f"{what} is empty. Fill it in, or remove the record.")
    if role == "system" and is_blank_text(text):
        return None
    given_input = "" if role != "user" or is_missing(fields.get("input")) else fields["input"]
    trained = _flag(fields, number, field)
    if role == "assistant" and trained is None and (mark := _bad_mark(fields)):
        trained = False
        notes.append(f'its answers that "{mark}" marks as bad are not trained on')
    tool_name = fields.get("name") if role == "tool" else ""
    call_id = fields.get("tool_call_id") if role == "tool" else ""
    return Turn(
        role,
        text,
        input=check_text(given_input, f'"input" of message {number}', field),
        thought=thought or thought_inside,
        tool_calls=calls,
        tool_name=check_text(tool_name or "", f'"name" of message {number}', field),
        tool_call_id=check_text(call_id or "", f'"tool_call_id" of message {number}', field),
        trained=trained,
    )


def _name_of(fields: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> str:
    """The name that a message uses, or the usual one."""
    if given is not None:
        return given
    present = [name for name in usual if name in fields]
    filled = [name for name in present if not is_missing(fields[name])]
    return (filled or present or list(usual))[0]


def _role(
    value: Any, name: str, number: int, field: str, names: Mapping[str, str]
) -> tuple[Role, bool]:
    """The role, and whether the message is a call of a tool.

    Args:
        names: what the roles are called, where COLUMNS says that.
    """
    if is_missing(value):
        raise Unusable(field, f'message {number} has no "{name}". Add it, or remove the record.')
    if not isinstance(value, str):
        raise Unusable(
            field, f'"{name}" of message {number} is {kind_of(value)}; it must be a string.'
        )
    plain = value if value in _ROLES else value.strip().lower()
    for role in set(_ROLES.values()) if names else ():
        if plain == names.get(f"role.{role}", "").strip().lower():
            return role, False
    plain = plain.replace(" ", "_").replace("-", "_")
    if plain in _CALLS:
        return "assistant", True
    if plain not in _ROLES:
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise Unusable(
            field,
            f'"{name}" of message {number} is "{shown}"; it must be system, user, assistant or '
            "tool. If it is one of these by another name, say which, for example: "
            f"{columns_text({'role.user': shown})}. Else remove the record.",
        )
    return _ROLES[plain], False


def _content(value: Any, what: str, number: int, field: str, *, optional: bool) -> tuple[str, str]:
    """A message's text, and the thought that its parts hold."""
    if type(value) is str:
        return check_text(value, what, field), ""
    if is_missing(value):
        if optional:
            return "", ""
        missing = "null" if value is None else kind_of(value)
        raise Unusable(field, f"{what} is {missing}. Fill it in, or remove the record.")
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("parts", [value])
    if not isinstance(value, list):
        raise Unusable(field, f"{what} is {kind_of(value)}; it must be a string.")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in cast("list[Any]", value):
        if isinstance(part, str):
            texts.append(check_text(part, what, field))
            continue
        if not isinstance(part, dict):
            raise Unusable(field, f"{what} has a part that is {kind_of(part)}; it must be text.")
        check_repeated(part, what, field)
        fields = cast("dict[str, Any]", part)
        kind = fields.get("type") or next(iter(fields), "object")
        if kind in _TEXT_PARTS and "text" in fields:
            texts.append(check_text(fields["text"], f"a text in {what}", field))
        elif kind == "refusal" and "refusal" in fields:
            texts.append(check_text(fields["refusal"], f"a text in {what}", field))
        elif (held := _THOUGHT_PARTS.get(kind)) and (name := next(filter(fields.get, held), "")):
            thoughts.append(check_text(fields[name], f"a thought in {what}", field))
        else:
            shown = kind if isinstance(kind, str) and len(kind) <= 40 else "object"
            raise Unusable(
                field,
                f'message {number} has a part of the type "{shown}"; Tinkersmith trains on text '
                "only. Remove that part, or the record.",
            )
    return "".join(texts), "\n\n".join(thoughts)


def _text_of_object(value: Any, what: str, field: str) -> Any:
    """What a tool returned: a value that is no part of a message becomes its JSON text."""
    if isinstance(value, dict):
        is_content = "parts" in value or "type" in value
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        is_content = not items or any(
            isinstance(item, str) or (isinstance(item, dict) and ("type" in item or "text" in item))
            for item in items
        )
    else:
        is_content = not (isinstance(value, bool) or is_number(value))
    if is_content:
        return cast("Any", value)
    check_repeated(value, what, field)
    return json.dumps(value, ensure_ascii=False)


def _thought(fields: Mapping[str, Any], number: int, field: str) -> str:
    thoughts = {
        name: check_text(fields[name], f'"{name}" of message {number}', field)
        for name in _THOUGHT_NAMES
        if not is_missing(fields.get(name))
    }
    filled = {name: text for name, text in thoughts.items() if not is_blank_text(text)}
    if len(set(filled.values())) > 1:
        first, second = list(filled)[:2]
        raise Unusable(
            field, f'"{first}" and "{second}" of message {number} differ. Keep one of them.'
        )
    return next(iter(filled.values()), "")


def _flag(fields: Mapping[str, Any], number: int, field: str) -> bool | None:
    """What a message says about being trained on; None if it says nothing."""
    flags: dict[bool, str] = {}
    for name in fields if len(fields) > 2 else ():
        if name not in _FLAG_NAMES and name.strip().lower() in (*_OTHER_FLAGS, *_FLAG_NAMES):
            raise Unusable(
                field,
                f'"{name}" of message {number} seems to say whether it is trained on, and is not '
                'read. Write "weight": 1 or "weight": 0 instead, or remove it.',
            )
    for name in _FLAG_NAMES:
        value = fields.get(name)
        if is_missing(value):
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise Unusable(
                field,
                f'"{name}" of message {number} is {kind_of(value)}; it must be 0 or 1 (false or '
                "true). Fix it, or remove it.",
            )
        flags[bool(value)] = name
    if len(flags) > 1:
        raise Unusable(
            field,
            f'"{flags[True]}" and "{flags[False]}" of message {number} contradict each other. Keep '
            "one of them.",
        )
    return next(iter(flags), None)


def _bad_mark(fields: Mapping[str, Any]) -> str:
    """The field of a message that marks it as a bad answer; "" if there is none."""
    for name, value in fields.items() if len(fields) > 2 else ():
        plain = our_name(name)
        if plain in _JUDGING and verdict_of(value, plain) is (plain in BLAMES):
            return name
    return ""


def _tool_calls(fields: Mapping[str, Any], number: int, field: str) -> tuple[dict[str, Any], ...]:
    calls: Any = fields.get("tool_calls")
    legacy: Any = fields.get("function_call")
    if is_missing(calls):
        calls = []
    elif isinstance(calls, str):
        calls = json_value(calls) if not is_blank_text(calls) else []
    if not is_missing(legacy) and legacy != {}:
        if calls:
            raise Unusable(
                field,
                f'message {number} has "tool_calls" and "function_call". Keep one of them.',
            )
        calls = [legacy]
    if not isinstance(calls, list):
        raise Unusable(field, f'"tool_calls" of message {number} must be a list of calls. Fix it.')
    return _calls(cast("list[Any]", calls), number, field)


def _calls_in_text(value: Any, what: str, number: int, field: str) -> tuple[dict[str, Any], ...]:
    """The calls that ShareGPT's form holds as JSON in a text."""
    calls: Any = json_value(value) if isinstance(value, str) else value
    if isinstance(calls, dict):
        calls = [cast("dict[str, Any]", calls)]
    if not isinstance(calls, list) or not calls:
        raise Unusable(field, f"{what} must be a call of a tool as JSON, with its name. Fix it.")
    return _calls(cast("list[Any]", calls), number, field)


def _calls(calls: list[Any], number: int, field: str) -> tuple[dict[str, Any], ...]:
    """Calls of tools in OpenAI's form, with their arguments as objects."""
    normal: list[dict[str, Any]] = []
    for place, call in enumerate(calls, start=1):
        what = f"tool call {place} of message {number}"
        check_repeated(call, what, field)
        function: Any = None
        if isinstance(call, dict):
            function = cast("dict[str, Any]", call).get("function", call)
        if not isinstance(function, dict):
            raise Unusable(field, f'{what} is no call with a "name" and "arguments". Fix it.')
        named = cast("dict[str, Any]", function)
        name = check_text(named.get("name"), f'"name" of {what}', field, required=True)
        arguments: Any = next(
            (named[name] for name in _ARGUMENT_NAMES if not is_missing(named.get(name))), None
        )
        if isinstance(arguments, str) and not is_blank_text(arguments):
            check_text(arguments, f'"arguments" of {what}', field)
            arguments = json_value(arguments)
        elif is_missing(arguments) or isinstance(arguments, str):
            arguments = {}
        if not isinstance(arguments, dict):
            raise Unusable(
                field, f"the arguments of {what} are no JSON object. Fix them, or the record."
            )
        outside = cast("dict[str, Any]", call) if function is not call else {}
        normal.append(
            {
                **outside,
                "type": "function",
                "function": {"name": name, "arguments": cast("dict[str, Any]", arguments)},
            }
        )
    return tuple(normal)


def _in_order(
    turns: Sequence[Turn], numbers: Sequence[int], field: str, notes: list[str]
) -> list[Turn]:
    """The turns as chat templates take them: nothing is answered before it is asked."""
    ordered: list[Turn] = []
    last_number = 0
    for turn, number in zip(turns, numbers, strict=True):
        last = ordered[-1] if ordered else None
        before = last.role if last else ""
        if turn.role == "system" and before == "system" and last:
            if turn.text != last.text:
                ordered[-1] = replace(last, text=f"{last.text}\n\n{turn.text}")
                notes.append(JOINED_SYSTEM)
        elif turn.role == "assistant" and all(known.role == "system" for known in ordered):
            notes.append(LEFT_OUT_FIRST)
        elif turn.role == "tool" and before not in ("assistant", "tool"):
            raise Unusable(
                field,
                f"message {number} is a tool's, but follows no call of a tool. Fix the order, or "
                "remove the record.",
            )
        elif turn.role == before and before != "tool" and last and turn.trained != last.trained:
            raise Unusable(
                field,
                f"messages {last_number} and {number} are of one role in a row, and their marks "
                'differ (such as "weight"). Join them, or remove the record.',
            )
        elif last is not None and _can_join(last, turn):
            texts = (last.text, last.input, turn.text)  # only a last input has its place behind
            ordered[-1] = replace(
                last,
                text="\n\n".join(text for text in texts if text),
                input=turn.input,
                tool_calls=turn.tool_calls,
            )
            notes.append(JOINED)
        else:
            ordered.append(turn)
        last_number = number
    return ordered


def _can_join(last: Turn, turn: Turn) -> bool:
    if last.role != turn.role or last.role not in ("user", "assistant"):
        return False
    return not last.tool_calls and not turn.thought


def _until_last_answer(turns: list[Turn], notes: list[str]) -> list[Turn]:
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    left_out = len(turns) - answers[-1] - 1 if answers else 0
    if not left_out:
        return turns
    notes.append(LEFT_OUT_LAST if left_out == 1 else LEFT_OUT_LATER)
    return turns[:-left_out]


def _check_answers(turns: list[Turn], field: str) -> None:
    """Refuse a conversation in which nothing is to be learnt."""
    flags = [turn.trained for turn in turns if turn.role == "assistant"]
    if not flags:
        what = "no message of the role assistant that follows a question"
        raise Unusable(field, f'"{field}" has {what}. Add one, or remove the record.')
    if not any(turn.trained for turn in turns) and all(flag is False for flag in flags):
        raise Unusable(
            field,
            f'every answer in "{field}" is marked as not to be trained on. Change a mark, or '
            "remove the record.",
        )
