"""What a run is judged by follows from what it measures."""

import pytest

from tinkersmith.errors import UserError
from tinkersmith.settings.measures import (
    best_by,
    check_scores_are_measured,
    is_better,
    score_text,
)
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
        ({"EVAL_FILES": ["e.json"], "METRICS": ["bleu", "token_f1"]}, "sentence_bleu"),
        ({"EVAL_FILES": ["e.json"], "METRICS": ["bleu", "auto"]}, "final_answer"),
        ({"EVAL_FILES": ["e.json"], "METRICS": ["a.py:mine"]}, "mine"),
    ],
)
def test_the_best_is_by_what_is_measured(names: dict[str, object], by: str | None) -> None:
    assert best_by(settings_from(names)) == by


def test_a_loss_is_better_lower_and_a_score_higher_and_an_equal_value_is_not_better() -> None:
    assert is_better("validation_loss", 0.1, 0.2) and not is_better("validation_loss", 0.2, 0.2)
    assert is_better("final_answer", 0.2, 0.1) and not is_better("final_answer", 0.2, 0.2)
    assert is_better("perplexity", 3.0, 4.0) and not is_better("bits_per_byte", 2.0, 1.0)


def judged(*metrics: str, **more: object) -> dict[str, object]:
    judge = {"JUDGE_URL": "http://localhost/v1", "JUDGE_MODEL": "m"} if "judge" in metrics else {}
    return {"EVAL_FILES": ["e.json"], "METRICS": list(metrics), **judge, **more}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (judged("auto", BEST_BY="rouge_l"), 'does not measure. Add "rouge_l" to METRICS, or name'),
        (judged("auto", BEST_BY="sentence_bleu"), 'Add "bleu" to METRICS'),
        (judged("auto", BEST_BY="bits_per_byte"), 'Add "perplexity" to METRICS'),
        (judged("token_f1", BEST_BY="final_answer"), 'Add "final_answer" to METRICS, or name one'),
        (judged("judge"), 'names "judge" alone, and the judge is not asked during training'),
        (
            judged("auto", "judge", BEST_BY="judge"),
            'BEST_BY is "judge", and the judge is not asked',
        ),
    ],
)
def test_training_refuses_a_best_that_metrics_does_not_measure_and_says_what_to_add(
    names: dict[str, object], sentence: str
) -> None:
    settings = settings_from(names)  # an evaluation may have other METRICS than its run
    with pytest.raises(UserError) as caught:
        check_scores_are_measured(settings)
    assert sentence in str(caught.value)


def test_scores_that_metrics_measures_or_may_measure_are_taken() -> None:
    for metrics, by in (
        (["bleu"], "sentence_bleu"),
        (["auto"], "label"),
        (["auto"], "json_fields"),
        (["perplexity"], "perplexity"),
        (["auto", "a.py:mine"], "mine"),
        (["a.py:mine"], "mine_level"),
    ):
        check_scores_are_measured(settings_from(judged(*metrics, BEST_BY=by)))
    with pytest.raises(UserError, match="A function of your own is named in METRICS, too"):
        settings_from(judged("auto", BEST_BY="politeness"))


def test_a_share_is_told_in_percent_and_any_other_number_as_it_is() -> None:
    assert score_text("token_f1", 0.5, (0.4, 0.6), 9) == "50.0 % (40.0 to 60.0 %, n = 9)"
    assert score_text("perplexity", 123.456, (100.0, 150.0), 0) == "123.5 (100 to 150)"
    assert score_text("mine", 0.5, None, 0) == "0.5"
