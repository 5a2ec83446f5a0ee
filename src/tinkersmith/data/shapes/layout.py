"""The names of a record's fields -> its layout: the shape, and which field holds what.

This module sees names only. Values are checked by the modules beside this one.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from tinkersmith.data.columns import IN_MESSAGES, name_in
from tinkersmith.data.shapes.verdicts import BLAMES, PRAISES, SCORES

Kind = Literal["pair", "messages", "calls", "text", "refused"]

_QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
_ANSWERS = ("output", "completion", "response", "solution", "answer")
# Pairs of names that mean a question and its answer only beside each other.
_OTHER_PAIRS = (
    *(("input", "target"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt")),
    *(("human", "ai"), ("human", "bot"), ("user", "bot"), ("user", "ai"), ("q", "a")),
)
# Beside a text, these are the names of a user and of a model.
_USERS_AND_MODELS = (("user", "model"), ("human", "model"))

SHAPES: Mapping[str, str] = {
    "alpaca": "Alpaca records",
    "messages": "OpenAI messages",
    "sharegpt": "ShareGPT conversations",
    "message_list": "lists of messages",
    "dolly": "Dolly records",
    **{
        f"{question}_{answer}": f"{question} and {answer}"
        for question in _QUESTIONS
        for answer in (*_ANSWERS, "content")
    },
    **{
        f"{question}_{answer}": f"{question} and {answer}"
        for question, answer in (*_OTHER_PAIRS, *_USERS_AND_MODELS)
    },
    "chinese": "questions and answers in Chinese fields",
    "mbpp": "MBPP tasks",
    "humaneval": "HumanEval tasks",
    "function_calls": "questions with function calls",
    "text": "plain text",
    "columns": "the fields of COLUMNS",
}

# A name in Chinese -> ours. 答案 can be the final answer beside a solution, as "answer" can.
_CHINESE = {
    **dict.fromkeys(("指令", "提示"), "instruction"),
    **dict.fromkeys(("问题", "問題", "提问", "提問", "问", "問"), "question"),
    **dict.fromkeys(("题目", "題目"), "problem"),
    **dict.fromkeys(("输入", "輸入"), "input"),
    **dict.fromkeys(("输出", "輸出"), "output"),
    **dict.fromkeys(("回答", "回复", "回覆", "答复", "答覆"), "response"),
    **dict.fromkeys(("解答", "解析"), "solution"),
    **dict.fromkeys(("答案", "答"), "answer"),
    **dict.fromkeys(("系统", "系統", "系统提示", "系統提示", "系统提示词"), "system"),
    **dict.fromkeys(("历史", "歷史"), "history"),
    **dict.fromkeys(("对话", "對話", "消息"), "messages"),
    **dict.fromkeys(("文本",), "text"),
    **dict.fromkeys(("思考", "思考过程", "思考過程"), "thought"),
    **dict.fromkeys(("用户", "用戶", "使用者", "人类", "人類"), "user"),
    **dict.fromkeys(("助手", "助理", "机器人", "機器人"), "assistant"),
    **dict.fromkeys(("模型",), "model"),
}
_MESSAGES = (
    "messages",
    "conversations",
    "conversation",
    "chat",
    "dialog",
    "dialogue",
    "contents",
)
_SYSTEMS = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
THOUGHTS = (
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "complex_cot"),
    *("cot", "chain_of_thought", "thinking_content"),
)
# Words in the name of a field that may hold a thought, which only the user can know.
_LIKE_THOUGHTS = ("think", "thought", "reasoning", "rationale", "cot", "思考", "推理")
_PREFERENCES = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("response_j", "response_k"),
)
# The worse answer in a field beside the usual ones.
_REJECTED = ("rejected_response", "rejected_output", "rejected_answer", "rejected_messages")
_JUDGES = (*PRAISES, *BLAMES, *SCORES)
_CHOICES = ("choices", "options")
# The first choices of a question that has one in each field.
_CHOICE_FIELDS = (
    ("a", "b", "c"),
    *(
        (f"{name}{first}", f"{name}{second}")
        for name in ("option", "option_", "choice", "choice_", "op", "sol")
        for first, second in ("ab", "12")
    ),
)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Beside "text", these say that the text is a question and not all that is to be learnt.
_TARGETS = (
    *(*_QUESTIONS, *_ANSWERS, "output_text", "class", "code"),
    *("label", "labels", "label_text", "target", "targets", "summary", "highlights"),
    *("translation", "sentiment", "intent", "category", "answers", "标签", "摘要"),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a record with certain names is read."""

    shape: str  # a name of SHAPES, or why the record is refused
    kind: Kind
    fields: Mapping[str, str] = field(default_factory=dict[str, str])  # ours -> the record's name
    unused: tuple[str, ...] = ()  # fields that could be the sample as well
    otherwise: "Layout | None" = None  # if the messages are no list
    thoughts: tuple[str, ...] = ()  # fields with the thought before the answer
    like_thoughts: tuple[str, ...] = ()  # fields that look like one
    judges: tuple[str, ...] = ()  # fields that can say whether the answer is good
    choices: tuple[str, ...] = ()  # the choices of a question: one list, or a field for each
    columns: bool = False  # whether COLUMNS decided
    texts: tuple[str, str, str, str] | None = None  # of a pair of texts: see `_with_texts`

    @property
    def names(self) -> Iterable[str]:
        """The record's names that are used."""
        return self.fields.values()


