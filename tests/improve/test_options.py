"""Which options and settings an improvement takes, and the sentences that refuse others."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import run_of_settings
from tinkersmith.errors import UserError
from tinkersmith.improve.options import (
    EPOCHS_OF_ROUND,
    GRPO,
    REJECTION,
    ImproveOptions,
    budget_lines,
    checked_options,
    settings_of_improvement,
)
from tinkersmith.settings.reading import settings_from

OWN = settings_from(
    {
        "EVAL_FILES": ["ask.json"],
        "EVAL_LIMIT": 30,
        "VALIDATION_RATIO": 0.1,
        "PATIENCE": 2,
        "NUM_EPOCHS": 9,
        "LEARNING_RATE": 2e-3,
    }
)


def test_what_the_user_leaves_out_has_the_documented_default() -> None:
    assert checked_options({"method": None, "rounds": None}) == ImproveOptions()
    assert checked_options({"method": GRPO, "updates": 2}).updates == 2
    assert checked_options({"answers": 2}).keep == 2, "a default is no contradiction"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "dpo"}, "--method is 'dpo'; it must be rejection or grpo"),
        ({"rounds": 0}, "--rounds is 0; it must be between 1 and 1,000"),
        ({"answers": 1}, "--answers is 1; it must be between 2 and 128"),
        ({"temperature": 0.0}, "--temperature is 0.0; it must be between 0.05 and 2"),
        ({"limit": -1}, "--limit is -1; it must be between 0"),
        ({"keep": 9}, "--keep is 9, and only 8 answers are sampled"),
        ({"updates": 2}, "--updates has no effect without --method grpo"),
        ({"method": GRPO, "keep": 2}, "--keep has no effect with --method grpo"),
        ({"method": GRPO, "mix": False}, "--alone has no effect with --method grpo"),
        ({"method": GRPO, "temperature": 0.7}, "--method grpo needs 1"),
    ],
)
def test_an_option_that_is_wrong_or_without_effect_is_refused(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        checked_options(given)
    assert words in str(refused.value)


def test_the_settings_are_those_of_the_run_without_what_only_a_training_measures() -> None:
    settings = settings_of_improvement(OWN, ["LEARNING_RATE=1e-4"], "", 7, REJECTION)
    assert settings.learning_rate == 1e-4 and settings.seed == 7
    assert settings.num_epochs == EPOCHS_OF_ROUND and settings.eval_files == ["ask.json"]
    assert (settings.eval_limit, settings.validation_ratio, settings.patience) == (0, 0.0, 0)
    changed = ["EVAL_LIMIT=5", "NUM_EPOCHS=4"]
    settings = settings_of_improvement(OWN, changed, "other.json", None, REJECTION)
    assert settings.eval_limit == 5 and settings.num_epochs == 4
    assert settings.eval_files == ["other.json"] and settings.seed == OWN.seed


def test_a_budget_of_the_run_is_said_not_to_limit_its_improvement(tmp_path: Path) -> None:
    run = run_of_settings(tmp_path / "mine-1", BUDGET_USD=5)
    assert budget_lines(run) == [
        "BUDGET_USD of mine-1 is 5. It limited that run, and does not limit this one."
    ]
    own = OWN.model_copy(update={"budget_usd": 5.0, "budget_minutes": 2.0})
    settings = settings_of_improvement(own, [], "", None, REJECTION)
    assert (settings.budget_usd, settings.budget_minutes) == (0.0, 0.0)
    assert budget_lines(run_of_settings(tmp_path / "mine-2")) == []


@pytest.mark.parametrize(
    ("overrides", "questions", "seed", "method", "words"),
    [
        (["LORA_RANK=4"], "", None, REJECTION, "--set LORA_RANK=4 has no effect on improve"),
        (["BASE_MODEL=x"], "", None, GRPO, "--set BASE_MODEL=x has no effect on improve"),
        (["NUM_EPOCHS=4"], "", None, GRPO, "--method grpo has no epochs"),
        (["EVAL_FILES=a"], "b", None, GRPO, "--questions and --set EVAL_FILES say the same"),
        (["SEED=1"], "", 2, GRPO, "--seed and --set SEED say the same"),
        (["LERNING_RATE=1"], "", None, GRPO, "LEARNING_RATE"),
    ],
)
def test_a_setting_without_effect_is_refused(
    overrides: list[str], questions: str, seed: int | None, method: str, words: str
) -> None:
    with pytest.raises(UserError) as refused:
        settings_of_improvement(OWN, overrides, questions, seed, method)
    assert words in str(refused.value)


def test_without_held_out_questions_nothing_begins() -> None:
    with pytest.raises(UserError, match="--questions FILE"):
        settings_of_improvement(settings_from({}), [], "", None, REJECTION)
