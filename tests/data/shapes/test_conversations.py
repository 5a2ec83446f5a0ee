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
        *(("问", "答"), ("user", "bot"), ("human", "ai"), ("人类", "助手")),
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