_ALPACA = ("instruction", "output")
ALPACA = Layout(
    "alpaca",
    "pair",
    {name: name for name in ("instruction", "input", "output", "system", "history")},
)


@lru_cache(maxsize=4096)
def layout_of(names: tuple[str, ...]) -> Layout:
    """The layout of records that have fields of these names."""
    if "instruction" in names and "output" in names:
        return _alpaca(names)
    ours: dict[str, str] = {}
    for name in names:
        known = our_name(name)
        if known in ours and known in _KNOWN:
            return Layout("twice", "refused", {"first": ours[known], "second": name})
        ours[known] = name
    chinese = any(name.strip() in _CHINESE and our_name(name) != "thought" for name in names)
    if "instruction" in ours and "output" in ours:
        layout = _pair(ours, *_ALPACA)
        return replace(layout, shape="chinese" if chinese else "alpaca")
    preference = _preference(ours)
    if preference is not None:
        return preference
    layout = _pair_or_text(ours)
    if chinese and layout.kind == "pair":
        layout = replace(layout, shape="chinese")
    for name in reversed([name for name in _MESSAGES if name in ours]):
        layout = _messages(ours, ours[name], layout)
    return _with_texts(layout, names)


def _alpaca(names: tuple[str, ...]) -> Layout:
    """The layout of records that have an instruction and an output by these very names."""
    ours = {name: name for name in names}
    for name in names:
        plain = _plain(name)
        if plain != name and plain in ours and plain in (*ALPACA.fields, *THOUGHTS):
            return Layout("twice", "refused", {"first": plain, "second": name})
        if our_name(name) in (*THOUGHTS, *_JUDGES, *_REJECTED):
            ours.setdefault(our_name(name), name)
    if any(name in ours for name in _REJECTED):
        return _preference(ours) or Layout("unknown", "refused")
    others = tuple(name for name in _MESSAGES if name in names)
    return _with_texts(replace(_pair(ours, *_ALPACA), unused=others), names)


def _preference(ours: Mapping[str, str]) -> Layout | None:
    """The layout of a record that has a better and a worse answer; None if it has not."""
    better = [name for name in ("messages", "conversations", *_ANSWERS) if name in ours]
    pairs = [*_PREFERENCES, *((name, worse) for worse in _REJECTED for name in better)]
    for first, second in pairs:
        if first in ours and second in ours:
            return Layout("preference", "refused", {"first": ours[first], "second": ours[second]})
    return None


def _with_texts(layout: Layout, names: tuple[str, ...]) -> Layout:
    """The layout with the names of instruction, output, input and system, if it has no others."""
    known = ("instruction", "output", "input", "system")
    if layout.kind != "pair" or layout.judges or layout.choices or layout.unused:
        return layout
    if layout.thoughts or layout.like_thoughts:
        return layout
    if not layout.fields.keys() <= set(known) or any(_plain(name) in MEDIA for name in names):
        return layout
    first, second, third, fourth = (layout.fields.get(name, "") for name in known)
    return replace(layout, texts=(first, second, third, fourth))


