"""Whether a produced text gives the expected answer: labelled pairs, and fields of any type."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.grading.grade import expected_answers, grade

PAIRS = Path(__file__).parent / "pairs"
SMALLEST_AGREEMENT = 0.98
SOLUTION = "Six crates of 4 make 6*4=24.\n#### 24"


def labelled_pairs() -> list[dict[str, Any]]:
    files = sorted(PAIRS.glob("*.json"))
    return [pair for file in files for pair in json.loads(file.read_text(encoding="utf-8"))]


def test_grades_agree_with_the_labels_and_nothing_is_equal_by_accident():
    pairs = labelled_pairs()
    assert len(pairs) >= 600
    assert len({pair["kind"] for pair in pairs}) >= 15
    assert 0.35 < sum(not pair["equal"] for pair in pairs) / len(pairs) < 0.55
    assert sum(pair["language"] == "zh" for pair in pairs) > 150
    wrong: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        outcome = grade(pair["expected"], pair["produced"], pair.get("answer"))
        if outcome.correct != pair["equal"]:
            wrong["missed" if pair["equal"] else "equal by accident"].append(pair)
    assert wrong["equal by accident"] == []
    assert len(wrong["missed"]) <= (1 - SMALLEST_AGREEMENT) * len(pairs), wrong["missed"]


@pytest.mark.parametrize("pair", [pair for pair in labelled_pairs() if pair["equal"]][::5])
def test_an_expected_answer_equals_itself(pair: dict[str, Any]):
    expected = pair["expected"]
    assert grade(expected, expected).correct
    assert grade(expected, f"Answer: {expected_answers(expected)[0].text}").correct


@pytest.mark.parametrize(
    ("answer", "produced", "correct"),
    [
        (24, "Answer: 24", True),
        (24.0, "24", True),
        (0.5, "1/2", True),
        (True, "Yes", True),
        (False, "Yes", False),
        (["24", "two dozen"], "The answer is two dozen.", True),
        ([24, None], "24", True),
        (["23", "25"], "24", False),
        ("Answer: 24", "24", True),
        (SOLUTION, "24", True),
        # missing: the expected text decides
        (None, "7", True),
        (math.nan, "7", True),
        (math.inf, "7", True),
        ("  ", "7", True),
        ([], "7", True),
        ({"value": 24}, "7", True),
    ],
)
def test_a_field_may_be_of_any_type(answer: object, produced: str, correct: bool):
    assert grade("Answer: 7", produced, answer).correct == correct


def test_a_grade_names_the_rules_and_the_kind():
    outcome = grade(SOLUTION, "So there are 24 crates.", SOLUTION)
    assert (outcome.expected_answer, outcome.expected_rule) == ("24", "####")
    assert (outcome.final_answer, outcome.rule) == ("24", "last number")
    assert (outcome.kind, outcome.by) == ("number", "ours")
    outcome = grade("", "Answer: B, because 3 < 4.", "B")
    assert (outcome.expected_rule, outcome.rule, outcome.kind) == (
        "answer field",
        "Answer:",
        "choice",
    )
    outcome = grade("Yes", "We divide by 2.\nSo the claim is true.")
    assert (outcome.correct, outcome.rule, outcome.kind) == (True, "conclusion", "yes/no")


def test_nothing_expected_or_nothing_produced_is_never_correct():
    assert not grade("", "").correct
    assert not grade("", "5").correct
    nothing = grade("5", "")
    assert (nothing.correct, nothing.final_answer, nothing.rule) == (False, None, "")


def test_a_text_that_was_cut_has_no_final_answer_without_a_complete_marker():
    for produced in ("Step 1: 2 + 3 = 5\nStep 2: 5 × 2", "So it is 2", "2", "Answer: 2"):
        outcome = grade("2", produced, "2", cut=True)
        assert (outcome.correct, outcome.final_answer) == (False, None), produced
    assert grade("2", "Answer: 2\nLet me check this once mo", "2", cut=True).correct
    assert grade("2", "So \\boxed{2} and th", "2", cut=True).correct
    assert grade("2", "<think>Answer: 2\nand", "2", cut=True).final_answer is None


def test_a_half_line_of_a_calculation_is_no_number():
    assert not grade("2", "Step 1: 2 + 3 = 5\nStep 2: 5 × 2", "2").correct


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (SOLUTION, SOLUTION),
        ("So it is 24.", "Answer: 24"),
        ("2024-07-09", "2024-07-09"),
        ("14:45", "14:45"),
        ("(2, 5)", "(2, 5)"),
        ("x + 4", "x + 4"),
        ("Apollo 13", "Apollo 13"),
        ("y = 3x + 1", "y = 3x + 1"),
        ("[0, 2)", "[0, 2)"),
        ("7:3", "7:3"),
    ],
)
def test_a_produced_text_that_equals_the_answer_is_right(expected: str, answer: str):
    assert grade(expected, answer, answer).correct


@pytest.mark.parametrize(
    ("expected", "produced", "correct"),
    [
        ("He has 3/4 of 20 = 15 left.\n#### 15", "The answer is 15%.", False),
        ("He saves 15 of 100, so 15%.\n#### 15", "The answer is 15%.", True),
        ("#### 15", "The answer is 15%.", True),
        ("15", "15%", True),
        ("The chance is 3/20.\n#### 0.15", "The answer is 15%.", True),
    ],
)
def test_a_percent_sign_is_no_answer_to_a_solution_that_speaks_of_none(
    expected: str, produced: str, correct: bool
):
    assert grade(expected, produced).correct is correct
