"""Whole data sets in one JSON object are read where nothing else can be meant."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.errors import UserError
from tinkersmith.sources.exports import ROWS, TABLE, exported_records

PATH = Path("a.json")
RECORDS = [{"question": "q 1", "answer": "a 1"}, {"question": "q 2", "answer": "a 2"}]
COLUMNS = {"question": ["q 1", "q 2"], "answer": ["a 1", "a 2"]}
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (COLUMNS, TABLE),
        ({"question": {"0": "q 1", "1": "q 2"}, "answer": {"0": "a 1", "1": "a 2"}}, TABLE),
        ({"question": {"7": "q 1", "3": "q 2"}, "answer": {"3": "a 2", "7": "a 1"}}, TABLE),
        ({"0": RECORDS[0], "1": RECORDS[1]}, "records by number"),
        (
            {
                "columns": ["question", "answer"],
                "index": [0, 1],
                "data": [["q 1", "a 1"], ["q 2", "a 2"]],
            },
            TABLE,
        ),
        ({"data": RECORDS}, 'the list in its "data"'),
        ({"version": "1.0", "train": RECORDS, "meta": {"a": [1]}}, 'the list in its "train"'),
        ({"schema": {"fields": []}, "data": RECORDS}, 'the list in its "data"'),
    ],
)
def test_an_export_gives_its_records_in_order(value: dict[str, Any], form: str) -> None:
    assert exported_records(PATH, value) == (RECORDS, form)


def test_rows_of_a_viewer_and_lists_of_conversations_and_texts_are_records() -> None:
    rows = [{"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(RECORDS)]
    features = [{"feature_idx": 0, "name": "question"}]
    assert exported_records(PATH, {"features": features, "rows": rows, "partial": True}) == (
        rows,
        ROWS,
    )
    assert exported_records(PATH, {"data": [MESSAGES, MESSAGES]}) == (
        [MESSAGES, MESSAGES],
        'the list in its "data"',
    )
    assert exported_records(PATH, {"data": ["a", "b"]}) == (["a", "b"], 'the list in its "data"')
    assert exported_records(PATH, {"text": ["a", "b"]}) == ([{"text": "a"}, {"text": "b"}], TABLE)
    assert exported_records(PATH, {"messages": [MESSAGES]}) == ([{"messages": MESSAGES}], TABLE)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"instruction": "q", "output": "a"},
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": MESSAGES},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"instruction": "q", "output": "a", "data": RECORDS},
        {"keywords": ["a"], "numbers": [1, 2]},
        {"translation": {"en": "a", "de": "b"}},
        {"0": {"1": "a"}},
        {"data": [1, 2], "n": 3},
        {"data": [], "train": {}},
        {"a": {}, "b": {}},
    ],
)
def test_what_can_be_a_record_is_no_export(value: dict[str, Any]) -> None:
    assert exported_records(PATH, value) is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"train": RECORDS, "test": RECORDS[:1]},
            'a.json holds several lists of records: "train" (2 records), "test" (1 record). Save',
        ),
        ({"question": ["q"], "answer": ["a", "b"]}, 'different lengths: "question" 1, "answer" 2'),
        (
            {"question": {"0": "q", "1": "r"}, "answer": {"0": "a"}},
            'its "answer" has no row "1"',
        ),
        ({"columns": ["question"], "data": [["q"], []]}, 'row 2 of "data" has not one value for'),
    ],
)
def test_an_export_that_is_not_whole_is_an_error(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        exported_records(PATH, json.loads(json.dumps(value)))
    assert sentence in str(caught.value)