def layout_with(names: tuple[str, ...], columns: Mapping[str, str]) -> Layout:
    """The layout that COLUMNS gives to records with fields of these names."""
    return _layout_with(names, tuple(columns.items()))


@lru_cache(maxsize=4096)
def _layout_with(names: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> Layout:
    wanted = {ours: name if ours in IN_MESSAGES else name_in(names, name) for ours, name in columns}
    taken = {name for ours, name in wanted.items() if ours not in IN_MESSAGES}
    if any(name in wanted for name in ("instruction", "input", "output", "history")):
        layout, optional = ALPACA, ("input", "system", "history")
        named = {"instruction": "instruction", "output": "output"}
    elif "text" in wanted:
        layout, named, optional = Layout("text", "text"), {}, ()
    elif "messages" in wanted:
        layout, named, optional = Layout("messages", "messages"), {}, ("system", "tools")
    else:  # the names still say what is the question and what the answer
        layout = layout_of(names)
        if layout.kind == "refused":
            return layout
        named = {ours: name for ours, name in layout.fields.items() if name not in taken}
        if "thought" in wanted:
            layout = replace(layout, thoughts=(), like_thoughts=())
        return replace(
            layout,
            shape="columns",
            fields={**named, **wanted},
            unused=(),
            otherwise=None,
            columns=True,
            texts=None,
        )
    named |= {name: name for name in optional if name in names and name not in taken}
    return replace(layout, shape="columns", fields={**named, **wanted}, columns=True, texts=None)


def our_name(name: str) -> str:
    """A name without the variants of case and white space, in English if we know it."""
    plain = _plain(name)
    return _CHINESE.get(plain, plain)


def _plain(name: str) -> str:
    return name.strip().strip("\ufeff").lower().replace(" ", "_").replace("-", "_")


def _messages(ours: Mapping[str, str], name: str, otherwise: Layout) -> Layout:
    fields = {"messages": name}
    for kind, candidates in (("system", _SYSTEMS), ("tools", _TOOLS)):
        found = next((ours[candidate] for candidate in candidates if candidate in ours), None)
        if found is not None:
            fields[kind] = found
    unused: list[str] = []
    if otherwise.kind == "messages":
        unused = [otherwise.fields["messages"]]
    elif otherwise.kind == "pair":
        unused = [otherwise.fields["instruction"], otherwise.fields["output"]]
    thoughts = _present(THOUGHTS, ours)
    return Layout(
        "messages",
        "messages",
        fields,
        tuple(unused),
        otherwise,
        thoughts=thoughts,
        like_thoughts=_like_thoughts(ours, {*fields.values(), *unused}, thoughts),
        judges=_present(_JUDGES, ours),
    )


def _pair_or_text(ours: Mapping[str, str]) -> Layout:
    questions = [name for name in _QUESTIONS if name in ours and name != "input"]
    questions = questions or [name for name in ("input",) if name in ours]
    answers = [name for name in _ANSWERS if name in ours and name != "answer"]
    answers = answers or [name for name in ("answer",) if name in ours]
    if (len(questions) > 1 and answers) or (len(answers) > 1 and questions):
        fields = {"instruction": ours[questions[0]], "output": ours[answers[0]]}
        others = {"question": ours[questions[-1]], "answer": ours[answers[-1]]}
        return Layout("ambiguous", "refused", {**fields, **others})
    if not answers:
        task = _task_with_code(ours)
        if task is not None:
            return task
    if {"query", "answers", "tools"} <= ours.keys() and not answers:
        fields = {"instruction": ours["query"], "output": ours["answers"], "tools": ours["tools"]}
        for system in _present(_SYSTEMS, ours)[:1]:
            fields["system"] = system
        return Layout("function_calls", "calls", fields)
    if "message_id" in ours and {"parent_id", "parent_message_id"} & ours.keys():
        return Layout("tree_row", "refused", {"messages": ours["message_id"]})
    if {"message_tree_id", "prompt"} <= ours.keys() and not answers:
        return Layout("tree", "refused", {"messages": ours["prompt"]})
    if {"question", "context", "answers"} <= ours.keys() and not answers:
        names = ("question", "context", "answers")
        return Layout("squad", "refused", {name: ours[name] for name in names})
    if questions and answers and (questions, answers) != (["instruction"], ["answer"]):
        return _pair(ours, questions[0], answers[0])
    no_text = not any(name in ours for name in ("text", "content", *_MESSAGES))
    for question, answer in (*_OTHER_PAIRS, *(_USERS_AND_MODELS if no_text else ())):
        if question in ours and answer in ours and not answers:
            return _pair(ours, question, answer)
    thoughts = _present(THOUGHTS, ours)
    if questions and "content" in ours and thoughts and "text" not in ours:
        return _pair(ours, questions[0], "content")
    if ("role" in ours and "content" in ours) or ("from" in ours and "value" in ours):
        return Layout("message", "refused")
    for name in ("text", "content"):
        if name in ours:
            targets = [target for target in _TARGETS if target in ours]
            if targets and targets[0] in _QUESTIONS:
                asked = {"text": ours[targets[0]], "output": ours[name], "alone": ours[name]}
                return Layout("labelled", "refused", asked)
            if targets:
                said = {"text": ours[name], "output": ours[targets[0]], "alone": ours[name]}
                return Layout("labelled", "refused", said)
            if thoughts or "role" in ours:
                return Layout("unknown", "refused")
            return Layout("text", "text", {"text": ours[name]})
    if "instruction" in ours or "output" in ours:
        fields = {**ALPACA.fields, **{name: ours[name] for name in ALPACA.fields if name in ours}}
        return replace(ALPACA, fields=fields)
    return Layout("unknown", "refused")


def _task_with_code(ours: Mapping[str, str]) -> Layout | None:
    """The layout of a programming task with its code and its tests; None if it is none."""
    for shape, answer, sign in (
        ("mbpp", "code", "test_list"),
        ("humaneval", "canonical_solution", "prompt"),
    ):
        questions = [name for name in ("prompt", "text") if name in ours]
        if answer in ours and sign in ours and len(questions) == 1:
            return replace(_pair(ours, questions[0], answer), shape=shape)
    return None


def _pair(ours: Mapping[str, str], question: str, answer: str) -> Layout:
    is_alpaca = (question, answer) == _ALPACA
    fields = {"instruction": ours[question], "output": ours[answer]}
    shape = "alpaca" if is_alpaca else f"{question}_{answer}"
    for name in ("input", "history"):
        if name in ours and name != question:
            fields[name] = ours[name]
    if not is_alpaca and "input" not in fields and "context" in ours:
        fields["input"] = ours["context"]
        shape = "dolly" if shape == "instruction_response" else shape
    systems = ("system",) if is_alpaca else _SYSTEMS
    system = next((ours[name] for name in systems if name in ours), None)
    if system is not None:
        fields["system"] = system
    used = set(fields.values())
    thoughts = _present(THOUGHTS, ours)
    layout = Layout(
        shape,
        "pair",
        fields,
        thoughts=thoughts,
        like_thoughts=_like_thoughts(ours, used, thoughts),
        judges=_present(_JUDGES, ours),
    )
    return layout if is_alpaca else replace(layout, choices=_choices(ours))


def _present(candidates: Iterable[str], ours: Mapping[str, str]) -> tuple[str, ...]:
    return tuple([ours[name] for name in candidates if name in ours])


def _like_thoughts(
    ours: Mapping[str, str], used: Container[str], thoughts: Container[str]
) -> tuple[str, ...]:
    """Fields that are not used, and whose names look like those of thoughts."""
    return tuple(
        name
        for name in ours.values()
        if name not in used
        and name not in thoughts
        and any(word.startswith(_LIKE_THOUGHTS) for word in _plain(name).split("_"))
    )


def _choices(ours: Mapping[str, str]) -> tuple[str, ...]:
    """The fields with the choices of a question, if there are any."""
    for name in _CHOICES:
        if name in ours:
            return (ours[name],)
    for names in _CHOICE_FIELDS:
        if all(name in ours for name in names):
            return _present(names, ours)
    return ()


_KNOWN = frozenset(
    (
        *(*_QUESTIONS, *_ANSWERS, *_MESSAGES, *_SYSTEMS, *_TOOLS, *THOUGHTS),
        *("history", "text", "content", "user", "assistant"),
    )
)
