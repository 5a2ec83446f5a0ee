"""How an answer becomes a record: what counts as an answer, and what is only cut off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.evaluation.asking import duration, graded, short_fields
from tinkersmith.evaluation.questions import Answer, Question
from tinkersmith.evaluation.results import Record


def record_of(sample: Sample, produced: str, **changes: Any) -> Record:
    question = Question("q", np.array([1, 2, 3]), "p", 8, ((0, sample),))
    fields = {"generated": produced, "thought_finished": True, "stop_reason": "stop", "tokens": 3}
    return graded(question, sample, Answer(draw=1, produced=produced, **{**fields, **changes}))


def sum_of(output: str, **extra: Any) -> Sample:
    return alpaca_sample("Add.", "1 + 1", output, Source("f", 1), extra=extra)


def test_the_last_number_of_an_answer_that_was_cut_is_not_its_answer():
    half = "Step 1: 2 + 3 = 5\nStep 2: 5 × 2"
    whole = record_of(sum_of("2", answer="2"), "Step 1: 2 + 3 = 5\nThat makes 2")
    assert whole.scores["final_answer"] == 1
    cut = record_of(sum_of("2", answer="2"), half, stop_reason="length")
    assert (cut.scores["final_answer"], cut.final_answer) == (0, None)
    announced = record_of(sum_of("2"), f"Answer: 2\n{half}", stop_reason="length")
    assert (announced.scores["final_answer"], announced.final_answer) == (1, "2")


def test_a_thought_that_never_ends_is_no_answer_for_any_metric():
    thought = "<think>\nIs it 2? Answer: 2. Or is it"
    record = record_of(
        sum_of("Answer: 2"), "", generated=thought, thought_finished=False, stop_reason="length"
    )
    assert set(record.scores.values()) == {0.0}
    assert record.final_answer is None and not record.thought_finished
    assert record.generated == thought


def test_a_record_says_how_its_final_answer_was_found():
    record = record_of(sum_of("1 + 1 = 2\n#### 2", topic="sums"), "So: \\boxed{2}")
    assert (record.expected_answer, record.final_answer) == ("2", "2")
    assert record.rule == "boxed" and record.kind == "number"
    assert record.scores == {"exact_match": 0.0, "final_answer": 1.0, "contains_answer": 1.0}
    assert (record.generated, record.prompt_tokens) == ("", 3)


def test_the_expected_text_has_no_thought_wherever_the_record_had_it():
    turns = (Turn("user", "q"), Turn("assistant", "<think>\nhm\n</think>\n\nAnswer: 2"))
    record = record_of(Sample(turns, Source("f", 1)), "Answer: 2")
    assert record.expected == "Answer: 2" and record.scores["exact_match"] == 1


def test_an_answer_field_of_any_kind_is_read_and_nan_is_missing(tmp_path: Path):
    file = tmp_path / "odd.json"
    base = {"instruction": "Add the numbers.", "output": "Answer: 3"}
    fields = [float("nan"), ["5", "five"], "2 + 1 = 3\n#### 3", 3, 3.0, None]
    file.write_text(json.dumps([{**base, "answer": value} for value in fields]))
    samples = load_samples([str(file)]).samples
    records = [record_of(sample, "Answer: 3") for sample in samples]
    assert [r.scores["final_answer"] for r in records] == [1, 0, 1, 1, 1, 1]
    assert record_of(samples[1], "Answer: five").scores["final_answer"] == 1


def test_short_fields_of_a_sample_can_form_groups():
    sample = sum_of("2", topic="sums", level=3, easy=True, note="x" * 101, more=[1], none=None)
    assert short_fields(sample) == {"topic": "sums", "level": "3", "easy": "True"}


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_a_time_is_given_in_the_unit_that_suits_it(seconds: float, words: str):
    assert duration(seconds) == words
