"""A record of any known shape -> a `Sample`, or the reason why it cannot be one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.columns import (
    MISSING,
    NO_COLUMNS,
    columns_text,
    quoted_names,
    value_in,
)
from tinkersmith.data.layout import (
    MEDIA,
    SHAPES,
    THOUGHTS,
    Layout,
    layout_of,
    layout_with,
    our_name,
)
from tinkersmith.data.messages import (
    is_messages,
    is_sharegpt,
    messages_of_pairs,
    tools_of,
    turns_of,
)
from tinkersmith.data.samples import Sample, Skipped, Source, Turn, record_text
from tinkersmith.data.values import (
    DEEPEST,
    Unusable,
    check_repeated,
    check_text,
    has_lone_surrogate,
    is_blank_text,
    is_missing,
    is_number,
    is_too_deep,
    json_value,
    kind_of,
)
from tinkersmith.errors import one_line
from tinkersmith.files import kind_of_json
from tinkersmith.sources.json_files import Repeated
from tinkersmith.sources.tables import BadRow

__all__ = ["SHAPES", "check_record"]

_NAN = 'its "{}" is NaN, which counts as missing'
_NUMBER = 'its "{}", a number, is taken as text'
_QUESTION_NAMES = frozenset(
    (
        *("instruction", "question", "questions", "q", "prompt", "input", "query", "problem"),
        *("user", "human", "用户"),
    )
)
_ANSWER_NAMES = frozenset(
    (
        *("output", "answer", "answers", "a", "response", "target", "completion", "solution"),
        *("canonical_solution", "label", "assistant", "reply", "summary", "chosen", "助手"),
    )
)
_PARTNERS = (  # a question's usual answer, and the other way round
    *(("question", "answer"), ("prompt", "completion"), ("query", "response")),
    *(("problem", "solution"), ("input", "output"), ("user", "assistant")),
)
_NO_TEXTS = frozenset(
    (
        *("id", "uid", "uuid", "guid", "hash", "url", "link", "path", "file", "filename", "title"),
        *("name", "author", "source", "lang", "language", "date", "time", "timestamp", "license"),
        *("category", "topic", "type", "split", "subset", "标题", "来源"),
    )
)
_COOKBOOK = "the preference recipes of the Tinker cookbook learn from both"


def check_record(
    record: Any, source: Source, columns: Mapping[str, str] = NO_COLUMNS
) -> Sample | Skipped:
    """One record as a sample, or the reason why it cannot be one.

    Args:
        columns: a value of COLUMNS.
    """
    try:
        if is_too_deep(record) if isinstance(record, dict | list) else False:
            raise Unusable("", f"the record is nested more than {DEEPEST} levels deep. Remove it.")
        return _sample(record, source, columns)
    except Unusable as problem:
        reason = one_line(problem.reason, 1000)  # names of fields can hold anything
        return Skipped(source, problem.field, reason, record_text(record), problem.unclear)


def _sample(record: Any, source: Source, columns: Mapping[str, str]) -> Sample:
    if isinstance(record, BadRow):
        raise Unusable("", record.reason)
    if isinstance(record, str) and not columns:
        text = check_text(record, "the record", "", required=True)
        return Sample((Turn("text", text),), source, "text")
    if is_messages(record) and not (set(columns) - {"role", "content", "messages"}):
        turns, notes = turns_of(record, "messages", columns)
        return Sample(tuple(turns), source, "message_list", notes=_once(notes))
    if not isinstance(record, dict):
        raise Unusable(
            "",
            f"the record is {kind_of_json(record)}; it must be an object with instruction and "
            "output, or another shape that docs/guides/data.md shows.",
        )
    fields = cast("dict[str, Any]", record)
    if "row_idx" in fields and isinstance(fields.get("row"), dict):
        fields = _exported_row(fields)
    layout = _layout(fields, columns)
    if isinstance(fields, Repeated):
        _check_names(fields, layout)
    if layout.texts is not None:
        sample = _pair_of_texts(fields, source, layout.shape, *layout.texts)
        if sample is not None:
            return sample
    if layout.kind == "messages":
        return _conversation(fields, source, layout)
    if layout.kind == "pair":
        return _pair(fields, source, layout)
    if layout.kind == "text":
        return _text(fields, source, layout)
    raise _refusal(fields, layout)


def _exported_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The record inside a row that a data set's viewer exported."""
    cut = fields.get("truncated_cells")
    if isinstance(cut, list) and cut:
        name = cast("list[Any]", cut)[0]
        raise Unusable(
            "row",
            f'the data set\'s viewer cut "{name}" short in its export. Download the data set '
            "itself, or remove the record.",
        )
    return fields["row"]


