"""Groups of questions and their scores."""

from tests.support.records import answer_record, answer_records
from tinkersmith.data.samples import Source
from tinkersmith.evaluation.groups import groups_of
from tinkersmith.evaluation.results import Record
from tinkersmith.statistics.intervals import wilson_interval
from tinkersmith.statistics.multiple import holm
from tinkersmith.statistics.paired import mcnemar


def _records(right_below: int) -> list[Record]:
    return [
        answer_record(
            n,
            float(n % 40 < right_below),
            source=Source("easy.json" if n % 2 else "hard.json", n),
            kind="number" if n % 5 else "choice",
            fields={"topic": ("a", "b", "c")[n % 3], "id": f"id {n}", "level": "1"},
            prompt_tokens=n,
        )
        for n in range(1, 121)
    ]


def test_groups_are_formed_by_file_kind_field_and_length():
    groups = groups_of(_records(30), None, "final_answer")
    labels: dict[str, list[str]] = {}
    for group in groups:
        labels.setdefault(group.by, []).append(group.label)
    assert labels == {
        "file": ["easy.json", "hard.json"],
        "kind of answer": ["number", "choice"],
        "topic": ["b", "c", "a"],
        "prompt length": [
            "1 to 30 tokens", "31 to 60 tokens", "61 to 90 tokens", "91 to 120 tokens",
        ],
    }  # fmt: skip
    for by in labels:
        assert sum(group.first.n for group in groups if group.by == by) == 120
    file = groups[0]
    right = sum(n % 40 < 30 for n in range(1, 121, 2))
    assert file.first.mean == right / 60 and not file.small
    assert (file.first.low, file.first.high) == wilson_interval(right, 60)
    assert file.p_value is None and file.to_json()["difference"] is None


def test_the_p_values_of_groups_allow_for_their_number():
    first, second = _records(38), _records(5)
    groups = groups_of(first, second, "final_answer")
    plain: list[float] = []
    for group in groups:
        assert group.difference is not None and group.second is not None
        won = round(group.difference.mean * group.difference.n)
        plain.append(mcnemar(won, 0))
    assert [group.p_value for group in groups] == holm(plain)


def test_small_groups_are_marked():
    records = [
        answer_record(n, fields={"topic": "rare" if n < 4 else "frequent"}) for n in range(1, 41)
    ]
    small = {g.label: g.small for g in groups_of(records, None, "final_answer") if g.by == "topic"}
    assert small == {"rare": True, "frequent": False}


def test_records_without_a_field_are_a_group_and_levels_are_in_order():
    records = [
        answer_record(n, fields={"level": str(n % 3 * 5)} if n % 4 else {}, prompt_tokens=7)
        for n in range(1, 41)
    ]
    groups = groups_of(records, None, "final_answer")
    assert {g.by for g in groups} == {"level"}
    assert sorted(g.label for g in groups) == ["(none)", "0", "10", "5"]
    full = [answer_record(n, fields={"level": str(n % 3 * 5)}) for n in range(1, 41)]
    levels = [g.label for g in groups_of(full, None, "final_answer") if g.by == "level"]
    assert levels == ["0", "5", "10"]


def test_prompts_of_old_files_are_measured_in_characters():
    records = [answer_record(n, prompt="x" * n, prompt_tokens=0) for n in range(1, 41)]
    labels = [g.label for g in groups_of(records, None, "final_answer")]
    assert labels[0] == "1 to 10 characters" and len(labels) == 4


def test_questions_that_all_have_the_same_form_no_groups():
    records = [answer_record(n, prompt_tokens=5) for n in range(1, 41)]
    assert groups_of(records, None, "final_answer") == []
    assert groups_of(answer_records("+"), None, "final_answer") == []
    assert groups_of([], None, "final_answer") == []
