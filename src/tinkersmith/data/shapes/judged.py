"""Answers that a record calls better, worse, right or wrong -> why they are not trained on."""

import json
from typing import Any, cast

from tinkersmith.data.columns import columns_text
from tinkersmith.data.shapes.fields import both_names
from tinkersmith.data.shapes.layout import Layout, our_name
from tinkersmith.data.shapes.messages import is_messages
from tinkersmith.data.shapes.values import Unusable, is_missing, is_number
from tinkersmith.data.shapes.verdicts import BLAMES, SCORES, verdict_of

COOKBOOK = "the preference recipes of the Tinker cookbook learn from both"


def check_judges(fields: dict[str, Any], layout: Layout, notes: list[str]) -> None:
    """Refuse a record whose answer is marked as bad, and note what others say of theirs."""
    for name in layout.judges:
        value, plain = fields.get(name), our_name(name)
        if is_missing(value):
            continue
        if plain == "rejected" and verdict_of(value, plain) is None:
            if value and isinstance(value, str | list):
                better = layout.fields["output" if layout.kind == "pair" else "messages"]
                raise preference_refusal(fields, better, name)
            continue
        if plain in SCORES and _is_score(value):
            notes.append(
                f'its "{name}" is a score that is not used: an answer with a low one is trained on '
                "like the others. If low ones are bad, remove those records"
            )
            continue
        verdict = verdict_of(value, plain)
        if verdict is None:
            continue
        if verdict is (plain in BLAMES):
            shown = json.dumps(value, ensure_ascii=False)
            raise Unusable(
                name,
                f'the record is a judged answer: its "{name}" is {shown}, which is read as "bad", '
                "and a bad answer is not trained on. If it means something else, or to train on "
                f"such answers all the same, set {columns_text(_as_it_is(layout))}. To learn from "
                "good and bad ones, as KTO does, use the preference recipes of the Tinker "
                "cookbook.",
            )
        notes.append(
            f'its "{name}" is read as the mark of a good answer; records that it marks as bad are '
            "skipped"
        )


def _is_score(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return is_number(value)


def _as_it_is(layout: Layout) -> dict[str, str]:
    """COLUMNS that read a record as it is read without them, whatever judges it."""
    needed = ("instruction", "output") if layout.kind == "pair" else ("messages",)
    fields = dict(layout.fields)
    if layout.thoughts:
        fields["thought"] = layout.thoughts[0]
    return {ours: name for ours, name in fields.items() if ours in needed or ours != name}


def check_choices(fields: dict[str, Any], layout: Layout) -> None:
    """Refuse a question whose choices are in other fields."""
    question, answer = layout.fields["instruction"], layout.fields["output"]
    values = [fields.get(name) for name in layout.choices]
    if len(values) == 1:
        has_choices = isinstance(values[0], list | dict) and len(cast("Any", values[0])) > 0
    else:
        has_choices = not any(is_missing(value) for value in values)
    if has_choices:
        shown = both_names(layout.choices[:2])
        as_it_is = columns_text({"instruction": question, "output": answer})
        raise Unusable(
            layout.choices[0],
            f'the record is a multiple-choice question: "{question}" does not hold its {shown}. '
            f'Write them into "{question}". To train without them, set {as_it_is}.',
        )


def preference_refusal(fields: dict[str, Any], first: str, second: str) -> Unusable:
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
    pair = both_names((first, second))
    what = f"the record is a preference pair ({pair}). Tinkersmith trains on "
    if first != "chosen":
        return Unusable(
            first,
            f"{what}answers: write the better ones into records of their own. Or let {COOKBOOK}.",
        )
    how = f" To train on the chosen ones, set {columns_text(advice)};" if advice else " But"
    return Unusable(first, f"{what}answers.{how} {COOKBOOK}.")