# ---- which field holds what


def _layout(fields: dict[str, Any], columns: Mapping[str, str]) -> Layout:
    names = tuple(fields)
    if columns:
        layout = layout_with(names, columns)
        return layout if layout.kind != "refused" else _layout_of_values(fields, columns)
    if "instruction" in fields and "output" in fields:
        layout = layout_of(names)
        if layout.kind != "refused":
            return layout
    return _layout_of_values(fields, columns)


def _layout_of_values(fields: dict[str, Any], columns: Mapping[str, str]) -> Layout:
    """The layout of the fields that hold something; tables have all fields in every record."""

    def layout_for(names: tuple[str, ...]) -> Layout:
        return layout_with(names, columns) if columns else layout_of(names)

    layout = layout_for(tuple([name for name, value in fields.items() if value is not None]))
    if layout.kind == "refused" and None in fields.values():
        whole = layout_for(tuple(fields))
        layout = whole if whole.kind != "refused" else layout
    while layout.kind == "messages" and layout.otherwise is not None:
        value = fields.get(layout.fields["messages"])
        if isinstance(value, list) or (isinstance(value, str) and is_messages(json_value(value))):
            break
        if layout.otherwise.kind == "refused" and layout.otherwise.shape in ("unknown", "message"):
            break  # the sentence about the messages says more
        layout = layout.otherwise
    return layout


def _check_names(fields: Repeated, layout: Layout) -> None:
    for name in fields.names:
        if name in layout.names or name == "answer":
            raise Unusable(name, f'"{name}" is there twice. Keep one, or remove the record.')


# ---- an instruction with its output


def _pair_of_texts(
    fields: dict[str, Any],
    source: Source,
    shape: str,
    question: str,
    answer: str,
    input: str,
    system: str,
) -> Sample | None:
    """A sample of these fields, if all are as they should be: most are, and `_pair` is slower."""
    instruction, output = fields.get(question), fields.get(answer)
    if not (type(instruction) is str and type(output) is str):
        return None
    given_input = fields.get(input) if input else ""
    given_system = fields.get(system) if system else ""
    input_text = "" if given_input is None else given_input
    system_text = "" if given_system is None else given_system
    for text in (instruction, output, input_text, system_text):
        if type(text) is not str or not (text.isascii() or not has_lone_surrogate(text)):
            return None
    if is_blank_text(instruction) or is_blank_text(output):
        return None
    used = 2 + bool(input) + bool(system)
    extra: dict[str, Any] = {}
    if len(fields) > used:
        extra = {
            name: value
            for name, value in fields.items()
            if name not in (question, answer, input, system)
        }
        if "answer" in extra or isinstance(fields, Repeated):
            return None
    user = Turn("user", instruction, input_text)
    turns = (user, Turn("assistant", output))
    if system_text:
        turns = (Turn("system", system_text), *turns)
    return Sample(turns, source, shape, (), extra)


