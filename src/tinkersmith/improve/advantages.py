"""Rewards of groups of answers -> advantages, and answers with advantages -> the SDK's datums.

GRPO (Shao et al. 2024) compares each answer with the others to its question. As in Dr. GRPO (Liu
et al. 2025), the difference to the mean is not divided by the standard deviation, which would make
much of a question where one answer of many is right. Each token of a step counts the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tinker


def group_advantages(rewards: Sequence[float]) -> np.ndarray:
    """The reward of each answer to a question less the mean of all: (K,), zeros without spread."""
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) == 0 or np.all(values == values[0]):
        return np.zeros(len(values))
    return values - values.mean()


def policy_datum(
    prompt: Sequence[int],
    answer: Sequence[int],
    logprobs: Sequence[float],
    advantage: float,
) -> "tinker.Datum":
    """An answer as the SDK's datum: position i predicts token i + 1.

    Args:
        logprobs: of each of the answer's tokens, as the sampler reported them.
        advantage: of each of the answer's tokens; those of the prompt have none.
    """
    import tinker

    tokens = [*prompt, *answer]
    before = len(prompt) - 1
    old = np.array([0.0] * before + list(logprobs), np.float32)
    advantages = np.array([0.0] * before + [advantage] * len(answer), np.float32)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
            "logprobs": tinker.TensorData.from_numpy(old),
            "advantages": tinker.TensorData.from_numpy(advantages),
        },
    )
