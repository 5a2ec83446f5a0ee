"""Records with a list of messages: thoughts beside it, roles of other names, parts of Claude's."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError

HERE = Source("a.json", 1)


def said(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


TALK = [said("user", "Where?"), said("assistant", "Here.")]


def sample_of(record: Any, columns: dict[str, str] | None = None) -> Sample:
    checked = check_record(record, HERE, columns or {})
    assert isinstance(checked, Sample), checked
    return checked


def reason_of(record: Any, columns: dict[str, str] | None = None) -> str:
    checked = check_record(record, HERE, columns or {})
    assert isinstance(checked, Skipped), checked
    return checked.reason


@pytest.mark.parametrize(
    "name", ["reasoning", "thinking", "cot", "reasoning_content", "Complex_CoT", "thoughts", "思考"]
)
@pytest.mark.parametrize("messages", ["messages", "conversations", "对话"])
def test_a_thought_beside_messages_is_that_of_the_last_answer(name: str, messages: str) -> None:
    talk = [*TALK, said("user", "Why?"), said("assistant", "So.")]
    sample = sample_of({messages: talk, name: "Hm."})
    assert [turn.thought for turn in sample.turns] == ["", "", "", "Hm."]
    assert not sample.notes and name not in sample.extra
    for empty in (None, "", " ", float("nan")):
        assert sample_of({messages: talk, name: empty}).turns == sample_of({messages: talk}).turns


def test_a_thought_beside_messages_is_named_where_the_last_answer_has_one() -> None:
    of_its_own = 'its "reasoning" was not used: its last answer has a thought of its own'
    for last in (
        said("assistant", "Here.", reasoning_content="I look."),
        said("assistant", "<think>\nI look.\n</think>\n\nHere."),
        said("assistant", "I look.\n</think>\nHere."),
    ):
        sample = sample_of({"messages": [TALK[0], last], "reasoning": "Hm."})
        assert sample.notes == (of_its_own,)
        assert sample.turns == sample_of({"messages": [TALK[0], last]}).turns
        assert sample.extra == {"reasoning": "Hm."}
    same = said("assistant", "Here.", reasoning_content="Hm.")
    assert not sample_of({"messages": [TALK[0], same], "reasoning": "Hm."}).notes
    assert "both hold a thought. Keep one" in reason_of(
        {"messages": TALK, "reasoning": "a", "thinking": "b"}
    )


def test_a_field_beside_messages_that_looks_like_a_thought_is_named_with_the_way_to_read_it() -> (
    None
):
    record = {"messages": TALK, "deepseek_reasoning": "Hm."}
    [note] = sample_of(record).notes
    assert note.startswith('its field "deepseek_reasoning" was not used; COLUMNS = {"thought":')
    columns, _ = json.JSONDecoder().raw_decode(note.split("COLUMNS = ")[1])
    sample = sample_of(record, columns)
    assert sample.turns[-1].thought == "Hm." and not sample.notes
    listed = {"messages": TALK, "thinking": ["Hm.", "no"]}
    [note] = sample_of(listed).notes
    columns, _ = json.JSONDecoder().raw_decode(note.split("COLUMNS = ")[1])
    assert sample_of(listed, columns).turns[-1].thought == "Hm."


def test_columns_name_the_roles(tmp_path: Path) -> None:
    talk = [
        said("Narrator", "Be brief."),
        said("Patient", "It hurts."),
        said("Doctor ", "Where?"),
    ]
    roles = {
        "role.system": "narrator",
        "role.user": "Patient",
        "role.assistant": "Doctor",
    }
    for record in ({"messages": talk}, talk):
        assert '"role" of message 1 is "Narrator"' in reason_of(record)
        turns = sample_of(record, roles).turns
        assert [turn.role for turn in turns] == ["system", "user", "assistant"]
    spoken = [{"speaker": turn["role"], "says": turn["content"]} for turn in talk]
    record = {"turns": spoken, "Doctor": "her name"}
    columns = {"messages": "turns", "role": "speaker", "content": "says", **roles}
    sample = sample_of(record, columns)
    assert sample.turns == sample_of({"messages": talk}, roles).turns
    assert sample.extra == {"Doctor": "her name"}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record))
    assert len(load_samples([str(file)], columns).samples) == 1
    with pytest.raises(UserError, match=r'COLUMNS\["role.tool"\] is "nurse", but no message has'):
        load_samples([str(file)], {**columns, "role.tool": "nurse"})
    pair = {"question": "q", "answer": "a"}
    assert 'COLUMNS["role.user"] has no effect' in reason_of(pair, {"role.user": "x"})


def test_the_columns_that_an_unknown_role_s_sentence_names_are_taken() -> None:
    record = {"messages": [said("customer", "Where?"), said("assistant", "Here.")]}
    reason = reason_of(record)
    columns, _ = json.JSONDecoder().raw_decode(reason.split("COLUMNS = ")[1])
    assert sample_of(record, columns).turns == sample_of({"messages": TALK}).turns


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        *(("用户", "助手"), ("用户", "模型"), ("用戶", "助理"), ("user", "assistant")),
        *(("User", "Model"), ("human", "assistant"), ("Human", "GPT"), ("Q", "A"), ("q", "a")),
        *(("问", "答"), ("user", "bot"), ("human", "model"), ("人类", "助手")),
    ],
)
def test_the_two_sides_of_a_talk_are_a_question_and_its_answer(question: str, answer: str) -> None:
    turns = sample_of({question: "Where?", answer: "Here."}).turns
    assert turns == sample_of({"messages": TALK}).turns
    assert sample_of({"system": "S", answer: "Here.", question: "Where?"}).turns[1:] == turns


def test_a_user_and_a_model_beside_a_text_are_no_talk() -> None:
    names = {"user": "u-17", "model": "some/model"}
    assert sample_of({"text": "Once.", **names}).turns[0].role == "text"
    assert sample_of({"prompt": "Where?", "response": "Here.", **names}).turns == (
        sample_of({"messages": TALK}).turns
    )
    sample = sample_of({"messages": TALK, **names})
    assert len(sample.turns) == 2 and not sample.notes


# ---- calls and results as parts of a content

ASKED = said("user", "Bern?")
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
OPENAI = [
    ASKED,
    said("assistant", "I look.", tool_calls=[{"id": "c1", **CALLED}], reasoning_content="Hm."),
    said("tool", "rain", tool_call_id="c1", name="weather"),
    said("user", "And?"),
    said("assistant", "It rains."),
]


def parts_of(form: str) -> list[dict[str, Any]]:
    """The conversation above in another program's form."""
    arguments = {"city": "Bern"}
    call, result = {
        "claude": (
            {"type": "tool_use", "id": "c1", "name": "weather", "input": arguments},
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": [{"type": "text", "text": "rain"}],
            },
        ),
        "sdk": (
            {"type": "tool-call", "toolCallId": "c1", "toolName": "weather", "input": arguments},
            {
                "type": "tool-result",
                "toolCallId": "c1",
                "toolName": "weather",
                "output": {"type": "text", "value": "rain"},
            },
        ),
        "bedrock": (
            {"toolUse": {"toolUseId": "c1", "name": "weather", "input": arguments}},
            {"toolResult": {"toolUseId": "c1", "content": [{"text": "rain"}]}},
        ),
        "gemini": (
            {"functionCall": {"id": "c1", "name": "weather", "args": arguments}},
            {"functionResponse": {"id": "c1", "name": "weather", "response": "rain"}},
        ),
    }[form]
    text = {"text": "I look."} if form in ("bedrock", "gemini") else {"type": "text"}
    return [
        ASKED,
        said("assistant", [{**text, "text": "I look."}, call], reasoning_content="Hm."),
        said("user", [result, {**text, "text": "And?"}]),
        said("assistant", "It rains."),
    ]


