"""The losses of the Tinker API, each a function of the target tokens' log-probabilities.

All are sums over tokens, with no normalisation. Axes: T tokens of a datum, K targets a position.
Formulas and defaults: https://tinker-docs.thinkingmachines.ai/losses and tutorial 202 there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LossConfig

# Every input that the SDK can send (`_KEY_TO_TYPE` of its datums). Each loss accepts all of them
# and uses what it needs.
INPUT_NAMES = frozenset(
    {
        "target_tokens",
        "weights",
        "advantages",
        "logprobs",
        "clip_low_threshold",
        "clip_high_threshold",
        "sequence_ratio_mask",
    }
)
TRUNCATED_AT = 2.0  # of stable_reinforce: the largest importance weight of a token


@dataclass(frozen=True, slots=True)
class LossFunction:
    """The inputs and options that a loss uses."""

    inputs: frozenset[str]  # each must be given
    optional: frozenset[str]
    config: dict[str, float | None]  # allowed keys and defaults; None: must be given

    @property
    def used(self) -> frozenset[str]:
        return self.inputs | self.optional


_RL_INPUTS = frozenset({"target_tokens", "logprobs", "advantages"})
_CLIPS = frozenset({"clip_low_threshold", "clip_high_threshold"})  # per token, before the config's
LOSSES = {
    "cross_entropy": LossFunction(frozenset({"target_tokens"}), frozenset({"weights"}), {}),
    "importance_sampling": LossFunction(_RL_INPUTS, frozenset(), {}),
    "ppo": LossFunction(
        _RL_INPUTS, _CLIPS, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    ),
    "cispo": LossFunction(
        _RL_INPUTS, _CLIPS, {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    ),
    "dro": LossFunction(_RL_INPUTS, frozenset(), {"beta": None}),
    "gspo": LossFunction(
        _RL_INPUTS | {"sequence_ratio_mask"},
        _CLIPS,
        {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    ),
    "stable_reinforce": LossFunction(_RL_INPUTS, frozenset(), {}),
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
    gspo                 -min(s A, clip(s) A)       with s the value of the sequence's ratio and the
                         gradient of r (GSPO-token: Zheng et al. 2025, eq. 13); the inputs hold
                         `sequence_log_ratio`, see `sequence_log_ratios`
    stable_reinforce     -stop_gradient(min(r, 2)) A log p   (our own choice: Tinker publishes no
                         formula; truncated importance weights of Ionides 2008, per token)
    """
    if name == "cross_entropy":
        weights = inputs.get("weights")
        return -logprobs if weights is None else -logprobs * weights
    advantages = inputs["advantages"]
    log_ratio = logprobs - inputs["logprobs"]
    if name == "importance_sampling":
        return -log_ratio.exp() * advantages
    if name == "stable_reinforce":
        return -log_ratio.exp().clamp(max=TRUNCATED_AT).detach() * logprobs * advantages
    options = loss_options(name, config)
    if name == "dro":
        return -(logprobs * advantages - 0.5 * options["beta"] * log_ratio.square())
    if name == "gspo":
        log_ratio = inputs["sequence_log_ratio"] + logprobs - logprobs.detach()
    ratio = log_ratio.exp()
    low, high = (
        inputs[key] if key in inputs else ratio.new_tensor(options[key])
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    clipped = torch.minimum(torch.maximum(ratio, low), high)
    if name == "cispo":
        return -clipped.detach() * logprobs * advantages
    return -torch.minimum(ratio * advantages, clipped * advantages)


def sequence_log_ratios(
    logprobs: torch.Tensor, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]
) -> torch.Tensor:
    """The log of each sequence's ratio, at every position of the sequence: (T, 1) as `logprobs`.

    It is the mean of log p - log q over the tokens that `sequence_ratio_mask` marks; 0 where it
    marks none. `lengths` are those of the packed sequences.
    """
    marked = inputs["sequence_ratio_mask"] != 0
    gaps = (logprobs - inputs["logprobs"]) * marked
    means = [
        gap.sum() / mask.sum().clamp(min=1)
        for gap, mask in zip(gaps.split(list(lengths)), marked.split(list(lengths)), strict=True)
    ]
    return torch.stack(means).repeat_interleave(torch.tensor(lengths, device=gaps.device))[:, None]


def truncated_tokens(logprobs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> int:
    """How many tokens of a datum, (T,), have an importance weight that stable_reinforce cuts."""
    above = logprobs - inputs["logprobs"] > math.log(TRUNCATED_AT)
    return int((above & (inputs["advantages"] != 0)).sum())


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
    known_elsewhere = [loss.config for loss in LOSSES.values()]
    for key, value in config.items():
        # A program may send the options of all losses: their defaults change nothing.
        if key not in allowed and not any(value == other.get(key) for other in known_elsewhere):
            known = ", ".join(allowed) or "none"
            raise Refused(f"loss_fn_config has {key!r}; {name} knows: {known}.")
    options = {**allowed, **{key: value for key, value in config.items() if key in allowed}}
    for key, value in options.items():
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise Refused(f"{name} needs loss_fn_config[{key!r}] as a finite number.")
    if options.get("clip_low_threshold", 0) > options.get("clip_high_threshold", np.inf):
        raise Refused(f"{name}: clip_low_threshold is above clip_high_threshold.")
    return {key: float(value) for key, value in options.items()}  # type: ignore[arg-type]
