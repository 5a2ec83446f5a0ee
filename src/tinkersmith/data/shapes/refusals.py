"""A record of no shape that can be trained on -> the sentence that says why, and the way out."""

from collections.abc import Mapping
from typing import Any, cast

from tinkersmith.data.columns import columns_text, quoted_names
from tinkersmith.data.shapes.fields import both_names
from tinkersmith.data.shapes.judged import preference_refusal
from tinkersmith.data.shapes.layout import THOUGHTS, Layout, our_name
from tinkersmith.data.shapes.messages import is_messages
from tinkersmith.data.shapes.values import Unusable, is_blank_text, is_missing

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


def refusal(fields: dict[str, Any], layout: Layout) -> Unusable:
    names = layout.fields
    if layout.shape == "twice":
        first, second = names["first"], names["second"]
        return Unusable(
            first, f'"{first}" and "{second}" mean the same. Keep one, or remove the record.'
        )
    if layout.shape == "preference":
        return preference_refusal(fields, names["first"], names["second"])
    if layout.shape == "ambiguous":
        one = {"instruction": names["instruction"], "output": names["output"]}
        return Unusable(
            "",
            f"the record can be read in more than one way: {both_names(one.values())}, or "
            f"{both_names((names['question'], names['answer']))}. Say which, for example: "
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
    if layout.shape in ("tree", "tree_row"):
        what = "is a tree of messages" if layout.shape == "tree" else "is one message of a tree"
        return Unusable(
            names["messages"],
            f'the record {what} (as its "{names["messages"]}" shows), as in OASST. Write each way '
            'from the first message to an answer as a record of its own: {"messages": [...]}. '
            '"prompter" and "assistant" are read as roles.',
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
            'Remove it, or write it as {"instruction": ..., "output": ...} or {"messages": [...]}.',
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
