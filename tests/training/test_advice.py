"""Curves with a known shape give the advice that fits them, and that can be followed."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability.divergence import VOCABULARIES, healthy
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.advice import RunOutcome, advice


def outcome(settings: dict[str, object] | None = None, **facts: object) -> RunOutcome:
    """A calm run of a model with 2,048 tokens of vocabulary and of context."""
    values: dict[str, object] = {
        "settings": settings_from(settings or {}),
        "vocabulary": 2048,
        "samples": 200,
        "max_length": 2048,
        "context": 2048,
        "epoch_losses": [1.0, 1.0],
        "step_losses": [1.0] * 60,
    }
    return RunOutcome(**{**values, **facts})  # type: ignore[arg-type]


def said(run: RunOutcome, text: str) -> bool:
    return any(text in line for line in advice(run))


def test_a_rising_validation_loss_says_fewer_epochs() -> None:
    run = outcome(epoch_losses=[0.9, 0.6, 0.4], validation_losses=[0.8, 0.7, 0.9])
    (line,) = advice(run)
    assert "validation loss rose from 0.7000 to 0.9000" in line and "fewer epochs" in line
    assert "checkpoint" not in line
    named = replace(run, best_checkpoint="step-000002")
    assert said(named, "the lowest value, step-000002 (evaluate and export: --checkpoint step-0000")
    single = replace(run, settings=settings_from({"NUM_EPOCHS": 1}))
    assert not said(single, "fewer epochs") and said(single, "a lower LEARNING_RATE")


def test_a_loss_that_still_falls_says_more_epochs_but_not_when_it_is_near_zero() -> None:
    falling = outcome(epoch_losses=[0.9, 0.6])
    assert said(falling, "More NUM_EPOCHS")
    assert not said(replace(falling, settings=settings_from({"NUM_EPOCHS": 1000})), "NUM_EPOCHS")
    near_zero = outcome(epoch_losses=[0.2, 0.004], step_losses=[0.01] * 30)
    assert not said(near_zero, "More NUM_EPOCHS")
    assert said(near_zero, "near 0")


def test_scores_on_eval_files_tell_when_to_stop() -> None:
    asked = outcome({"EVAL_FILES": ["e.json"]}, epoch_losses=[0.9, 0.6])
    assert said(outcome(), "There is no validation data.") and not said(asked, "validation data")
    assert said(asked, "More NUM_EPOCHS")
    assert not said(replace(asked, earlier_best="step-000040"), "More NUM_EPOCHS")
    near_zero = replace(asked, epoch_losses=[0.2, 0.004], step_losses=[0.01] * 30)
    assert said(near_zero, "The scores on EVAL_FILES tell which.")


def test_an_only_epoch_is_near_zero_where_its_end_is() -> None:
    losses = [*np.geomspace(3.0, 0.005, 200).tolist(), *[0.0028] * 50]
    run = outcome(epoch_losses=[0.5], step_losses=losses)
    assert said(run, "near 0") and not said(run, "More NUM_EPOCHS")
    high = replace(run, step_losses=[*[0.001] * 200, *[0.05] * 50])
    assert not said(high, "near 0")
    assert not said(replace(run, step_losses=[]), "near 0")


def test_a_jumping_loss_says_a_lower_rate_and_a_calm_one_says_nothing_of_it() -> None:
    jumping = outcome(step_losses=np.where(np.arange(60) % 2, 0.2, 2.0).tolist())
    assert said(jumping, "A lower LEARNING_RATE or a larger BATCH_SIZE")
    assert not said(outcome(), "LEARNING_RATE")
    assert not said(replace(jumping, samples=8), "BATCH_SIZE")
    largest = replace(jumping, samples=10**6, settings=settings_from({"BATCH_SIZE": 65536}))
    assert said(largest, "A lower LEARNING_RATE makes") and not said(largest, "BATCH_SIZE")


def test_many_cut_answers_are_pointed_out_with_a_length_that_the_model_holds() -> None:
    run = outcome({"MAX_SEQUENCE_LENGTH": 512}, truncated=40, max_length=512)
    assert said(
        run, "20% of the training samples were cut at 512 tokens. Raise MAX_SEQUENCE_LENGTH, up to"
    )
    assert said(run, "up to 2,048, or leave them out with TRUNCATE_LONG_SEQUENCES = False.")
    assert said(replace(run, context=None), "Raise MAX_SEQUENCE_LENGTH, or leave them out")
    at_the_limit = replace(run, max_length=2048)
    assert said(at_the_limit, "which is all that the model holds. Shorten them, or leave them out")
    assert not said(at_the_limit, "MAX_SEQUENCE_LENGTH")
    assert not said(replace(run, truncated=190), "TRUNCATE_LONG_SEQUENCES")


def test_a_length_is_named_that_cuts_no_sample_where_the_model_holds_it() -> None:
    run = outcome({"MAX_SEQUENCE_LENGTH": 512}, truncated=40, max_length=512, longest=1000)
    assert said(run, "Raise MAX_SEQUENCE_LENGTH to 1,000, which cuts none, or leave")
    assert said(replace(run, context=None), "Raise MAX_SEQUENCE_LENGTH to 1,000, which cuts none")
    assert said(replace(run, longest=3000), "Raise MAX_SEQUENCE_LENGTH, up to 2,048, or leave")


def test_after_a_rise_nothing_is_said_of_hard_samples_or_of_memorising() -> None:
    calm = outcome(hard_samples="Look at them.", validation_losses=[0.8, 0.9])
    assert said(calm, "Look at them.") and said(calm, "memorise")
    for losses in ([1.0, *[50.0] * 59], [1.0] * 20 + [50.0] * 20 + [1.0] * 20):
        risen = replace(calm, step_losses=losses)
        assert said(risen, "rose") and not said(risen, "Look at them.")
        assert not said(risen, "memorise")


def test_validation_is_advised_where_there_is_none_and_the_data_is_enough() -> None:
    assert said(outcome(), "With VALIDATION_RATIO = 0.05")
    assert said(outcome(samples=6), "With VALIDATION_RATIO = 0.1 ")
    assert advice(outcome(samples=1)) == []
    ways: tuple[dict[str, object], ...] = (
        {"VALIDATION_RATIO": 0.1},
        {"VALIDATION_FILES": ["x.json"]},
    )
    for given in ways:
        assert not said(outcome(given), "VALIDATION_RATIO")
        assert said(outcome(given), "not one validation sample fits into 2,048 tokens")
        assert advice(outcome(given, validation_losses=[1.0, 1.0])) == []


def test_a_loss_near_zero_names_what_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = outcome(epoch_losses=[0.01], step_losses=[0.01] * 30)
    assert said(run, " split sets some apart") and not said(run, "test set tells")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test_set.json").write_text("[]")
    assert said(run, "The test set tells which: ")
    assert said(replace(run, validation_losses=[0.5]), "The validation loss, 0.5000, tells which.")


@pytest.mark.parametrize(
    "losses",
    [
        [1.1, *[30.0, 4000.0, 5290.0] * 8],  # far worse than chance
        [1.1, 2.0, 3.0, *[4.0] * 20],  # the frequencies of single tokens
        [0.9, 40.0, 50.0],
    ],
)
def test_a_loss_that_ends_above_its_beginning_is_said(losses: list[float]) -> None:
    run = outcome({"LEARNING_RATE": 1.0, "GRAD_CLIP_NORM": 0}, step_losses=losses)
    (line, *_) = advice(run)
    assert line.startswith("The training loss rose: it ended at ")
    assert "with LEARNING_RATE = 5e-3 or lower and GRAD_CLIP_NORM = 1.0." in line
    assert not said(run, "More NUM_EPOCHS") and not said(run, "smoother")
    clipped = replace(run, settings=settings_from({"LEARNING_RATE": 1e-3}))
    assert said(clipped, "with LEARNING_RATE = 2e-4 or lower.")
    assert said(run, "This model is of no use.")
    better_before = replace(run, earlier_best="step-000040")
    assert not said(better_before, "This model is of no use.")
    assert said(better_before, "Evaluate and export take step-000040, which was measured to be")


@pytest.mark.parametrize(("first", "low", "high", "last"), [(3.1, 0.6, 28, 3.2), (1.4, 1, 14, 1.3)])
@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_a_rise_that_came_back_is_said(
    first: float, low: float, high: float, last: float, spread: float
) -> None:
    """The end is no worse than the beginning, and still falls."""
    level = [
        *np.geomspace(first, low, 60),
        *np.geomspace(low, high, 20),
        *np.geomspace(high, last, 120),
    ]
    noise = np.exp(spread * np.random.default_rng(5).standard_normal(200))
    run = outcome(epoch_losses=[9.0, 3.0], step_losses=(np.array(level) * noise).tolist())
    assert said(run, "The training loss rose in between, from ") and said(run, " and ended at ")
    assert said(run, "A new run with LEARNING_RATE = ")
    assert not said(run, "More NUM_EPOCHS") and not said(run, "smoother")


def test_healthy_curves_of_any_noise_are_not_called_a_rise_that_came_back() -> None:
    random = np.random.default_rng(9)  # with other seeds, 1 of 48,000 curves is
    for _ in range(1000):
        vocabulary = int(random.choice(VOCABULARIES))
        kind, losses, _ = healthy(random, vocabulary)
        if not kind.startswith("spiked"):
            run = outcome(vocabulary=vocabulary, step_losses=losses.tolist())
            assert not said(run, "rose in between"), kind


def test_healthy_noise_is_not_called_a_rise() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    for _ in range(300):
        count = int(random.integers(2, 200))
        level = np.linspace(1.5, random.uniform(0.2, 1.5), count)
        losses = level * np.exp(random.uniform(0, 0.4) * random.standard_normal(count))
        assert not said(outcome(step_losses=losses.tolist()), "rose"), losses


def test_no_advice_names_what_is_so_already_or_cannot_be() -> None:
    """Each setting at its usual value and at its end, in every combination."""
    curves = (
        {"step_losses": [1.0] * 60},
        {"step_losses": [1.0, 50.0] * 30},
        {"step_losses": [1.0, *[40.0] * 59]},
        {"epoch_losses": [0.9, 0.1]},
        {"epoch_losses": [0.01], "step_losses": [0.01] * 60},
        {"validation_losses": [0.5, 0.9]},
    )
    settings: dict[str, tuple[object, ...]] = {
        "NUM_EPOCHS": (1, 2, 1000),
        "BATCH_SIZE": (1, 65536),
        "GRAD_CLIP_NORM": (0.0, 1.0),
        "VALIDATION_RATIO": (0.0, 0.5),
        "TRUNCATE_LONG_SEQUENCES": (True, False),
    }
    for values in product(*settings.values()):
        given = settings_from(dict(zip(settings, values, strict=True)))
        for curve, samples, truncated in product(curves, (1, 200), (0, 1)):
            if truncated and not given.truncate_long_sequences:
                continue
            run = outcome(None, samples=samples, truncated=truncated * samples, **curve)
            text = "\n".join(advice(replace(run, settings=given)))
            assert_can_be_followed(text, given, samples)


def assert_can_be_followed(text: str, settings: Settings, samples: int) -> None:
    if settings.num_epochs == 1000:
        assert "NUM_EPOCHS" not in text
    if settings.num_epochs == 1:
        assert "fewer epochs" not in text
    if settings.batch_size >= samples:
        assert "BATCH_SIZE" not in text
    if settings.grad_clip_norm:
        assert "GRAD_CLIP_NORM" not in text
    if settings.validation_ratio or samples == 1:
        assert "VALIDATION_RATIO" not in text
    if not settings.truncate_long_sequences:
        assert "TRUNCATE_LONG_SEQUENCES" not in text
    assert "MAX_SEQUENCE_LENGTH" not in text  # the model holds no more