@pytest.mark.parametrize("form", ["claude", "sdk", "bedrock", "gemini"])
def test_calls_and_results_among_the_parts_of_a_content_are_read(form: str) -> None:
    expected = sample_of({"messages": OPENAI}).turns
    messages = parts_of(form)
    assert sample_of({"messages": messages}).turns == expected
    in_parts = [
        {"role": m["role"], "parts": m["content"], **{k: m[k] for k in m if k[:4] == "reas"}}
        for m in messages
    ]
    in_parts[0]["parts"], in_parts[-1]["parts"] = [{"text": "Bern?"}], [{"text": "It rains."}]
    assert sample_of({"contents": in_parts}).turns == expected
    results_alone = [*messages[:2], said("user", messages[2]["content"][:1]), messages[3]]
    assert [turn.role for turn in sample_of({"messages": results_alone}).turns] == [
        *("user", "assistant", "tool", "assistant")
    ]


def test_claude_s_thoughts_tools_and_marks_are_read() -> None:
    messages = parts_of("claude")
    messages[1] = said(
        "assistant",
        [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            *messages[1]["content"],
        ],
        weight=0,
    )
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"name": "weather", "description": "d", "input_schema": schema}
    sample = sample_of({"system": "S", "messages": messages, "tools": [tool]})
    assert sample.notes == ("its thoughts that are encrypted were left out",)
    assert sample.turns[2].thought == "Hm." and sample.turns[2].trained is False
    function = {"name": "weather", "description": "d", "parameters": schema}
    assert sample.tools == ({"type": "function", "function": function},)
    custom = sample_of({"messages": messages, "tools": [{**tool, "type": "custom"}]})
    assert custom.tools == sample.tools
    asked_again = [*messages[:2], said("user", [{"type": "tool_result", "tool_use_id": "c1"}])]
    turns = sample_of({"messages": [*asked_again, messages[-1]]}).turns
    assert (turns[2].role, turns[2].text, turns[2].tool_name) == ("tool", "", "weather")


