"""Records of every shape become the turns that a reader of the record would write down."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tinkersmith.data.columns import COLUMN_FIELDS, MISSING, value_in
from tinkersmith.data.convert import sample_record
from tinkersmith.data.load import load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source, Turn
from tinkersmith.data.shapes.check import check_record
from tinkersmith.data.shapes.layout import SHAPES
from tinkersmith.errors import UserError

HERE = Source("a.json", 1)


def sample_of(record: Any, columns: dict[str, str] | None = None) -> Sample:
    checked = check_record(record, HERE, columns or {})
    assert isinstance(checked, Sample), checked
    return checked


def reason_of(record: Any, columns: dict[str, str] | None = None) -> str:
    checked = check_record(record, HERE, columns or {})
    assert isinstance(checked, Skipped), checked
    assert "\n" not in checked.reason
    return checked.reason


def written(sample: Sample) -> str:
    """The turns as lines of a play, written by hand in the tests."""
    lines: list[str] = []
    for turn in sample.turns:
        line = f"{turn.role}: {turn.text}"
        line += f" | {turn.input}" if turn.input else ""
        line += f" <{turn.thought}>" if turn.thought else ""
        for call in turn.tool_calls:
            function = call["function"]
            line += f" {function['name']}{json.dumps(function['arguments'], ensure_ascii=False)}"
        line += f" @{turn.tool_name}" if turn.tool_name else ""
        line += "" if turn.trained is None else " +" if turn.trained else " -"
        lines.append(line)
    return "\n".join(lines)


def said(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def shared(role: str, value: Any, **others: Any) -> dict[str, Any]:
    return {"from": role, "value": value, **others}


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
QA = "user: Where?\nassistant: Here."
TURN = [said("user", "Where?"), said("assistant", "Here.")]

# (shape, record, its turns)
READ: list[tuple[str, Any, str]] = [
    ("alpaca", {"instruction": "Where?", "output": "Here."}, QA),
    (
        "alpaca",
        {
            "instruction": "And?",
            "input": "x",
            "output": "b",
            "system": "S",
            "history": [["q", "a"]],
            "context": "not used",
        },
        "system: S\nuser: q\nassistant: a\nuser: And? | x\nassistant: b",
    ),
    ("alpaca", {" Instruction": "Where?", "OUTPUT": "Here."}, QA),
    ("messages", {"messages": TURN}, QA),
    ("messages", {"conversation": TURN}, QA),
    ("messages", {"conversations": TURN}, QA),
    ("messages", {"chat": TURN}, QA),
    ("messages", {"dialog": TURN}, QA),
    ("messages", {"Messages ": TURN}, QA),
    ("messages", {"对话": TURN}, QA),
    ("messages", {"messages": json.dumps(TURN)}, QA),
    (
        "messages",
        {
            "messages": [
                said("developer", "Be brief."),
                said("user", "Where?"),
                said("assistant", "Here."),
                said("user", "Why?"),
                said("assistant", "So."),
            ]
        },
        f"system: Be brief.\n{QA}\nuser: Why?\nassistant: So.",
    ),
    ("messages", {"system": "Be brief.", "messages": TURN}, f"system: Be brief.\n{QA}"),
    (
        "messages",
        {"messages": [said("User", "Where?"), said(" assistant", "Here.", name="x", id=7)]},
        QA,
    ),
    (
        "messages",
        {
            "messages": [
                said("user", "Bern?"),
                said("assistant", None, tool_calls=[CALL]),
                said("tool", "rain", tool_call_id="c1", name="weather"),
                said("assistant", "It rains."),
            ],
            "tools": [TOOL],
        },
        'user: Bern?\nassistant:  weather{"city": "Bern"}\n'
        "tool: rain @weather\nassistant: It rains.",
    ),
    (
        "messages",
        {
            "messages": [
                said("user", "Bern?"),
                said("assistant", "", function_call={"name": "weather", "arguments": {"d": 1}}),
                said("function", "", name="weather"),
                said("assistant", "Dry.", tool_calls=None),
            ],
            "functions": [{"name": "weather", "parameters": {}}],
        },
        'user: Bern?\nassistant:  weather{"d": 1}\ntool:  @weather\nassistant: Dry.',
    ),
    (
        "messages",
        {
            "messages": [
                said("user", "a"),
                said("assistant", "b", weight=0),
                said("user", "c"),
                said("assistant", "d", weight=1.0),
            ]
        },
        "user: a\nassistant: b -\nuser: c\nassistant: d +",
    ),
    (
        "messages",
        {
            "messages": [
                said("user", "a", train=False, weight=None),
                said("assistant", "b", trainable=True),
            ]
        },
        "user: a -\nassistant: b +",
    ),
    *(
        ("messages", {"messages": [TURN[0], said("assistant", "Here.", **{name: "Hm."})]}, thought)
        for name in ("reasoning_content", "reasoning", "thinking")
        for thought in ("user: Where?\nassistant: Here. <Hm.>",)
    ),
    (
        "messages",
        {
            "messages": [
                said("user", [{"type": "text", "text": "Whe"}, {"type": "text", "text": "re?"}]),
                said(
                    "assistant",
                    [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Here."}],
                ),
            ]
        },
        "user: Where?\nassistant: Here. <Hm.>",
    ),
    (
        "messages",
        {"contents": [said("user", None, parts=[{"text": "Where?"}]), said("model", "Here.")]},
        QA,
    ),
    *(
        ("sharegpt", {"conversations": [shared("human", "Where?"), shared(name, "Here.")]}, QA)
        for name in ("gpt", "bing", "bard", "claude", "agent")
    ),
    (
        "messages",
        {
            "conversation": [
                {"system": "S", "input": "Where?", "output": "Here."},
                {"input": "Why?", "output": "So."},
            ]
        },
        f"system: S\n{QA}\nuser: Why?\nassistant: So.",
    ),
    (
        "messages",
        {
            "messages": [
                said("user", "Bern?"),
                said("assistant", None, tool_calls=[{"name": "weather", "args": {"d": 1}}]),
                said("tool", {"sky": "grey"}),
                said("assistant", "Dry."),
            ]
        },
        'user: Bern?\nassistant:  weather{"d": 1}\ntool: {"sky": "grey"}\nassistant: Dry.',
    ),
    (
        "sharegpt",
        {
            "id": "x",
            "system": "S",
            "conversations": [
                shared("user", "a"),
                shared("chatgpt", "b"),
                shared("human", "c"),
                shared("bot", "d"),
            ],
        },
        "system: S\nuser: a\nassistant: b\nuser: c\nassistant: d",
    ),
    (
        "sharegpt",
        {
            "conversations": [
                shared("system", "S"),
                shared("human", "Bern?"),
                shared("function_call", '{"name": "weather", "arguments": {"city": "Bern"}}'),
                shared("observation", "rain"),
                shared("assistant", "It rains."),
            ],
            "tools": json.dumps([TOOL]),
        },
        "system: S\nuser: Bern?\nassistant:  "
        'weather{"city": "Bern"}\ntool: rain\nassistant: It rains.',
    ),
    ("message_list", TURN, QA),
    ("message_list", [shared("human", "Where?"), shared("gpt", "Here.")], QA),
    ("prompt_completion", {"prompt": "Where?", "completion": "Here."}, QA),
    ("prompt_completion", {"prompt": [TURN[0]], "completion": [TURN[1]]}, QA),
    ("prompt_completion", {"prompt": [TURN[0]], "completion": "Here."}, QA),
    (
        "prompt_completion",
        {
            "prompt": [said("system", "S"), *TURN, said("user", "Why?")],
            "completion": [said("assistant", "So.")],
        },
        "system: S\nuser: Where?\nassistant: Here. -\nuser: Why?\nassistant: So.",
    ),
    ("prompt_response", {"prompt": "Where?", "response": "Here."}, QA),
    ("question_answer", {"question": "Where?", "answer": "Here."}, QA),
    ("question_answer", {"Question ": "Where?", " ANSWER": "Here."}, QA),
    (
        "question_answer",
        {"question": "Where?", "context": "A map.", "answer": "Here."},
        "user: Where? | A map.\nassistant: Here.",
    ),
    ("question_answer", {"question": "6 x 7?", "answer": 42}, "user: 6 x 7?\nassistant: 42"),
    (
        "question_response",
        {"system_prompt": "S", "question": "Where?", "response": "Here.", "id": 3},
        f"system: S\n{QA}",
    ),
    ("query_response", {"query": "Where?", "response": "Here.", "type": "GSM"}, QA),
    ("problem_solution", {"problem": "Where?", "solution": "Here.", "answer": "7"}, QA),
    ("input_output", {"input": "Where?", "output": "Here."}, QA),
    ("instruction_response", {"instruction": "Where?", "response": "Here."}, QA),
    (
        "dolly",
        {"instruction": "Where?", "context": "A map.", "response": "Here.", "category": "qa"},
        "user: Where? | A map.\nassistant: Here.",
    ),
    ("dolly", {"instruction": "Where?", "context": "", "response": "Here."}, QA),
    (
        "chinese",
        {"指令": "哪里？", "输入": "", "输出": "这里。"},
        "user: 哪里？\nassistant: 这里。",
    ),
    (
        "chinese",
        {"系统": "S", "指令": "q", "输入": "i", "输出": "a", "历史": [["x", "y"]]},
        "system: S\nuser: x\nassistant: y\nuser: q | i\nassistant: a",
    ),
    *(
        ("chinese", {question: "哪里？", answer: "这里。"}, "user: 哪里？\nassistant: 这里。")
        for question, answer in (
            ("问题", "答案"),
            ("问题", "回答"),
            ("提问", "回答"),
            ("问", "答"),
            ("問題", "回答"),
        )
    ),
    ("text", {"text": "Once upon a time."}, "text: Once upon a time."),
    ("text", {"content": "Once.", "url": "u", "meta": {"a": 1}}, "text: Once."),
    ("text", "Once upon a time.", "text: Once upon a time."),
    ("alpaca", {"instruction": "Where?", "output": "Here.", "images": [], "image": " "}, QA),
    *(
        (shape, {question: "Where?", name: "Hm.", answer: "Here."}, f"{QA} <Hm.>")
        for shape, question, answer in (
            ("alpaca", "instruction", "output"),
            ("question_answer", "question", "answer"),
            ("problem_solution", "problem", "solution"),
            ("input_content", "input", "content"),
            ("chinese", "问题", "回答"),
        )
        for name in ("reasoning_content", "Complex_CoT", "thinking", "思考")
    ),
    ("input_output", {"input": "Where?", "output": "Here.", "thought": None, "thoughts": 3}, QA),
    (
        "prompt_completion",
        {"prompt": [TURN[0]], "completion": "Here.", "thought": "Hm."},
        f"{QA} <Hm.>",
    ),
    ("input_target", {"kind": "QA", "input": "Where?", "target": "Here."}, QA),
    ("user_assistant", {"user": "Where?", "assistant": "Here."}, QA),
    ("question_answer", {"question": "Where?", "answer": "Here.", "is_correct": True}, QA),
    ("mbpp", {"task_id": 3, "text": "Where?", "code": "Here.", "test_list": ["t"]}, QA),
    (
        "humaneval",
        {"task_id": "H/3", "prompt": "Where?", "canonical_solution": "Here.", "test": "t"},
        QA,
    ),
    (
        "function_calls",
        {"query": "Bern?", "answers": [CALL], "tools": [TOOL]},
        'user: Bern?\nassistant:  weather{"city": "Bern"}',
    ),
    (
        "question_answer",
        {"row_idx": 3, "row": {"question": "Where?", "answer": "Here."}, "truncated_cells": []},
        QA,
    ),
]


def test_every_shape_has_a_name_and_an_example() -> None:
    shown = {shape for shape, _, _ in READ}
    single = {shape for shape in SHAPES if "_" not in shape} | {"message_list"}
    assert single - shown == {"columns"}
    assert shown <= set(SHAPES)


@pytest.mark.parametrize("number", range(len(READ)))
def test_a_shape_gives_the_turns_that_its_record_says(number: int) -> None:
    shape, record, turns = READ[number]
    sample = sample_of(record)
    assert written(sample) == turns
    assert sample.shape == shape


@pytest.mark.parametrize("form", ["array", "JSON Lines"])
def test_all_shapes_in_one_file_are_read_and_counted(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("mixed.json" if form == "array" else "mixed.jsonl")
    records = [json.dumps(record, ensure_ascii=False) for _, record, _ in READ]
    text = f"[{', '.join(records)}]" if form == "array" else "\n".join(records)
    path.write_text(text, encoding="utf-8")
    loaded = load_samples([str(path)])
    assert loaded.skipped == []
    assert [written(sample) for sample in loaded.samples] == [turns for _, _, turns in READ]
    [line] = read_lines(loaded.counts, [], loaded.shapes)
    assert line.startswith(f"Read {len(READ)} samples from {path.as_posix()}: ")
    for shape, count in loaded.shapes[path.as_posix()].items():
        assert f"{count} as {SHAPES[shape]}" in line


def test_messages_keep_calls_tools_and_ids() -> None:
    record = {
        "messages": [
            said("user", "Bern?"),
            said("assistant", None, tool_calls=[CALL]),
            said("tool", "rain", tool_call_id="c1"),
            said("assistant", "It rains."),
        ],
        "tools": [TOOL, {"name": "time", "description": "now"}],
        "source": "web",
    }
    sample = sample_of(record)
    assert sample.turns[1].tool_calls == (
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Bern"}},
        },
    )
    assert sample.turns[2].tool_call_id == "c1"
    assert sample.tools == (
        TOOL,
        {"type": "function", "function": {"name": "time", "description": "now"}},
    )
    assert sample.extra == {"source": "web"}


def test_a_thought_beside_an_input_is_written_so_that_it_is_read_again() -> None:
    sample = sample_of({"question": "q", "context": "c", "thinking": "hm", "answer": "a"})
    assert sample_of(sample_record(sample)).turns == sample.turns


# ---- what is left out, and what is joined


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(turns)}


USER, ANSWER = said("user", "q"), said("assistant", "a")


@pytest.mark.parametrize(
    ("record", "turns", "note"),
    [
        (messages(USER, ANSWER, USER), "user: q\nassistant: a", "its last message, which no"),
        (messages(USER, ANSWER, USER, USER), "user: q\nassistant: a", "its last messages,"),
        (
            messages(USER, ANSWER, USER, said("system", "s")),
            "user: q\nassistant: a",
            "its last messages, which no answer follows, were left out",
        ),
        (messages(ANSWER, USER, ANSWER), "user: q\nassistant: a", "its first message, an answer"),
        (
            messages(said("system", "s"), ANSWER, USER, ANSWER),
            "system: s\nuser: q\nassistant: a",
            "its first message, an answer",
        ),
        (
            messages(USER, said("user", "r"), ANSWER),
            "user: q\n\nr\nassistant: a",
            "messages of one role in a row were joined",
        ),
        (
            messages(USER, ANSWER, said("assistant", "b")),
            "user: q\nassistant: a\n\nb",
            "messages of one role in a row were joined",
        ),
        (
            {"system": "x", **messages(said("system", "s"), USER, ANSWER)},
            "system: x\n\ns\nuser: q\nassistant: a",
            "its system messages were joined",
        ),
        (
            {"system": "s", **messages(said("system", "s"), USER, ANSWER)},
            "system: s\nuser: q\nassistant: a",
            "",
        ),
        (messages(said("system", " "), USER, ANSWER), "user: q\nassistant: a", ""),
        (
            {**messages(USER, ANSWER), "problem": "p", "solution": "s"},
            "user: q\nassistant: a",
            'its messages were used, and not its "problem" and "solution"',
        ),
        (
            {"question": "q", "answer": 1.5},
            "user: q\nassistant: 1.5",
            'its "answer", a number, is taken as text',
        ),
        (
            {"question": "q", "answer": "a", "thinking_trajectories": ["t"]},
            "user: q\nassistant: a",
            'its field "thinking_trajectories" was not used; COLUMNS = {"thought": '
            '"thinking_trajectories.0"} reads its first item as a thought',
        ),
        (
            {"instruction": "q", "output": "a", "label": 1},
            "user: q\nassistant: a",
            'its "label" is read as the mark of a good answer; records that it marks as bad are',
        ),
    ],
)
def test_what_no_template_could_write_is_left_out_or_joined_and_noted(
    record: Any, turns: str, note: str
) -> None:
    sample = sample_of(record)
    assert written(sample) == turns
    assert len(sample.notes) == bool(note)
    assert not note or sample.notes[0].startswith(note)


def test_notes_are_counted_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    record = json.dumps(messages(USER, ANSWER, USER))
    file.write_text("\n".join([json.dumps(messages(USER, ANSWER)), record, record]))
    [line] = note_lines(load_samples([str(file)]).notes)
    assert line.startswith("In 2 samples: its last message, which no answer follows, was left out")
    assert line.endswith(f"(the first: {file.as_posix()}, record 2).")


# ---- what is refused


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (messages(USER), '"messages" has no message of the role assistant'),
        (messages(ANSWER), '"messages" has no message of the role assistant that follows'),
        ({"messages": []}, '"messages" is an empty list; it must be a list of messages.'),
        ({"messages": "hello"}, '"messages" is a string; it must be a list of messages.'),
        ({"messages": None}, '"messages" is null; it must be a list of messages.'),
        (messages(USER, 7), "message 2 is the number 7; it must be an object"),  # type: ignore[arg-type]
        (messages(USER, {"content": "a"}), 'message 2 has no "role".'),
        (messages(USER, said("narrator", "a")), '"role" of message 2 is "narrator"; it must be'),
        (messages(USER, said(7, "a")), '"role" of message 2 is the number 7'),  # type: ignore[arg-type]
        (messages(said("user", ""), ANSWER), '"content" of message 1 is empty.'),
        (messages(said("user", "\u3000\u200b"), ANSWER), '"content" of message 1 is empty.'),
        (messages(USER, said("assistant", None)), '"content" of message 2 is null.'),
        (messages(USER, said("assistant", 5)), '"content" of message 2 is the number 5'),
        (messages(USER, said("assistant", float("nan"))), '"content" of message 2 is NaN'),
        (messages(USER, said("assistant", "a\ud800")), "message 2 contains an unpaired surr"),
        (
            messages(said("user", [{"type": "image_url", "image_url": {}}]), ANSWER),
            'message 1 has a part of the type "image_url"; Tinkersmith trains on text only.',
        ),
        ({**messages(USER, ANSWER), "images": ["a.png"]}, 'the record has "images"; Tinkersmith'),
        ({"question": "q", "answer": "a", "image": {"path": "a.png"}}, 'the record has "image"'),
        (messages(USER, said("tool", "x"), ANSWER), "message 2 is a tool's, but follows no call"),
        (
            messages(USER, said("assistant", "a", weight=0)),
            'every answer in "messages" is marked as not to be trained on.',
        ),
        (messages(USER, said("assistant", "a", weight=0.5)), '"weight" of message 2 is the num'),
        (messages(USER, said("assistant", "a", train="yes")), '"train" of message 2 is a string'),
        (
            messages(USER, said("assistant", "a", weight=1, train=False)),
            '"weight" and "train" of message 2 contradict each other.',
        ),
        (
            messages(USER, said("assistant", "a", reasoning="x", thinking="y")),
            '"reasoning" and "thinking" of message 2 differ.',
        ),
        (
            messages(USER, said("assistant", None, tool_calls=[{"function": {}}])),
            '"name" of tool call 1 of message 2 is null',
        ),
        (
            messages(
                USER,
                said("assistant", None, tool_calls=[{"name": "f", "arguments": "{broken"}]),
            ),
            "the arguments of tool call 1 of message 2 are no JSON object.",
        ),
        ({**messages(USER, ANSWER), "tools": "no"}, '"tools" must be a list of functions.'),
        ({**messages(USER, ANSWER), "tools": [{"x": 1}]}, 'item 1 of "tools" is no function'),
        (
            {"conversations": [shared("human", "q"), shared("function_call", "oops")]},
            '"value" of message 2 must be a call of a tool as JSON',
        ),
        (
            {"messages": [USER, ANSWER], "conversations": [USER, ANSWER]},
            '"messages" and "conversations" both hold messages. Say which',
        ),
        ({"question": "q", "answer": True}, '"answer" is true; it must be a string.'),
        ({"question": "q", "answer": {}}, '"answer" is an object; it must be a string.'),
        ({"question": "q", "answer": None}, '"answer" is null. Fill it in'),
        ({"question": "q", "answer": float("nan")}, '"answer" is NaN, which counts as missing.'),
        ({"question": "q", "answer": float("inf")}, '"answer" is the number inf; it must be'),
        ({"question": "\u3000", "answer": "a"}, '"question" is empty.'),
        ({"question": "q", "answer": "\u200b\ufeff"}, '"answer" is empty.'),
        ({"text": "\u2060 "}, '"text" is empty.'),
        ({"text": 7}, '"text" is the number 7'),
        ({"question": "q", "Question": "r", "answer": "a"}, '"question" and "Question" mean the'),
        ({"role": "user", "content": "q"}, "the record is one chat message."),
        ({"from": "human", "value": "q"}, "the record is one chat message."),
        ({"instruction": "q", "answer": "a"}, 'COLUMNS = {"output": "answer"}'),
        ({}, "the record has no fields."),
        ({"id": 7, "score": 0.5}, "no field of the record holds a text to train on"),
        ([[1]], "the record is a list"),
        ([], "the record is a list"),
        (
            {"row_idx": 1, "row": {"text": "cut"}, "truncated_cells": ["text"]},
            'the data set\'s viewer cut "text" short',
        ),
        *(
            ({**pair, **judged}, "the record is a judged answer")
            for pair in (
                {"prompt": "q", "completion": "a"},
                {"instruction": "q", "output": "a"},
                messages(USER, ANSWER),
            )
            for judged in ({"label": False}, {"kto_tag": 0}, {"is_correct": False})
        ),
        *(
            ({**pair, "rejected_response": "b"}, "the record is a preference pair")
            for pair in (
                {"query": "q", "response": "a"},
                {"instruction": "q", "output": "a"},
                messages(USER, ANSWER),
            )
        ),
        ({"instruction": "q", "output": "a", "image": "a.png"}, 'the record has "image"'),
        ({"instruction": "q", "output": "a", "Image": "a.png"}, 'the record has "Image"'),
        (
            {"conversations": [shared("human", "<image>q"), shared("gpt", "a")], "image": "a.png"},
            'the record has "image"',
        ),
        (
            {"instruction": "q", "output": "a", "reasoning": "x", "thought": "y"},
            '"reasoning" and "thought" both hold a thought.',
        ),
        ({"content": "a", "role": "x"}, "the record is one chat message."),
        ({"content": "a", "thought": "x"}, 'COLUMNS = {"instruction": "...", "output": "..."}'),
        ({"a1": "x", "b1": "y", "c1": "z"}, 'COLUMNS = {"instruction": "...", "output": "..."}'),
        ({"frage": "x", "antwort": "y"}, 'or the other way round: COLUMNS = {"instruction": "ant'),
        ({"body": "x", "url": "y"}, 'for plain text, COLUMNS = {"text": "..."}'),
        (
            messages(USER, said("assistant", "a", weight=0), said("assistant", "b", weight=1)),
            "messages 2 and 3 are of one role in a row, and their marks differ",
        ),
        (
            {"instruction": "q", "Instruction": "r", "output": "a"},
            '"instruction" and "Instruction" mean the same.',
        ),
        ({"question": "q", "answers": ["a"]}, 'COLUMNS = {"instruction": "...", "output": "..."}'),
        ({"title": "x", "id": "y"}, "no field of the record holds a text to train on"),
        ({"question": "q"}, '"answer" is missing beside "question". Add it'),
        ({"problem": "q", "id": "7"}, '"solution" is missing beside "problem". Add it'),
        (
            {"input": {"messages": TURN}, "preferred_output": TURN, "non_preferred_output": TURN},
            "the record is a preference pair",
        ),
        ({"prompt": "q", "response_1": "a", "response_2": "b"}, "the record is a preference pair"),
        (
            {"conversations": TURN, "chosen": TURN[1], "rejected": TURN[1]},
            "the record is a preference pair",
        ),
    ],
)
def test_a_record_that_is_wrong_is_named_with_the_place(record: Any, sentence: str) -> None:
    assert sentence in reason_of(record)


# Records that are refused although they hold texts; their sentence has a COLUMNS that reads them.
ADVISED: list[tuple[Any, str, str]] = [
    (
        {"prompt": "Where?", "chosen": "Here.", "rejected": "No."},
        'the record is a preference pair ("chosen" and "rejected")',
        QA,
    ),
    ({"chosen": TURN, "rejected": TURN}, "the record is a preference pair", QA),
    ({"prompt": "Where?", "chosen": TURN, "rejected": TURN}, "is a preference pair", QA),
    (
        {"prompt": [TURN[0]], "chosen": [TURN[1]], "rejected": [said("assistant", "No")]},
        "is a preference pair",
        QA,
    ),
    (
        {"chosen": "Human: Where?", "rejected": "Human: No?"},
        "is a preference pair",
        "text: Human: Where?",
    ),
    (
        {"question": "Where?", "answer": "Here.", "prompt": "p", "completion": "c"},
        "the record can be read in more than one way",
        "user: p\nassistant: c",
    ),
    (
        {
            "question": "Where?",
            "context": "It is here.",
            "answers": {"text": ["here"], "answer_start": [6]},
        },
        '"answers" names passages of "context", as SQuAD does',
        "user: Where? | It is here.\nassistant: here",
    ),
    (
        {"question": "Where?", "choices": ["Here", "There"], "answer": 1},
        "the record is a multiple-choice question",
        "user: Where?\nassistant: 1",
    ),
    (
        {"question": "Where?", "A": "Here", "B": "There", "C": "No", "answer": "A"},
        'does not hold its "A" and "B"',
        "user: Where?\nassistant: A",
    ),
    ({"input": "Where?", "content": "Here."}, 'the record has "input" and "content"', QA),
    (
        {"text": "Good film.", "label": "pos"},
        "To learn the second",
        "user: Good film.\nassistant: pos",
    ),
    (
        {"frage": "Where?", "antwort": "Here I am.", "id": 3},
        'its fields are of no known shape: "frage", "antwort", "id".',
        "user: Where?\nassistant: Here I am.",
    ),
    (
        {"translation": {"en": "Where?", "de": "Wo ist es?"}},
        "its fields are of no known shape",
        "user: Where?\nassistant: Wo ist es?",
    ),
    ({"target": "Here.", "source": "Where?"}, "its fields are of no known shape", QA),
    ({"reply": "Here.", "q": "Where?"}, "its fields are of no known shape", QA),
    ({"data": {"turns": TURN}}, "its fields are of no known shape", QA),
    ({"body": "Once."}, "its fields are of no known shape", "text: Once."),
]


@pytest.mark.parametrize("number", range(len(ADVISED)))
def test_the_columns_that_a_sentence_names_read_the_record(number: int) -> None:
    record, sentence, turns = ADVISED[number]
    reason = reason_of(record)
    assert sentence in reason
    after = reason.split("COLUMNS = ", 1)[1]
    columns, _ = json.JSONDecoder().raw_decode(after)
    sample = sample_of(record, columns)
    assert written(sample) == turns
    assert sample.shape == "columns"


def test_a_pair_of_answers_without_names_has_advice_but_no_columns() -> None:
    reason = reason_of({"prompt": "q", "response_0": "a", "response_1": "b"})
    assert "is a preference pair" in reason and "COLUMNS" not in reason


def test_the_record_is_shown_where_only_the_user_knows_what_it_means(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"frage": "Where?", "antwort": "Here."}] * 20))
    with pytest.raises(UserError) as caught:
        load_samples([str(file)])
    assert str(caught.value).endswith(
        'COLUMNS = {"instruction": "antwort", "output": "frage"}. The record: {"frage": "Where?", '
        '"antwort": "Here."}'
    ) or str(caught.value).endswith('The record: {"frage": "Where?", "antwort": "Here."}')
    file.write_text(json.dumps([*[{"frage": "Where?", "antwort": "Here."}] * 20, *[TURN]]))
    loaded = load_samples([str(file)])
    lines = skipped_lines(loaded.skipped, 20)
    assert lines[0] == "Skipped 20 records:"
    assert lines[1].endswith("(20 records)")
    assert lines[2].endswith(': {"frage": "Where?", "antwort": "Here."}')


def test_an_answer_for_the_evaluation_that_is_missing_or_of_no_use_is_noted() -> None:
    good = {"instruction": "q", "output": "a"}
    nan = sample_of({**good, "answer": float("nan"), "n": float("nan")})
    assert set(nan.extra) == {"n"}
    assert nan.notes == ('its "answer" is NaN, which counts as missing',)
    for unused, words in (
        ({"value": 5}, 'its "answer" is an object and is not used'),
        ([], 'its "answer" is an empty list, which counts as missing'),
        (["5", {"value": 5}], 'its "answer" is a list, in which an object is not used'),
        (["5", None], 'its "answer" is a list, in which null is not used'),
    ):
        assert sample_of({**good, "answer": unused}).notes[0].startswith(words)
    for answer in ("5", 5, 5.5, None, True, ["5", "five"], [5]):
        sample = sample_of({**good, "answer": answer})
        assert sample.notes == () and sample.extra == {"answer": answer}


def test_nan_in_a_field_that_may_be_missing_is_missing_and_noted() -> None:
    record = {"instruction": "q", "input": float("nan"), "output": "a", "system": float("nan")}
    sample = sample_of(record)
    assert sample.turns == (Turn("user", "q"), Turn("assistant", "a"))
    assert len(sample.notes) == 2 and all("counts as missing" in note for note in sample.notes)


def test_tables_that_have_all_columns_in_every_record_are_read_by_what_is_filled() -> None:
    empty = {"messages": None, "prompt": None, "completion": None, "question": None, "text": None}
    assert written(sample_of({**empty, "prompt": "Where?", "completion": "Here."})) == QA
    assert written(sample_of({**empty, "messages": TURN})) == QA
    assert written(sample_of({**empty, "text": "t"})) == "text: t"


# ---- COLUMNS


@pytest.mark.parametrize(
    ("columns", "record", "turns"),
    [
        (
            {"instruction": "frage", "output": "antwort"},
            {"frage": "q", "antwort": "a", "input": "i", "system": "s"},
            "system: s\nuser: q | i\nassistant: a",
        ),
        (
            {"instruction": "input", "output": "target"},
            {"input": "q", "target": "a", "output": "other"},
            "user: q\nassistant: a",
        ),
        ({"output": "gold"}, {"instruction": "q", "gold": "a"}, "user: q\nassistant: a"),
        (
            {"instruction": "data.q", "output": "data.answers.0.text"},
            {"data": {"q": "q", "answers": [{"text": "a"}]}},
            "user: q\nassistant: a",
        ),
        ({"instruction": "a.b", "output": "c"}, {"a.b": "q", "c": "a"}, "user: q\nassistant: a"),
        (
            {"instruction": "frage", "output": "ANTWORT"},
            {"Frage": "q", "antwort": "a"},
            "user: q\nassistant: a",
        ),
        (
            {"thought": "cot"},
            {"question": "q", "context": "c", "answer": "a", "cot": "hm"},
            "user: q | c\nassistant: a <hm>",
        ),
        (
            {"instruction": "q", "output": "a", "thought": "cot"},
            {"q": "q", "a": "a", "cot": "hm"},
            "user: q\nassistant: a <hm>",
        ),
        ({"messages": "turns"}, {"turns": TURN}, QA),
        (
            {"messages": "turns", "role": "speaker", "content": "utterance"},
            {
                "turns": [
                    {"speaker": "user", "utterance": "Where?"},
                    {"speaker": "assistant", "utterance": "Here."},
                ]
            },
            QA,
        ),
        (
            {"role": "speaker", "content": "words"},
            {"messages": [{"speaker": "user", "words": "q"}, {"speaker": "bot", "words": "a"}]},
            "user: q\nassistant: a",
        ),
        ({"text": "body"}, {"body": "t", "label": 1}, "text: t"),
        (
            {"system": "persona"},
            {"prompt": "q", "response": "a", "persona": "s"},
            "system: s\nuser: q\nassistant: a",
        ),
        (
            {"instruction": "question", "output": "answer"},
            {"question": "q", "answer": "a", "prompt": "p", "completion": "c"},
            "user: q\nassistant: a",
        ),
    ],
)
def test_columns_say_what_the_fields_of_a_record_mean(
    columns: dict[str, str], record: Any, turns: str
) -> None:
    sample = sample_of(record, columns)
    assert written(sample) == turns
    assert sample.shape == "columns"


def test_columns_can_name_the_answer_of_the_evaluation() -> None:
    sample = sample_of(
        {"q": "q", "a": "a", "meta": {"gold": "7"}},
        {"instruction": "q", "output": "a", "answer": "meta.gold"},
    )
    assert sample.extra["answer"] == "7"


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"instructoin": "q"}, 'COLUMNS names "instructoin", which is no field of ours; did you'),
        ({"instruction": " "}, 'COLUMNS["instruction"] is empty'),
        ({"instruction": "q", "output": "q"}, 'COLUMNS["instruction"] and COLUMNS["output"] are'),
        ({"role": "r", "content": "r"}, 'COLUMNS["role"] and COLUMNS["content"] are both "r"'),
        ({"instruction": "q", "messages": "m"}, 'COLUMNS has "instruction" and "messages", which'),
        ({"text": "t", "system": "s"}, 'COLUMNS has "text" and "system"'),
        (
            {"instruction": "quesion", "output": "answer"},
            'COLUMNS["instruction"] is "quesion", but no record has that field. The first record '
            'has "question", "answer". Did you mean "question"?',
        ),
        ({"role": "speaker"}, 'COLUMNS["role"] is "speaker", but no record has that field.'),
    ],
)
def test_columns_that_mean_nothing_are_an_error(
    tmp_path: Path, columns: dict[str, str], sentence: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"question": "q", "answer": "a"}] * 2))
    with pytest.raises(UserError) as caught:
        load_samples([str(file)], columns)
    assert sentence in str(caught.value)


def test_a_column_that_only_some_records_have_skips_the_others(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"q": "q", "gold": "a"}, {"q": "q"}]))
    loaded = load_samples([str(file)], {"instruction": "q", "output": "gold"})
    assert len(loaded.samples) == 1
    [skipped] = loaded.skipped
    assert skipped.reason.startswith('"gold", which COLUMNS names for "output", is missing.')


def test_a_column_without_effect_on_a_record_is_named() -> None:
    assert 'COLUMNS["tools"] has no effect' in reason_of(
        {"prompt": "q", "response": "a", "t": []}, {"tools": "t"}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", 1), ("b.c", 2), ("b.d.1", 4), ("b.d.7", MISSING), ("a.x", MISSING), ("x.y", 5)],
)
def test_a_dotted_name_leads_into_objects_and_lists(name: str, value: Any) -> None:
    assert value_in({"a": 1, "b": {"c": 2, "d": [3, 4]}, "x.y": 5}, name) == value


# ---- fields that are there twice


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ('{"instruction":"first","instruction":"second","input":"","output":"x"}', "instruction"),
        ('{"instruction": "q", "output": "a", "answer": "1", "answer": "2"}', "answer"),
        ('{"question": "q", "answer": "a", "answer" : "b"}', "answer"),
        ('{"messages": [], "messages": [{"role": "user", "content": "q"}]}', "messages"),
        (
            '{"messages": [{"role": "user", "content": "q", "content": "r"}, '
            '{"role": "assistant", "content": "a"}]}',
            "message 1 has",
        ),
        (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", '
            '"tool_calls": [{"function": {"name": "f", "name": "g", "arguments": {}}}]}]}',
            "tool call 1 of message 2 has",
        ),
        ('[{"role": "user", "role": "user", "content": "q"}]', "message 1 has"),
        ('{"text": "a", "text": "b"}', "text"),
        ('{"prompt" : "q", "prompt" : "q", "completion" : "a"}', "prompt"),
        ('{"qu\\u0065stion": "q", "question": "r", "answer": "a"}', "question"),
    ],
)
def test_a_field_that_is_there_twice_is_named_wherever_it_decides(
    tmp_path: Path, name: str, record: str, sentence: str
) -> None:
    good = '{"instruction": "q", "output": "a"}'
    file = tmp_path / name
    form = "[%s, %s]" if name == "a.json" else "%s\n%s\n"
    file.write_text(form % (good, record))
    loaded = load_samples([str(file)])
    assert len(loaded.samples) == 1
    [skipped] = loaded.skipped
    assert sentence in skipped.reason and "twice" in skipped.reason


def test_a_field_of_no_use_that_is_there_twice_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "q", "output": "a", "note": 1, "note": 2}')
    [sample] = load_samples([str(file)]).samples
    assert sample.notes == ('its "note" is there twice; the last one counts',)


def test_texts_that_look_like_names_are_no_names(tmp_path: Path) -> None:
    odd = ['": "', 'a": b', '\\": c', '": d\\\\', '{"output": 1}', '"\\u006futput" : 2', "\\"]
    records = [{"instruction": text, "output": text, text: 1} for text in odd]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(records))
    loaded = load_samples([str(file)])
    assert [sample.output for sample in loaded.samples] == odd
    assert loaded.notes == {}


# ---- the guide


@pytest.mark.parametrize("page", ["data.md", "data.zh-CN.md"])
def test_all_records_that_the_guide_shows_are_read(page: str) -> None:
    text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\[{].*?[\]}])` \|", text, re.MULTILINE)
    shapes = [sample_of(json.loads(row)).shape for row in rows]
    assert shapes == [
        *("alpaca", "messages", "sharegpt", "message_list", "prompt_completion", "dolly"),
        *("chinese", "function_calls", "mbpp", "text"),
    ]
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert [sample_of(record).shape for record in blocks[0]] == ["alpaca", "alpaca"]
    chat = sample_of(blocks[1])
    assert chat.turns[-1].thought and chat.turns[-1].trained and chat.tools and not chat.notes


# ---- any record whatever

WORDS = [f"w{number}" for number in range(30)]
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(WORDS), max_size=3).map("\n\n".join),
    st.sampled_from(["", " ", "\u3000", "\u200b", "\ud800", "\x00", "true", "[", '{"a": "w0"}']),
    st.lists(st.sampled_from(TURN), max_size=3).map(json.dumps),
)
SCALARS = st.one_of(
    TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**400), st.just(0)
)
ROLES = st.sampled_from(
    ["system", "user", "assistant", "tool", "human", "gpt", "function_call", "x", 7, None, "user "]
)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "name": SCALARS,
        "arguments": SCALARS,
        "function": st.fixed_dictionaries({"name": TEXTS, "arguments": SCALARS}),
    },
)
PARTS = st.lists(
    st.one_of(
        SCALARS,
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image", 3])}, optional={"text": SCALARS}
        ),
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(
                    ["tool_use", "tool_result", "tool-call", "redacted_thinking"]
                )
            },
            optional={
                "id": SCALARS,
                "tool_use_id": SCALARS,
                "name": SCALARS,
                "input": st.one_of(SCALARS, st.dictionaries(st.sampled_from(WORDS), SCALARS)),
                "content": st.one_of(SCALARS, st.lists(SCALARS, max_size=2)),
            },
        ),
        st.fixed_dictionaries({"functionCall": st.one_of(SCALARS, CALLS)}),
    ),
    max_size=3,
)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS}),
    st.fixed_dictionaries({"from": ROLES, "value": TEXTS}),
    st.fixed_dictionaries(
        {},
        optional={
            "role": ROLES,
            "from": ROLES,
            "content": st.one_of(SCALARS, PARTS),
            "value": SCALARS,
            "reasoning": SCALARS,
            "weight": st.sampled_from([0, 1, 0.5, None, True, "1", float("nan")]),
            "train": st.sampled_from([True, False, None]),
            "tool_calls": st.one_of(SCALARS, st.lists(CALLS, max_size=2)),
            "function_call": st.one_of(SCALARS, CALLS),
            "name": SCALARS,
            "tool_call_id": SCALARS,
        },
    ),
    SCALARS,
)
CONVERSATION = st.lists(MESSAGE, max_size=6)
NAMES = st.sampled_from(
    [
        *("instruction", "input", "output", "system", "history", "answer", "question", "prompt"),
        *("completion", "response", "messages", "conversations", "text", "content", "context"),
        *("chosen", "rejected", "label", "choices", "tools", "row", "row_idx", "truncated_cells"),
        *("score", "reasoning", "cot", "user", "assistant", "用户", "助手", "model", "Q", "A"),
        *("query", "test_list", "code", "canonical_solution", "message_id", "parent_id", "toxic"),
        *(
            "Question",
            "问题",
            "答案",
            "回答",
            "answers",
            "role",
            "frage",
            "",
            " ",
            "a.b",
            "solution",
        ),
    ]
)
VALUES = st.one_of(
    TEXTS,
    SCALARS,
    CONVERSATION,
    st.lists(st.lists(SCALARS, max_size=3), max_size=2),
    st.dictionaries(NAMES, st.one_of(SCALARS, CONVERSATION), max_size=3),
)
GOOD_MESSAGE = st.builds(
    said,
    st.sampled_from(["user", "assistant", "assistant", "user", "system"]),
    st.sampled_from(WORDS),
)
CONVERSATIONS = st.one_of(
    CONVERSATION, st.lists(st.one_of(GOOD_MESSAGE, GOOD_MESSAGE, GOOD_MESSAGE, MESSAGE), max_size=7)
)


def changed(record: Any, name: str, value: Any) -> Any:
    if isinstance(record, dict):
        return {**record, name: value}
    return [*record, value] if isinstance(record, list) else record


RECORDS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=6),
    st.dictionaries(NAMES, st.sampled_from(WORDS), max_size=4),
    st.builds(changed, st.sampled_from([record for _, record, _ in READ]), NAMES, VALUES),
    st.builds(
        lambda turns, more: {**more, "messages": turns},
        CONVERSATIONS,
        st.dictionaries(NAMES, VALUES, max_size=1),
    ),
    st.builds(lambda turns: {"messages": turns}, CONVERSATIONS),
    CONVERSATIONS,
    VALUES,
)
COLUMN_SETS = st.one_of(
    st.just({}),
    st.dictionaries(st.sampled_from(COLUMN_FIELDS), NAMES, max_size=3),
)


def words_in(text: str) -> Counter[str]:
    return Counter(re.findall(r"w\d+", text))


@settings(max_examples=int(os.environ.get("TINKERSMITH_RECORDS", "500")), deadline=None)
@given(record=RECORDS, columns=COLUMN_SETS)
def test_any_record_is_a_sample_of_its_own_texts_or_has_one_reason(
    record: Any, columns: dict[str, str]
) -> None:
    checked = check_record(record, HERE, columns)
    if isinstance(checked, Skipped):
        assert checked.reason and "\n" not in checked.reason
        json.dumps(checked.to_json(), ensure_ascii=False).encode()
        return
    assert checked.shape in SHAPES
    assert checked.turns[-1].role in ("assistant", "text")
    assert checked.turns[-1].text or checked.turns[-1].tool_calls
    texts = "\n".join(
        "\n".join((turn.text, turn.input, turn.thought, json.dumps(turn.tool_calls)))
        for turn in checked.turns
    )
    texts.encode()
    allowed = words_in(json.dumps(record))
    assert not {word: n for word, n in words_in(texts).items() if n > 2 * allowed[word]}
    if not columns and not isinstance(record, str):  # each text is there once
        assert words_in(texts) <= allowed
    roles = [turn.role for turn in checked.turns]
    assert roles.count("text") in (0, len(roles)) and (roles == ["text"] or "user" in roles)


@pytest.mark.parametrize("flag", ["mask", "Weight", "loss_mask", "train_on"])
def test_a_flag_of_another_program_is_never_passed_over(flag: str) -> None:
    messages = [said("user", "q"), {**said("assistant", "a"), flag: False}]
    skipped = check_record({"messages": messages}, Source("a", 1))
    assert isinstance(skipped, Skipped)
    assert f'"{flag}" of message 2 seems to say whether it is trained on' in skipped.reason


def test_the_flag_loss_of_a_message_is_read() -> None:
    first = [said("user", "q"), {**said("assistant", "a"), "loss": False}]
    sample = check_record(
        {"messages": [*first, said("user", "r"), said("assistant", "b")]}, Source("a", 1)
    )
    assert isinstance(sample, Sample)
    assert [turn.trained for turn in sample.turns] == [None, False, None, None]
