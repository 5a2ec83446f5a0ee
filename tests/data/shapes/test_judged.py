"""Records that judge their answers: a bad one is never trained on without a word."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.data.load import load_samples
from tinkersmith.data.report import note_lines
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.check import check_record

HERE = Source("a.json", 1)
TALK = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
CARRIERS: list[dict[str, Any]] = [
    {"instruction": "Where?", "output": "Here."},
    {"instruction": "Where?", "input": "x", "output": "Here.", "system": "S"},
    {"question": "Where?", "context": "A map.", "answer": "Here."},
    {"prompt": [TALK[0]], "completion": [TALK[1]]},
    {"问题": "Where?", "回答": "Here."},
    {"messages": TALK},
    {"conversations": TALK, "system_prompt": "S"},
    {"instruction": "Where?", "thinking": "Hm.", "output": "Here."},
]
GOOD: list[dict[str, Any]] = [
    {"label": True},
    {"label": 1},
    {"Label": "true"},
    {"label": "1"},
    {"label": "good"},
    {"chosen": True},
    {"kto_tag": True},
    {"is_correct": "yes"},
    {"accepted": 1.0},
    {"rejected": False},
    {"toxic": 0},
    {"thumbs_up": 1},
    {"是否正确": "是"},
]
BAD: list[dict[str, Any]] = [
    {"label": False},
    {"label": 0},
    {"LABEL": "False"},
    {"label": "0"},
    {"label": -1},
    {"label": 0.0},
    {"label": "undesirable"},
    {"chosen": False},
    {"is_chosen": "no"},
    {"kto_tag": False},
    {"is_correct": 0},
    {"correct": False},
    {"score": False},
    {"rating": "bad"},
    {"rejected": True},
    {"is_harmful": 1},
    {"评分": False},
    {"正确": "错"},
]


def named(columns: str) -> dict[str, str]:
    parsed, _ = json.JSONDecoder().raw_decode(columns.split("COLUMNS = ", 1)[1])
    return parsed


@pytest.mark.parametrize("judgement", BAD, ids=str)
def test_an_answer_that_is_marked_as_bad_is_skipped_and_can_be_read_as_the_sentence_says(
    judgement: dict[str, Any],
) -> None:
    [(name, value)] = judgement.items()
    for carrier in CARRIERS:
        record = {**carrier, **judgement}
        checked = check_record(record, HERE)
        assert isinstance(checked, Skipped), record
        shown = json.dumps(value, ensure_ascii=False)
        assert f'judged answer: its "{name}" is {shown}, which is read as "bad"' in checked.reason
        assert checked.field == name
        plain, read = (
            check_record(carrier, HERE),
            check_record(record, HERE, named(checked.reason)),
        )
        assert isinstance(plain, Sample) and isinstance(read, Sample), read
        assert read.turns == plain.turns


@pytest.mark.parametrize("judgement", GOOD, ids=str)
def test_an_answer_that_is_marked_as_good_is_read_and_the_mark_is_noted(
    judgement: dict[str, Any],
) -> None:
    [name] = judgement
    for carrier in CARRIERS:
        read, plain = check_record({**carrier, **judgement}, HERE), check_record(carrier, HERE)
        assert isinstance(read, Sample) and isinstance(plain, Sample), read
        assert read.turns == plain.turns and read.extra == {**plain.extra, **judgement}
        [note] = read.notes
        assert note.startswith(f'its "{name}" is read as the mark of a good answer; records that')


@pytest.mark.parametrize("score", [{"score": 3}, {"rating": 0}, {"reward": -1.5}, {"得分": "4.5"}])
def test_a_score_is_noted_since_only_the_user_knows_which_is_bad(score: dict[str, Any]) -> None:
    [name] = score
    for carrier in CARRIERS:
        read = check_record({**carrier, **score}, HERE)
        assert isinstance(read, Sample)
        [note] = read.notes
        assert note.startswith(f'its "{name}" is a score that is not used')


@pytest.mark.parametrize(
    "other",
    [
        {"label": "geography"},
        {"label": "no"},
        {"label": 7},
        {"label": None},
        {"label": float("nan")},
        {"feedback": "Well done, but be brief."},
        {"correct": "Here."},
        {"quality": "see below"},
        {"chosen": ""},
        {"rejected": []},
    ],
    ids=str,
)
def test_what_judges_nothing_is_a_field_like_any_other(other: dict[str, Any]) -> None:
    for carrier in CARRIERS:
        read = check_record({**carrier, **other}, HERE)
        assert isinstance(read, Sample) and not read.notes


def test_a_worse_answer_beside_the_usual_ones_makes_a_preference_pair() -> None:
    for carrier in CARRIERS:
        for worse in ("No.", [{"role": "assistant", "content": "No."}]):
            checked = check_record({**carrier, "rejected": worse}, HERE)
            assert isinstance(checked, Skipped)
            assert checked.reason.startswith("the record is a preference pair")


def test_columns_for_other_fields_leave_judgements_and_thoughts_as_they_are() -> None:
    columns = {"answer": "gold"}
    record = {"question": "Where?", "response": "Here.", "gold": "7"}
    for judgement in BAD:
        checked = check_record({**record, **judgement}, HERE, columns)
        assert isinstance(checked, Skipped) and "judged answer" in checked.reason
    read = check_record({**record, "reasoning": "Hm."}, HERE, columns)
    assert isinstance(read, Sample)
    assert read.turns[-1].thought == "Hm." and read.extra == {"answer": "7"}


@pytest.mark.parametrize("judgement", BAD, ids=str)
def test_an_answer_within_a_conversation_that_is_marked_as_bad_is_not_trained_on(
    judgement: dict[str, Any],
) -> None:
    [name] = judgement
    if name in ("score", "rating", "评分"):
        return  # of a message, it says nothing that is sure
    bad = {**TALK[1], **judgement}
    sample = check_record({"messages": [TALK[0], bad, *TALK]}, HERE)
    assert isinstance(sample, Sample)
    assert [turn.trained for turn in sample.turns] == [None, False, None, None]
    assert sample.notes == (f'its answers that "{name}" marks as bad are not trained on',)
    flagged = check_record({"messages": [TALK[0], {**bad, "weight": 1}]}, HERE)
    assert isinstance(flagged, Sample) and flagged.turns[-1].trained and not flagged.notes
    alone = check_record({"messages": [TALK[0], bad]}, HERE)
    assert isinstance(alone, Skipped) and "marked as not to be trained on" in alone.reason
    asked = check_record({"messages": [{**TALK[0], **judgement}, TALK[1]]}, HERE)
    assert isinstance(asked, Sample) and asked.turns[0].trained is None


def test_a_file_of_kto_data_says_what_becomes_of_both_halves(tmp_path: Path) -> None:
    file = tmp_path / "kto.jsonl"
    pair = {"prompt": "Where?", "completion": "Here."}
    lines = [json.dumps({**pair, "label": number % 2 == 0}) for number in range(5)]
    file.write_text("\n".join(lines))
    loaded = load_samples([str(file)])
    assert len(loaded.samples) == 3 and len(loaded.skipped) == 2
    [line] = note_lines(loaded.notes)
    assert line.startswith('In 3 samples: its "label" is read as the mark of a good answer; rec')