def test_a_call_or_a_result_of_the_wrong_role_is_named() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    image = {"type": "image", "source": {}}
    for messages, sentence in (
        ([said("user", [use]), TALK[1]], "message 1 calls a tool, which only a message of the"),
        ([said("user", "q", tool_calls=[CALLED]), TALK[1]], "message 1 calls a tool, which only"),
        ([ASKED, said("assistant", [result])], "message 2 has the result of a tool, which"),
        ([said("user", [result]), TALK[1]], "message 1 is a tool's, but follows no call"),
        (
            [ASKED, said("assistant", [{**use, "name": None}])],
            '"name" of tool call 1 of message 2 is null',
        ),
        (
            [ASKED, said("assistant", [{**use, "input": "{broken"}])],
            "the arguments of tool call 1 of message 2 are no JSON object",
        ),
        (
            [ASKED, said("assistant", [use], tool_calls=[CALLED])],
            'message 2 has calls in "tool_calls" and in "content". Keep those of one place.',
        ),
        (
            [ASKED, said("assistant", [use]), said("user", [{**result, "content": [image]}])],
            'message 3 has a part of the type "image"; Tinkersmith trains on text only.',
        ),
    ):
        assert sentence in reason_of({"messages": [*messages, *TALK]}), messages


def test_what_a_tool_returned_may_be_any_json() -> None:
    call = said("assistant", "", tool_calls=[CALLED])
    for value, text in (
        ({"sky": "grey"}, '{"sky": "grey"}'),
        ([{"sky": "grey"}, {"sky": "blue"}], '[{"sky": "grey"}, {"sky": "blue"}]'),
        (5, "5"),
        (False, "false"),
        ([{"type": "text", "text": "grey"}], "grey"),
    ):
        turns = sample_of({"messages": [ASKED, call, said("tool", value), TALK[1]]}).turns
        assert turns[2].text == text


# ---- function calls as answers, and conversations as a text


def test_calls_that_answer_a_query_are_read() -> None:
    calls = [{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "time", "arguments": {}}]
    tools = [{"name": "weather", "parameters": {"city": {"type": "str"}}}, {"name": "time"}]
    record = {"id": 1, "query": "Bern?", "answers": json.dumps(calls), "tools": json.dumps(tools)}
    sample = sample_of(record)
    assert sample.shape == "function_calls" and sample.extra == {"id": 1}
    assert [call["function"]["name"] for call in sample.turns[-1].tool_calls] == ["weather", "time"]
    assert sample.tools[0] == {"type": "function", "function": tools[0]}
    listed = sample_of({**record, "answers": calls, "tools": tools, "system": "S"})
    assert listed.turns[1:] == sample.turns and listed.turns[0].text == "S"
    for answers in ("[]", "none", [], [7]):
        assert "call" in reason_of({**record, "answers": answers})
    assert '"query" is null; it must be a string' in reason_of({**record, "query": None})


def test_a_conversation_in_one_text_has_the_columns_that_read_it() -> None:
    record = {"system": "SYSTEM: Help.", "chat": "USER: Where?\n\nASSISTANT: Here."}
    reason = reason_of(record)
    assert reason.startswith('"chat" is a string; it must be a list of messages. To train on it')
    columns, _ = json.JSONDecoder().raw_decode(reason.split("COLUMNS = ")[1])
    assert sample_of(record, columns).turns[0].text == record["chat"]


def test_the_input_of_a_user_s_message_is_kept_apart() -> None:
    asked = said("user", "Add.", input="3 + 4")
    sample = sample_of({"messages": [asked, said("assistant", "7", input="a field of others")]})
    assert [(turn.text, turn.input) for turn in sample.turns] == [("Add.", "3 + 4"), ("7", "")]
    # Of messages in a row, the last one's input ends the text; an earlier one is within it.
    later = said("user", "Double it.", input=None)
    sample = sample_of({"messages": [asked, later, said("assistant", "14")]})
    assert (sample.turns[0].text, sample.turns[0].input) == ("Add.\n\n3 + 4\n\nDouble it.", "")
    sample = sample_of({"messages": [later, asked, said("assistant", "7")]})
    assert (sample.turns[0].text, sample.turns[0].input) == ("Double it.\n\nAdd.", "3 + 4")
    reason = reason_of({"messages": [said("user", "Add.", input=[3, 4]), TALK[1]]})
    assert reason == '"input" of message 1 is a list; it must be a string.'
