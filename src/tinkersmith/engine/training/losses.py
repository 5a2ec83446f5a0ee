"""The losses of the Tinker API, each a function of the target tokens' log-probabilities.

All are sums over tokens, with no normalisation. Axes: T tokens of a datum, K targets a position.
Formulas and defaults: https://tinker-docs.thinkingmachines.ai/losses and tutorial 202 there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LossConfig


@dataclass(frozen=True, slots=True)
class LossFunction:
    """The inputs and options that a loss takes."""

    inputs: frozenset[str]
    optional: frozenset[str]
    config: dict[str, float | None]  # allowed keys and defaults; None: must be given


_RL_INPUTS = frozenset({"target_tokens", "logprobs", "advantages"})
LOSSES = {
    "cross_entropy": LossFunction(frozenset({"target_tokens"}), frozenset({"weights"}), {}),
    "importance_sampling": LossFunction(_RL_INPUTS, frozenset(), {}),
    "ppo": LossFunction(
        _RL_INPUTS, frozenset(), {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    ),
    "cispo": LossFunction(
        _RL_INPUTS, frozenset(), {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    ),
    "dro": LossFunction(_RL_INPUTS, frozenset(), {"beta": None}),
}


def token_losses(
    name: str, logprobs: torch.Tensor, inputs: Mapping[str, torch.Tensor], config: LossConfig
) -> torch.Tensor:
    """The loss of every target, the shape of `logprobs` ((T,) or (T, K)); their sum is the loss.

    cross_entropy        -w log p
    importance_sampling  -r A                       with r = p / q, q the sampler's probability
    ppo                  -min(r A, clip(r) A)       (Schulman et al. 2017, eq. 7)
    cispo                -stop_gradient(clip(r)) A log p   (MiniMax-M1, 2025)
    dro                  -(log p A - beta/2 (log p - log q)^2)   (Richemond et al. 2024)
    """
    if name == "cross_entropy":
        weights = inputs.get("weights")
        return -logprobs if weights is None else -logprobs * weights
    advantages = inputs["advantages"]
    log_ratio = logprobs - inputs["logprobs"]
    if name == "importance_sampling":
        return -log_ratio.exp() * advantages
    options = loss_options(name, config)
    if name == "dro":
        return -(logprobs * advantages - 0.5 * options["beta"] * log_ratio.square())
    ratio = log_ratio.exp()
    clipped = ratio.clamp(options["clip_low_threshold"], options["clip_high_threshold"])
    if name == "ppo":
        return -torch.minimum(ratio * advantages, clipped * advantages)
    return -clipped.detach() * logprobs * advantages


def has_gradient(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which positions (T,) of inputs (T, K) can have a gradient; at all others it is zero."""
    targets = inputs["target_tokens"]
    if name == "cross_entropy":
        factors = inputs.get("weights")
    else:  # each loss but dro has the advantage as a factor
        factors = None if name == "dro" else inputs["advantages"]
    if factors is None:
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return (factors != 0).any(-1)


def loss_options(name: str, config: LossConfig) -> dict[str, float]:
    """All options of a loss, those of `config` in place of defaults.

    Raises:
        Refused: `config` has an unknown or impossible value.
    """
    allowed = LOSSES[name].config
    for key in config:
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise Refused(f"loss_fn_config has {key!r}; {name} knows: {known}.")
    options = {**allowed, **config}
    for key, value in options.items():
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise Refused(f"{name} needs loss_fn_config[{key!r}] as a finite number.")
    if options.get("clip_low_threshold", 0) > options.get("clip_high_threshold", np.inf):
        raise Refused(f"{name}: clip_low_threshold is above clip_high_threshold.")
    return {key: float(value) for key, value in options.items()}  # type: ignore[arg-type]
