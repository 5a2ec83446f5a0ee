"""Which answers are trained on."""

from dataclasses import replace
from typing import Any

from tests.support.records import answer_record, unfinished_record
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.data.shapes.check import check_record
from tinkersmith.evaluation.results import Record
from tinkersmith.improve.accepted import Accepted, accepted_answers

SAMPLES = {
    Source("test.json", number): alpaca_sample(
        "Count.", str(number), f"Answer: {number}", Source("test.json", number), extra={"answer": 1}
    )
    for number in range(1, 6)
}


def drawn(number: int, *texts: str, **changes: Any) -> list[Record]:
    """Answers to a question: those that end with "no" are wrong."""
    return [
        answer_record(number, float(not text.endswith("no")), draw=draw, produced=text, **changes)
        for draw, text in enumerate(texts, start=1)
    ]


def accepted(records: list[Record], most: int = 4, **options: Any) -> Accepted:
    options = {"keeps_thoughts": False, **options}
    return accepted_answers(records, SAMPLES, "final_answer", most, 7, **options)


def outputs(found: Accepted) -> list[str]:
    return [record["output"] for record in found.records]


def test_right_answers_are_kept_once_and_counted() -> None:
    records = [
        *drawn(1, "a", "b", "a ", "b no"),
        *drawn(2, "c no", "d no", "e no", "f no"),
        *drawn(3, "g", "g", "h", "i"),
    ]
    found = accepted(records, most=2)
    assert outputs(found)[:2] == ["a", "b"]
    assert set(outputs(found)[2:]) < {"g", "h", "i"} and len(found.records) == 4
    assert (found.questions, found.answers, found.right) == (3, 12, 7)
    assert (found.none_right, found.all_right) == (1, 1)
    assert (found.repeated, found.beyond) == (2, 1)
    assert found.records == accepted(records, most=2).records


def test_a_kept_answer_is_a_sample_with_all_other_fields_as_they_were() -> None:
    (record,) = accepted(drawn(4, " 2 + 2\nAnswer: 4\n")).records
    assert record == {
        "instruction": "Count.",
        "input": "4",
        "output": "2 + 2\nAnswer: 4",
        "answer": 1,
    }
    assert isinstance(check_record(record, Source("x", 1)), Sample)


def test_an_answer_that_did_not_end_is_not_kept_however_right() -> None:
    cut = answer_record(1, 1.0, stop_reason="length")
    assert accepted([cut, unfinished_record(2)]).records == []


def test_samples_with_the_same_prompt_give_its_answers_once() -> None:
    first = drawn(1, "a", "b", question="same")
    again = [replace(record, source=Source("test.json", 2)) for record in first]
    assert outputs(accepted([*first, *again])) == ["a", "b"]


def test_a_thought_is_kept_where_thoughts_are_trained_on() -> None:
    for generated in ("<think>\nsay it\n</think>\n\nyes", "say it\n</think>\n\nyes"):
        records = drawn(1, "yes", generated=generated)
        (with_thought,) = accepted(records, keeps_thoughts=True).records
        assert with_thought["reasoning_content"] == "say it" and with_thought["output"] == "yes"
        assert "reasoning_content" not in accepted(records).records[0]
