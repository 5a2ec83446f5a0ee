"""A question with its answer, in a field each -> a `Sample`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.data.shapes.fields import (
    field_value,
    finished_sample,
    missing_reason,
    with_thought,
)
from tinkersmith.data.shapes.judged import check_choices, check_judges
from tinkersmith.data.shapes.layout import Layout
from tinkersmith.data.shapes.messages import is_messages, turns_of
from tinkersmith.data.shapes.values import (
    Unusable,
    check_text,
    has_lone_surrogate,
    is_blank_text,
    is_number,
)
from tinkersmith.sources.json_files import Repeated

_NUMBER = 'its "{}", a number, is taken as text'


def pair_of_texts(
    fields: dict[str, Any],
    source: Source,
    shape: str,
    question: str,
    answer: str,
    input: str,
    system: str,
) -> Sample | None:
    """A sample of these fields if all are as they should be, as most are. `pair_sample` is slow."""
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


def pair_sample(fields: dict[str, Any], source: Source, layout: Layout) -> Sample:
    names = layout.fields
    notes: list[str] = []
    is_strict = layout.shape in ("alpaca", "chinese") and not layout.columns
    if layout.judges:
        check_judges(fields, layout, notes)
    if layout.choices:
        check_choices(fields, layout)
    if layout.thoughts or layout.like_thoughts:
        layout = with_thought(fields, layout, notes)
        names = layout.fields
    values = {ours: field_value(fields, name, notes) for ours, name in names.items()}
    question, answer = values.get("instruction"), values.get("output")
    if not is_strict and (is_messages(question) or is_messages(answer)):
        return _prompt_messages(fields, source, layout, values, notes)
    texts: dict[str, str] = {}
    for ours in ("instruction", "input", "output", "system", "thought"):
        if ours not in names and ours not in ("instruction", "output"):
            continue
        texts[ours] = pair_text(fields, layout, ours, values.get(ours), notes)
    turns = [Turn("system", texts["system"])] if texts.get("system") else []
    if values.get("history") is not None:
        for asked, answered in _history(values["history"], names["history"]):
            turns += [Turn("user", asked), Turn("assistant", answered)]
    turns.append(Turn("user", texts["instruction"], texts.get("input", "")))
    turns.append(Turn("assistant", texts["output"], thought=texts.get("thought", "")))
    return finished_sample(fields, source, layout, turns, notes)


def pair_text(
    fields: dict[str, Any], layout: Layout, ours: str, value: Any, notes: list[str]
) -> str:
    name = layout.fields.get(ours, ours)
    required = ours in ("instruction", "output")
    if value is None:
        if required:
            raise Unusable(name, missing_reason(fields, layout, ours))
        return ""
    if is_number(value) and ours == "output" and layout.shape != "alpaca":
        notes.append(_NUMBER.format(name))
        return str(value)
    return check_text(value, f'"{name}"', name, required=required)


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
        text = pair_text(fields, layout, "instruction", prompt, notes)
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
        text = pair_text(fields, layout, "output", answer, notes)
        thought = pair_text(fields, layout, "thought", values.get("thought"), notes)
        completion = [Turn("assistant", text, thought=thought)]
    return finished_sample(fields, source, layout, [*turns, *completion], notes)