def _pair(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    names = layout.fields
    notes: list[str] = []
    is_strict = layout.shape in ("alpaca", "chinese") and not layout.columns
    if layout.judges:
        _check_judges(fields, layout, notes)
    if layout.choices:
        _check_choices(fields, layout)
    if layout.thoughts or layout.like_thoughts:
        layout = _with_thought(fields, layout, notes)
        names = layout.fields
    values = {ours: _value(fields, name, notes) for ours, name in names.items()}
    question, answer = values.get("instruction"), values.get("output")
    if not is_strict and (is_messages(question) or is_messages(answer)):
        return _prompt_messages(fields, source, layout, values, notes)
    texts: dict[str, str] = {}
    for ours in ("instruction", "input", "output", "system", "thought"):
        if ours not in names and ours not in ("instruction", "output"):
            continue
        texts[ours] = _pair_text(fields, layout, ours, values.get(ours), notes)
    turns = [Turn("system", texts["system"])] if texts.get("system") else []
    if values.get("history") is not None:
        for asked, answered in _history(values["history"], names["history"]):
            turns += [Turn("user", asked), Turn("assistant", answered)]
    turns.append(Turn("user", texts["instruction"], texts.get("input", "")))
    turns.append(Turn("assistant", texts["output"], thought=texts.get("thought", "")))
    return _finished(fields, source, layout, turns, notes)


def _pair_text(
    fields: dict[str, Any], layout: Layout, ours: str, value: Any, notes: list[str]
) -> str:
    name = layout.fields.get(ours, ours)
    required = ours in ("instruction", "output")
    if value is None:
        if required:
            raise Unusable(name, _missing(fields, layout, ours))
        return ""
    if is_number(value) and ours == "output" and layout.shape != "alpaca":
        notes.append(_NUMBER.format(name))
        return str(value)
    return check_text(value, f'"{name}"', name, required=required)


def _missing(fields: dict[str, Any], layout: Layout, ours: str) -> str:
    name = layout.fields.get(ours, ours)
    given = value_in(fields, name)
    if given is not MISSING:
        what = "null" if given is None else kind_of(given)
        return f'"{name}" is {what}. Fill it in, or remove the record.'
    if layout.columns:
        where = "" if name == ours else f', which COLUMNS names for "{ours}",'
        return f'"{name}"{where} is missing. Add it, or remove the record.'
    if ours == "output" and isinstance(fields.get("answer"), str):
        return (
            '"output" is missing. Add it; or, if "answer" is what the model should write, set '
            f"{columns_text({'output': 'answer'})}."
        )
    return f'"{name}" is missing. Add it, or remove the record.'


def _history(value: Any, name: str) -> list[tuple[str, str]]:
    problem = Unusable(name, f'"{name}" must be a list of [question, answer] pairs, both strings.')
    if not isinstance(value, list):
        raise problem
    turns: list[tuple[str, str]] = []
    for turn in cast("list[Any]", value):
        if not isinstance(turn, list | tuple):
            raise problem
        pair = cast("Sequence[Any]", turn)
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise problem
        asked, answered = (check_text(text, f'"{name}"', name) for text in pair)
        turns.append((asked, answered))
    return turns


def _prompt_messages(
    fields: dict[str, Any],
    source: Source,
    layout: Layout,
    values: Mapping[str, Any],
    notes: list[str],
) -> Sample:
    """A prompt and a completion of which one is a list of messages, or both."""
    prompt_name = layout.fields.get("instruction", "instruction")
    answer_name = layout.fields.get("output", "output")
    prompt, answer = values.get("instruction"), values.get("output")
    if values.get("input") is not None or values.get("history") is not None:
        raise Unusable(
            prompt_name,
            f'"{prompt_name}" and "{answer_name}" are messages, and another field belongs to the '
            "question as well. Put it into the messages.",
        )
    system = values.get("system")
    system = check_text(system, f'"{layout.fields["system"]}"', "system") if system else ""
    turns: list[Turn]
    if is_messages(prompt):
        turns, more = turns_of(
            cast("list[Any]", prompt), prompt_name, system=system, ends_with_answer=False
        )
        if not turns or turns[-1].role not in ("user", "tool"):
            raise Unusable(
                prompt_name, f'"{prompt_name}" must end with a message of the user. Fix it.'
            )
        # The record itself says where the part to learn begins.
        turns = [
            replace(turn, trained=False)
            if turn.role == "assistant" and turn.trained is None
            else turn
            for turn in turns
        ]
        notes += more
    else:
        text = _pair_text(fields, layout, "instruction", prompt, notes)
        turns = [Turn("system", system)] if system else []
        turns.append(Turn("user", text))
    if is_messages(answer):
        spoken: list[Any] = [
            {"role": turn.role, "content": turn.text} for turn in turns if turn.role != "system"
        ]
        answered = cast("list[Any]", answer)
        first = answered[: len(spoken)]
        if len(answered) > len(spoken) and first == spoken:
            answered = answered[len(spoken) :]  # the prompt is repeated
        completion, more = turns_of(
            [{"role": "user", "content": "-"}, *answered], answer_name, ends_with_answer=True
        )
        completion = completion[1:]
        notes += more
    else:
        text = _pair_text(fields, layout, "output", answer, notes)
        thought = _pair_text(fields, layout, "thought", values.get("thought"), notes)
        completion = [Turn("assistant", text, thought=thought)]
    return _finished(fields, source, layout, [*turns, *completion], notes)


def _with_thought(fields: dict[str, Any], layout: Layout, notes: list[str]) -> Layout:
    """The layout with the field that holds the thought; a note, if one only looks like it."""
    filled = [name for name in layout.thoughts if _is_filled_text(fields.get(name))]
    if filled:
        for other in filled[1:]:
            if fields[other] != fields[filled[0]]:
                raise Unusable(
                    other, f'"{filled[0]}" and "{other}" both hold a thought. Keep one of them.'
                )
        return replace(layout, fields={**layout.fields, "thought": filled[0]})
    for name in (*layout.thoughts, *layout.like_thoughts):
        value = fields.get(name)
        path = f"{name}.0" if isinstance(value, list) else name
        if _is_filled_text(value_in(fields, path)):
            what = "its first item" if path != name else "it"
            advice = columns_text({"thought": path})
            notes.append(f'its field "{name}" was not used; {advice} reads {what} as a thought')
            break
    return layout


def _is_filled_text(value: Any) -> bool:
    return isinstance(value, str) and not is_blank_text(value)


def _check_judges(fields: dict[str, Any], layout: Layout, notes: list[str]) -> None:
    """Refuse a record that says whether its answer is good."""
    for name in layout.judges:
        value = fields.get(name)
        plain = name.strip().lower()
        said = value.strip().lower() if isinstance(value, str) else value
        is_truth = isinstance(said, bool) or said in ("true", "false")
        if plain == "is_correct" and said in (True, "true"):
            continue
        if is_truth or (plain == "kto_tag" and not is_missing(value)):
            raise Unusable(
                name,
                f'the record is a judged answer: its "{name}" says whether it is good. Tinkersmith '
                f'trains on answers. Keep the records with true and remove "{name}" from them; '
                f"{_COOKBOOK}.",
            )
        if is_number(value) and value in (0, 1):
            notes.append(
                f'its "{name}" is 0 or 1 and is not used; if it judges the answer, remove the '
                "records with 0"
            )


def _check_choices(fields: dict[str, Any], layout: Layout) -> None:
    """Refuse a question whose choices are in other fields."""
    question, answer = layout.fields["instruction"], layout.fields["output"]
    values = [fields.get(name) for name in layout.choices]
    if len(values) == 1:
        has_choices = isinstance(values[0], list | dict) and len(cast("Any", values[0])) > 0
    else:
        has_choices = not any(is_missing(value) for value in values)
    if has_choices:
        shown = _both(layout.choices[:2])
        as_it_is = columns_text({"instruction": question, "output": answer})
        raise Unusable(
            layout.choices[0],
            f'the record is a multiple-choice question: "{question}" does not hold its {shown}. '
            f'Write them into "{question}". To train without them, set {as_it_is}.',
        )


# ---- messages and plain text


def _conversation(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    notes: list[str] = []
    name = layout.fields.get("messages", "messages")
    value = _value(fields, name, notes)
    if isinstance(value, str) and (inside := json_value(value)) is not None:
        check_repeated(inside, f'"{name}"', name)
        value = inside
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else kind_of(value)
        if value is None and name not in fields:
            what = "missing"
        raise Unusable(name, f'"{name}" is {what}; it must be a list of messages.')
    if layout.judges:
        _check_judges(fields, layout, notes)
    other = layout.otherwise
    if other is not None and other.kind == "messages":
        second = other.fields["messages"]
        if is_messages(fields.get(second)):
            raise Unusable(
                name,
                f'"{name}" and "{second}" both hold messages. Say which to train on: '
                f"{columns_text({'messages': name})}.",
                unclear=True,
            )
    system = _value(fields, layout.fields["system"], notes) if "system" in layout.fields else None
    if system is not None:
        system = check_text(system, f'"{layout.fields["system"]}"', layout.fields["system"])
        system = "" if is_blank_text(system) else system
    messages = messages_of_pairs(cast("list[Any]", value))
    parts = {ours: layout.fields[ours] for ours in ("role", "content") if ours in layout.fields}
    turns, more = turns_of(messages, name, parts, system or "")
    if layout.unused and (other is None or other.kind == "pair"):
        notes.append(f"its messages were used, and not its {_both(layout.unused)}")
    tools: tuple[dict[str, Any], ...] = ()
    if "tools" in layout.fields:
        tools = tools_of(value_in(fields, layout.fields["tools"]), layout.fields["tools"])
    if not layout.columns and is_sharegpt(messages):
        layout = replace(layout, shape="sharegpt")
    return _finished(fields, source, layout, turns, [*notes, *more], tools)


def _text(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    name = layout.fields.get("text", "text")
    notes: list[str] = []
    value = _value(fields, name, notes)
    if value is None:
        raise Unusable(name, _missing(fields, layout, "text"))
    text = check_text(value, f'"{name}"', name, required=True)
    return _finished(fields, source, layout, [Turn("text", text)], notes)


# ---- what all shapes have


def _value(fields: dict[str, Any], name: str, notes: list[str]) -> Any:
    """The value of a field; None if it is missing."""
    value = fields.get(name)
    if value is None and "." in name:
        value = value_in(fields, name)
        value = None if value is MISSING else value
    if is_missing(value):
        if value is not None:
            notes.append(_NAN.format(name))
        return None
    return value


_USED: Mapping[str, frozenset[str]] = {
    "pair": frozenset(("instruction", "input", "output", "history", "thought", "system", "answer")),
    "messages": frozenset(("messages", "role", "content", "tools", "system", "answer")),
    "text": frozenset(("text", "answer")),
}


def _finished(
    fields: dict[str, Any],
    source: Source,
    layout: Layout,
    turns: Sequence[Turn],
    notes: list[str],
    tools: tuple[dict[str, Any], ...] = (),
) -> Sample:
    used = set(layout.names)
    extra = {name: value for name, value in fields.items() if name not in used}
    if layout.columns:
        for ours, name in layout.fields.items():
            if ours not in _USED[layout.kind]:
                raise Unusable(
                    "",
                    f'COLUMNS["{ours}"] has no effect on this record, which is no '
                    f"{'conversation' if ours != 'thought' else 'question with an answer'}. "
                    "Remove that entry.",
                )
            if ours == "answer":
                value = value_in(fields, name)
                if value is not MISSING:
                    extra["answer"] = value
    if not layout.columns:
        _check_media(extra)
    if "answer" in extra:
        _check_answer(extra, notes)
    if isinstance(fields, Repeated):
        notes += [f'its "{name}" is there twice; the last one counts' for name in fields.names]
    return Sample(tuple(turns), source, layout.shape, tools, extra, _once(notes))


def _check_media(extra: dict[str, Any]) -> None:
    """Refuse a record with an image, a video or a sound, or with the name of its file."""
    for name, value in extra.items():
        if name.strip().lower() not in MEDIA:
            continue
        if (isinstance(value, list | dict) and value) or _is_filled_text(value):
            raise Unusable(
                name,
                f'the record has "{name}"; Tinkersmith trains on text only. Remove the record.',
            )


def _check_answer(extra: dict[str, Any], notes: list[str]) -> None:
    """Leave out an `answer` that the evaluation cannot use."""
    value = extra["answer"]
    if is_missing(value):
        if value is not None:
            notes.append(_NAN.format("answer"))
            del extra["answer"]
    elif not isinstance(value, str) and not is_number(value):
        notes.append(
            f'its "answer" is {kind_of_json(value)} and is not used: the evaluation takes a string '
            "or a number"
        )


def _once(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes)) if notes else ()


# ---- records of no shape that is trained on


def _refusal(fields: dict[str, Any], layout: Layout) -> Unusable:
    names = layout.fields
    if layout.shape == "twice":
        first, second = names["first"], names["second"]
        return Unusable(
            first, f'"{first}" and "{second}" mean the same. Keep one, or remove the record.'
        )
    if layout.shape == "preference":
        return _preference(fields, names["first"], names["second"])
    if layout.shape == "ambiguous":
        one = {"instruction": names["instruction"], "output": names["output"]}
        return Unusable(
            "",
            f"the record can be read in more than one way: {_both(one.values())}, or "
            f"{_both((names['question'], names['answer']))}. Say which, for example: "
            f"{columns_text(one)}.",
            unclear=True,
        )
    if layout.shape == "squad":
        advice = {
            "instruction": names["question"],
            "input": names["context"],
            "output": f"{names['answers']}.text.0",
        }
        return Unusable(
            names["answers"],
            f'"{names["answers"]}" names passages of "{names["context"]}", as SQuAD does, and is '
            "no answer to train on. To train on the first passage, set "
            f"{columns_text(advice)}.",
        )
    if layout.shape == "message":
        return Unusable(
            "",
            "the record is one chat message. Put the messages of a conversation into one record: "
            '{"messages": [...]}.',
        )
    if layout.shape == "labelled":
        question = {"instruction": names["text"], "output": names["output"]}
        return Unusable(
            names["output"],
            f'the record has "{names["text"]}" and "{names["output"]}". To learn the second from '
            f"the first, set {columns_text(question)}; to train on the text alone, set "
            f"{columns_text({'text': names['alone']})}.",
            unclear=True,
        )
    return _unknown(fields)


def _preference(fields: dict[str, Any], first: str, second: str) -> Unusable:
    chosen = fields.get(first)
    question = next(
        (
            name
            for name in ("prompt", "question", "instruction", "query", "problem", "input")
            if isinstance(fields.get(name), str | list)
        ),
        "",
    )
    advice: dict[str, str] = {}
    if is_messages(chosen):
        messages = [
            cast("dict[str, Any]", message)
            for message in cast("list[Any]", chosen)
            if isinstance(message, dict)
        ]
        roles = {str(message.get("role", message.get("from"))) for message in messages}
        if roles & {"user", "human"} or not question:
            advice = {"messages": first}
        else:
            advice = {"instruction": question, "output": first}
    elif isinstance(chosen, str):
        advice = {"instruction": question, "output": first} if question else {"text": first}
    what = f"the record is a preference pair ({_both((first, second))}). Tinkersmith trains on "
    if first != "chosen":
        return Unusable(
            first,
            f"{what}answers: write the better ones into records of their own. Or let {_COOKBOOK}.",
        )
    how = f" To train on the chosen ones, set {columns_text(advice)};" if advice else " But"
    return Unusable(first, f"{what}answers.{how} {_COOKBOOK}.")


def _unknown(fields: dict[str, Any]) -> Unusable:
    if not fields:
        return Unusable("", "the record has no fields. Remove it.")
    texts: list[str] = []
    for name, value in fields.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        places: list[tuple[str, Any]] = [(name, value)]
        places += [(f"{name}.{key}", inner[key]) for key in inner]
        for path, item in places:
            if is_messages(item):
                return _name_columns(fields, {"messages": path})
            if isinstance(item, str) and not is_blank_text(item) and path.strip():
                texts.append(path)
    meant = [path for path in texts if not _is_about_text(path)]
    if not meant:
        return Unusable(
            "",
            f"no field of the record holds a text to train on: {quoted_names(list(fields))}. "
            "Remove it, or write it in a shape that docs/guides/data.md shows.",
            unclear=True,
        )
    if len(meant) == 1:
        missing = _missing_partner(fields, meant[0])
        if missing is not None:
            return missing
    if len(texts) == 1 and _last_name(texts[0]) not in _QUESTION_NAMES | _ANSWER_NAMES:
        return _name_columns(fields, {"text": texts[0]})
    answers = [path for path in meant if _last_name(path) in _ANSWER_NAMES]
    questions = [path for path in meant if _last_name(path) in _QUESTION_NAMES]
    if not questions and list(map(_last_name, answers)) == ["target"]:
        questions = [path for path in texts if _last_name(path) == "source"]
    if len(questions) == 1 and len(answers) == 1:
        return _name_columns(fields, {"instruction": questions[0], "output": answers[0]})
    has_thought = any(_last_name(path) in THOUGHTS for path in texts)
    if len(texts) == len(meant) == 2 and not (questions or answers or has_thought):
        first, second = texts
        other_way = columns_text({"instruction": second, "output": first})
        return _name_columns(
            fields,
            {"instruction": first, "output": second},
            f", or the other way round: {other_way}",
        )
    return _name_columns(
        fields,
        {"instruction": "...", "output": "..."},
        f", or, for plain text, {columns_text({'text': '...'})}",
    )


def _is_about_text(path: str) -> bool:
    """Whether a field's name says that it tells something about a text, as an id does."""
    name = _last_name(path)
    return name in _NO_TEXTS or name.endswith(("_id", "_url", "_name"))


def _last_name(path: str) -> str:
    return our_name(path.rpartition(".")[2])


def _missing_partner(fields: dict[str, Any], name: str) -> Unusable | None:
    """The reason if a record has half of a question with its answer; None if it has not."""
    known = our_name(name)
    others = [our_name(other) for other, value in fields.items() if not is_missing(value)]
    if sum(other in _QUESTION_NAMES | _ANSWER_NAMES for other in others) > 1:
        return None
    for pair in _PARTNERS:
        if known in pair:
            partner = pair[1 - pair.index(known)]
            given = next((other for other in fields if our_name(other) == partner), "")
            what = "is empty" if given else f'is missing beside "{name}"'
            fix = "Fill it in" if given else "Add it"
            given = given or partner
            return Unusable(given, f'"{given}" {what}. {fix}, or remove the record.')
    return None


def _name_columns(fields: dict[str, Any], example: Mapping[str, str], more: str = "") -> Unusable:
    return Unusable(
        "",
        f"its fields are of no known shape: {quoted_names(list(fields))}. Say what they mean, for "
        f"example: {columns_text(example)}{more}.",
        unclear=True,
    )


def _both(names: Any) -> str:
    return " and ".join(f'"{name}"' for name in names)
