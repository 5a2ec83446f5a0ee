"""What a run is judged by follows from what it measures."""

import pytest

from tinkersmith.settings.measures import best_by, is_better
from tinkersmith.settings.reading import settings_from


@pytest.mark.parametrize(
    ("names", "by"),
    [
        ({}, None),
        ({"VALIDATION_RATIO": 0.1}, "validation_loss"),
        ({"VALIDATION_FILES": ["v.json"], "EVAL_FILES": ["e.json"]}, "validation_loss"),
        ({"EVAL_FILES": ["e.json"]}, "final_answer"),
        ({"EVAL_FILES": ["e.json"], "BEST_BY": "exact_match"}, "exact_match"),
        (
            {"VALIDATION_RATIO": 0.1, "EVAL_FILES": ["e.json"], "BEST_BY": "contains_answer"},
            "contains_answer",
        ),
    ],
)
def test_the_best_is_by_what_is_measured(names: dict[str, object], by: str | None) -> None:
    assert best_by(settings_from(names)) == by


def test_a_loss_is_better_lower_and_a_score_higher_and_an_equal_value_is_not_better() -> None:
    assert is_better("validation_loss", 0.1, 0.2) and not is_better("validation_loss", 0.2, 0.2)
    assert is_better("final_answer", 0.2, 0.1) and not is_better("final_answer", 0.2, 0.2)
