"""What models are shown of a conversation, and what is saved of it."""

import json
from pathlib import Path

import pytest

from tinkersmith.chat.conversation import ChatAnswer, ChatModel, ChatTurn, Conversation, save_record
from tinkersmith.data.load import load_samples
from tinkersmith.errors import UserError

TUNED = ChatModel("run", "tuned", has_input=True)
BASE = ChatModel("base", "base", has_input=False)


def conversation() -> Conversation:
    first = ChatTurn(
        "Add.",
        "3 + 4",
        [ChatAnswer(TUNED, "Well.", "7", "stop"), ChatAnswer(BASE, "", "?", "stop")],
    )
    failed = ChatTurn(
        "Greet.", "", [ChatAnswer(TUNED, error="no"), ChatAnswer(BASE, "", "Hi", "stopped")]
    )
    return Conversation("Be brief.", [first, failed, ChatTurn("Now?")])


def test_each_model_sees_its_own_answers_and_not_what_it_did_not_answer() -> None:
    talk = conversation()
    system = {"role": "system", "content": "Be brief."}
    assert talk.messages(TUNED, talk.turns[2]) == [
        system,
        {"role": "user", "content": "Add.", "input": "3 + 4"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Now?"},
    ]
    assert [message["content"] for message in talk.messages(BASE, talk.turns[2])] == [
        *("Be brief.", "Add.\n\n3 + 4", "?", "Greet.", "Hi", "Now?"),
    ]


def test_a_saved_conversation_is_a_sample_to_train_on(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": []}')  # without a line break at its end
    assert save_record(file, conversation().record(TUNED)) == 2
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"messages": []}'
    only = tmp_path / "only.jsonl"
    only.write_text(lines[1])
    [sample] = load_samples([str(only)]).samples
    turns = [(turn.role, turn.text, turn.input, turn.thought) for turn in sample.turns]
    assert turns == [  # the input keeps its place in the template that the model was trained with
        ("system", "Be brief.", "", ""),
        ("user", "Add.", "3 + 4", ""),
        ("assistant", "7", "", "Well."),
    ]
    asked_as_one = conversation().record(BASE)["messages"]
    assert asked_as_one[1] == {"role": "user", "content": "Add.\n\n3 + 4"}


def test_answers_that_are_not_whole_are_counted_before_one_trains_on_them() -> None:
    talk = conversation()
    assert (talk.cut_answers(TUNED), talk.cut_answers(BASE)) == (0, 1)
    talk.turns.append(ChatTurn("More", "", [ChatAnswer(BASE, "", "Once", "length")]))
    talk.turns.append(ChatTurn("More", "", [ChatAnswer(BASE, "hm", "", "length")]))  # not saved
    assert talk.cut_answers(BASE) == 2


def test_a_file_that_is_not_json_lines_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes\n")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        save_record(file, {"messages": []})
    assert file.read_text() == "my notes\n"


def test_nothing_is_saved_before_the_first_answer() -> None:
    with pytest.raises(UserError, match="no answer to save"):
        Conversation("", [ChatTurn("Hi", "", [ChatAnswer(TUNED, error="no")])]).record(TUNED)


def test_a_lone_surrogate_is_saved_escaped(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    save_record(file, {"messages": ["\ud83d"]})
    assert json.loads(file.read_bytes())["messages"] == ["\ud83d"]
