"""Curves with a known shape give the advice that fits them."""

import numpy as np

from tinkersmith.training.advice import advice


def test_a_rising_validation_loss_says_fewer_epochs() -> None:
    lines = advice([0.9, 0.6, 0.4], [0.8, 0.7, 0.9], [0.5] * 30, 0.0)
    assert any("validation loss rose from 0.7000 to 0.9000" in line for line in lines)
    assert not any("More NUM_EPOCHS" in line for line in lines)


def test_a_loss_that_still_falls_says_more_epochs_but_not_when_it_is_near_zero() -> None:
    assert any("More NUM_EPOCHS" in line for line in advice([0.9, 0.6], [], [0.6] * 30, 0.0))
    lines = advice([0.2, 0.004], [], [0.01] * 30, 0.0)
    assert not any("More NUM_EPOCHS" in line for line in lines)
    assert any("near 0" in line for line in lines)


def test_a_jumping_loss_says_a_lower_rate_and_a_calm_one_says_nothing_of_it() -> None:
    jumping = np.where(np.arange(60) % 2, 0.2, 2.0).tolist()
    assert any("lower LEARNING_RATE" in line for line in advice([1.0, 1.0], [], jumping, 0.0))
    assert not any("lower LEARNING_RATE" in x for x in advice([1.0, 1.0], [], [1.0] * 60, 0.0))


def test_many_cut_answers_are_pointed_out() -> None:
    assert any("20% of the samples were cut" in line for line in advice([1.0], [], [1.0], 0.2))
