"""Records that data sets of their own kind have: read where that is certain, else named."""

import re
from typing import Any

import pytest

from tests.support.paths import ROOT
from tinkersmith.data.samples import Sample, Skipped, Source
from tinkersmith.data.shapes.check import check_record

HERE = Source("a.json", 1)
ROWS: list[dict[str, Any]] = [
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Where?", "lang": "en"},
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Here.", "lang": "en"},
    {"message_id": "c", "parent_id": "b", "role": "prompter", "text": "Why?", "lang": "en"},
    {"message_id": "d", "parent_id": "c", "role": "assistant", "text": "So.", "lang": "en"},
    {"message_id": "e", "parent_id": "a", "role": "assistant", "text": "There.", "lang": "en"},
]


def test_a_message_of_a_tree_is_named_with_the_way_out() -> None:
    tree = {"message_tree_id": "a", "prompt": {"text": "Where?", "role": "prompter", "replies": []}}
    for record, what in (
        (ROWS[0], 'is one message of a tree (as its "message_id" shows)'),
        ({**ROWS[1], "message_tree_id": "a"}, "is one message of a tree"),
        ({"message_id": "b", "parent_message_id": "a", "content": "x"}, "is one message of a tree"),
        (tree, 'is a tree of messages (as its "prompt" shows)'),
    ):
        checked = check_record(record, HERE)
        assert isinstance(checked, Skipped)
        assert checked.reason.startswith(f"the record {what}")
        assert 'a record of its own: {"messages": [...]}' in checked.reason


@pytest.mark.parametrize("page", ["data.md", "data.zh-CN.md"])
def test_the_lines_of_the_guide_make_conversations_of_the_messages_of_a_tree(page: str) -> None:
    text = (ROOT / "docs" / "guides" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    [code] = [block for block in blocks if "parent_id" in block]
    names: dict[str, Any] = {"rows": ROWS}
    exec(code, names)
    samples = [check_record(record, HERE) for record in names["records"]]
    written = [
        [turn.text for turn in sample.turns] for sample in samples if isinstance(sample, Sample)
    ]
    assert written == [["Where?", "Here.", "Why?", "So."], ["Where?", "There."]]


@pytest.mark.parametrize(
    ("record", "shape", "question", "answer"),
    [
        (
            {"task_id": 1, "text": "Add.", "code": "a + b", "test_list": ["assert"]},
            "mbpp",
            "Add.",
            "a + b",
        ),
        (
            {"task_id": 1, "prompt": "Add.", "code": "a + b", "test_list": [], "test_imports": []},
            "mbpp",
            "Add.",
            "a + b",
        ),
        (
            {"task_id": "H/1", "prompt": "def", "canonical_solution": " a", "test": "t"},
            "humaneval",
            "def",
            " a",
        ),
    ],
)
def test_programming_tasks_are_read(
    record: dict[str, Any], shape: str, question: str, answer: str
) -> None:
    sample = check_record(record, HERE)
    assert isinstance(sample, Sample)
    assert (sample.shape, sample.turns[0].text, sample.output) == (shape, question, answer)
    assert "task_id" in sample.extra


def test_code_without_tests_or_with_two_questions_is_no_certain_task() -> None:
    checked = check_record({"text": "Add.", "code": "a + b"}, HERE)
    assert isinstance(checked, Skipped) and "To learn the second from the first" in checked.reason
    both = {"text": "Add.", "prompt": "p", "code": "a + b", "test_list": []}
    assert isinstance(check_record(both, HERE), Skipped)
