"""Readers of JSON fields: a good value is returned, a wrong one is refused with its name."""

from collections.abc import Callable
from typing import Any

import pytest

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.server import fields


@pytest.mark.parametrize("value", [None, True, "1", 1.5, float("nan"), float("inf"), [1]])
def test_a_value_that_is_not_a_whole_number_is_refused(value: object) -> None:
    with pytest.raises(Refused, match="must be a whole number"):
        fields.integer({"seq_id": value}, "seq_id")


def test_numbers_of_64_bits_are_read_exactly_and_a_whole_float_is_a_whole_number() -> None:
    assert fields.integer({"seq_id": 10**18 + 1}, "seq_id") == 10**18 + 1
    assert fields.integer({"seq_id": 3.0}, "seq_id") == 3


@pytest.mark.parametrize(
    ("read", "value", "sentence"),
    [
        (fields.string, "", "x is ''; it must be a non-empty string"),
        (fields.string, None, "x is None; it must be a non-empty string"),
        (fields.number, None, "x is missing, NaN or infinite; it must be a number"),
        (fields.number, True, "x is True; it must be a number"),
        (fields.number, float("inf"), "x is inf; it must be a finite number"),
        (fields.number, 10**400, "it must be a finite number"),
        (fields.json_object, [1], "must be an object"),
        (fields.optional_strings, {"a": 1}, "must be an object whose values are strings"),
        (fields.string_list, ["a", 1], "must be a list of strings"),
        (fields.object_list, [{}, 1], "x must be a list of objects"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(
    read: Callable[[dict[str, Any], str], object], value: object, sentence: str
) -> None:
    with pytest.raises(Refused) as refusal:
        read({"x": value}, "x")
    assert sentence in str(refusal.value)


def test_absent_fields_have_their_defaults() -> None:
    assert fields.optional_integer({}, "x") is None
    assert fields.optional_integer({"x": None}, "x", 7) == 7
    assert fields.optional_number({}, "x", 0.5) == 0.5
    assert fields.flag({}, "x", True) is True
    assert fields.json_object({}, "x") == {}
    assert fields.object_list({}, "x") == fields.string_list({}, "x") == []
    assert fields.optional_strings({}, "x") is None
