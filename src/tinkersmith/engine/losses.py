"""The losses of the Tinker API, each a function of the target tokens' log-probabilities.

All are sums over tokens, with no normalisation. Axes: T tokens of a datum, K targets a position.
Formulas and defaults: https://tinker-docs.thinkingmachines.ai/losses and tutorial 202 there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import Datum, LossConfig


@dataclass(frozen=True, slots=True)
class _LossFunction:
    inputs: frozenset[str]
    optional: frozenset[str]
    config: dict[str, float | None]  # allowed keys and defaults; None: must be given


_RL_INPUTS = frozenset({"target_tokens", "logprobs", "advantages"})
_LOSSES = {
    "cross_entropy": _LossFunction(frozenset({"target_tokens"}), frozenset({"weights"}), {}),
    "importance_sampling": _LossFunction(_RL_INPUTS, frozenset(), {}),
    "ppo": _LossFunction(
        _RL_INPUTS, frozenset(), {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    ),
    "cispo": _LossFunction(
        _RL_INPUTS, frozenset(), {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    ),
    "dro": _LossFunction(_RL_INPUTS, frozenset(), {"beta": None}),
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
    options = _options(name, config)
    if name == "dro":
        return -(logprobs * advantages - 0.5 * options["beta"] * log_ratio.square())
    ratio = log_ratio.exp()
    clipped = ratio.clamp(options["clip_low_threshold"], options["clip_high_threshold"])
    if name == "ppo":
        return -torch.minimum(ratio * advantages, clipped * advantages)
    return -clipped.detach() * logprobs * advantages


def has_gradient(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which positions (T,) of inputs (T, K) can have a gradient at all; the others' is zero."""
    targets = inputs["target_tokens"]
    if name == "cross_entropy":
        factors = inputs.get("weights")
    else:  # each loss but dro has the advantage as a factor
        factors = None if name == "dro" else inputs["advantages"]
    if factors is None:
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return (factors != 0).any(-1)


def check_datums(base: BaseModel, datums: Sequence[Datum], name: str, config: LossConfig) -> None:
    """Everything that can be wrong with a batch, before any work is done.

    Raises:
        Refused: with the datum's number and what is wrong with it.
    """
    if name not in _LOSSES:
        raise Refused(f"loss_fn {name!r} is not one of {', '.join(_LOSSES)}.")
    _options(name, config)
    if not datums:
        raise Refused("the batch holds no datum.")
    for index, datum in enumerate(datums):
        _check_datum(base, datum, name, f"datum {index}")


def _options(name: str, config: LossConfig) -> dict[str, float]:
    allowed = _LOSSES[name].config
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


def _check_datum(base: BaseModel, datum: Datum, name: str, where: str) -> None:
    length = len(datum.tokens)
    if length == 0:
        raise Refused(f"{where} has no tokens.")
    if length > base.max_context:
        raise Refused(
            f"{where} has {length:,} tokens; {base.name} takes at most {base.max_context:,}."
        )
    _check_token_ids(datum.tokens, base.vocab_size, f"{where}, model_input")
    loss = _LOSSES[name]
    missing = sorted(loss.inputs - datum.inputs.keys())
    if missing:
        raise Refused(f"{where}: {name} needs loss_fn_inputs[{missing[0]!r}].")
    unknown = sorted(datum.inputs.keys() - loss.inputs - loss.optional)
    if unknown:
        raise Refused(f"{where}: {name} has no use for loss_fn_inputs[{unknown[0]!r}].")
    targets = datum.inputs["target_tokens"]
    if targets.ndim not in (1, 2) or targets.shape[0] != length or targets.size == 0:
        raise Refused(
            f"{where}: target_tokens has shape {list(targets.shape)}, "
            f"but model_input has {length} tokens."
        )
    if targets.dtype.kind != "i":
        raise Refused(f"{where}: target_tokens has dtype {targets.dtype}; it must be int64.")
    if name != "cross_entropy" and targets.ndim != 1:
        raise Refused(f"{where}: {name} takes one target token a position.")
    _check_token_ids(targets, base.vocab_size, f"{where}, target_tokens")
    for key, values in datum.inputs.items():
        if values.shape != targets.shape:
            raise Refused(
                f"{where}: {key} has shape {list(values.shape)}, "
                f"but target_tokens has {list(targets.shape)}."
            )
        if not np.isfinite(values).all():
            raise Refused(f"{where}: {key} holds a value that is not finite.")


def _check_token_ids(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise Refused(
            f"{where}: token id {int(outside.flat[0])} is not in the vocabulary of "
            f"{vocab_size:,} tokens."
        )
