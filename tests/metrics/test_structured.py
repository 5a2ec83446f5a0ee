"""JSON in answers: what is valid, what is equal, and which fields are wrong."""

import json

import pytest

from tinkersmith.metrics.structured import (
    FieldMatch,
    asks_for_json,
    match_fields,
    read_structure,
    structure_lines,
    structure_summary,
)


def compared(expected: object, produced: str) -> FieldMatch:
    structure = read_structure(json.dumps(expected))
    assert structure is not None
    return match_fields(structure, produced)


ORDER = {"name": "Li", "price": 3.5, "items": [{"id": 1}, {"id": 2}], "paid": True}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        " [1, 2]\n",
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}\n```\n',
        '\ufeff{"a": "值"}',
        '{"a": 1e999999999999999999999}',
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_json_is_read_also_in_a_code_fence(text: str):
    structure = read_structure(text)
    assert structure is not None and structure.fenced == text.startswith("```")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        '"text"',
        "null",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": 1} and more',
        '{"a": 1',
        "[" * 100_000,
        "```json\nno\n```",
    ],
)
def test_what_is_no_json_object_or_list_is_not_valid(text: str):
    assert read_structure(text) is None


@pytest.mark.parametrize(
    ("expected", "produced", "equal", "right", "of"),
    [
        (ORDER, json.dumps(ORDER), True, 5, 5),
        (ORDER, json.dumps(dict(reversed(ORDER.items()))), True, 5, 5),
        ({"a": 1}, '{"a": 1.0}', True, 1, 1),
        ({"a": 1}, '{"a": true}', False, 0, 1),
        ({"a": 1}, '{"a": "1"}', False, 0, 1),
        ({"a": None}, "{}", False, 0, 1),
        ({"a": {}}, '{"a": {}}', True, 1, 1),
        ({"a": {}}, '{"a": []}', False, 0, 1),
        ({}, "{}", True, 1, 1),
        ({}, '{"a": 1}', False, 0, 1),
        ([1, 2], "[2, 1]", False, 0, 2),
        ({"a": 1, "b": 2}, '{"a": 1, "b": 2, "c": 3}', False, 2, 2),
        ({"a": "é"}, '{"a": "e\u0301"}', True, 1, 1),
        ({"a": 0.1}, '{"a": 0.1000000000000000055}', False, 0, 1),
        ({"a.b": 1}, '{"a": {"b": 1}}', False, 0, 1),
    ],
)
def test_fields_are_compared_by_value_and_kind(expected, produced, equal, right, of):
    match = compared(expected, produced)
    assert (match.valid, match.equal, match.right, match.expected) == (True, equal, right, of)
    assert match.scores()["json_fields"] == right / of


def test_an_invalid_answer_scores_nothing_and_json_within_text_is_counted():
    match = compared(ORDER, 'Here it is:\n```json\n{"name": "Li"}\n```\nBye')
    assert match.scores() == {"json_valid": 0.0, "json_match": 0.0, "json_fields": 0.0}
    assert match.surrounded and not compared(ORDER, "no").surrounded


def test_missing_and_extra_fields_are_named_most_frequent_first():
    answers = ['{"name": "Li", "colour": 1}', '{"name": "Li", "price": 3.5}', "broken"]
    matches = [compared({"name": "Li", "price": 3.5, "items": [{"id": 1}]}, a) for a in answers]
    summary = structure_summary(matches)
    assert (summary["answers"], summary["valid"], summary["equal"]) == (3, 2, 0)
    assert list(summary["missing_fields"].items()) == [("items[].id", 2), ("price", 1)]
    assert summary["extra_fields"] == {"colour": 1}
    assert summary["fields_right"] == 3 and summary["fields"] == 9
    lines = structure_lines(summary)
    assert lines[0] == "JSON: 2 of 3 answers valid, 0 equal; 3 of 9 fields right."
    assert "Missing fields: items[].id 2, price 1." in lines


def test_a_fence_is_counted():
    summary = structure_summary([compared({"a": 1}, '```json\n{"a": 1}\n```')])
    assert summary["in_code_fence"] == 1 and summary["equal"] == 1
    assert "1 is in a code fence, which is allowed." in structure_lines(summary)


def test_deep_nesting_is_no_matter():
    deep = "[" * 500 + "]" * 500
    structure = read_structure(deep)
    assert structure is not None and match_fields(structure, deep).equal


def test_objects_among_the_expected_outputs_are_counted():
    assert asks_for_json(['{"a": 1}', "[]", "text", "3"]) == 2
