"""Answers that a record calls better, worse, right or wrong -> why they are not trained on."""

from typing import Any, cast

from tinkersmith.data.columns import columns_text
from tinkersmith.data.shapes.fields import both_names
from tinkersmith.data.shapes.layout import Layout
from tinkersmith.data.shapes.messages import is_messages
from tinkersmith.data.shapes.values import Unusable, is_missing, is_number

COOKBOOK = "the preference recipes of the Tinker cookbook learn from both"


def check_judges(fields: dict[str, Any], layout: Layout, notes: list[str]) -> None:
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
                f"{COOKBOOK}.",
            )
        if is_number(value) and value in (0, 1):
            notes.append(
                f'its "{name}" is 0 or 1 and is not used; if it judges the answer, remove the '
                "records with 0"
            )


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
