"""One step of AdamW or Dimuon on an adapter's weights, with settings that are given at each step.

An adapter's optimizer is chosen when its client is created, and stays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ADAMW, DIMUON, AdamParams, DimuonParams, OptimParams
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dimuon import direction

_AVERAGES = {ADAMW: ("exp_avg", "exp_avg_sq"), DIMUON: ("momentum",)}  # what a state holds


@dataclass(slots=True)
class OptimizerState:
    """What an optimizer keeps between steps: averages of the gradients, by kind and weight."""

    kind: str
    step: int
    averages: dict[str, dict[str, torch.Tensor]]

    def clear(self) -> None:
        """Free the memory of all tensors."""
        self.averages = {}


def has_gradients(adapter: Adapter) -> bool:
    return any(weight.grad is not None for weight in adapter.weights.values())


def new_state(adapter: Adapter, kind: str = ADAMW) -> OptimizerState:
    averages = {
        average: {name: torch.zeros_like(weight) for name, weight in adapter.weights.items()}
        for average in _AVERAGES[kind]
    }
    return OptimizerState(kind, 0, averages)


def optim_step(adapter: Adapter, state: OptimizerState, params: OptimParams) -> dict[str, float]:
    """Apply the accumulated gradients, which are then cleared.

    The gradients' global norm is clipped first, if requested; the metric is the norm before that.
    Weights without a gradient are left as they are, as in PyTorch; a step without any gradient is
    not counted.

    Raises:
        Refused: the parameters are those of another optimizer, or the gradients are not finite; the
            weights are unchanged then.
    """
    sent = ADAMW if isinstance(params, AdamParams) else DIMUON
    if sent != state.kind:
        raise Refused(
            f"this training client was created with {state.kind} and its optim_step got the "
            f"parameters of {sent}: one client has one optimizer. Send "
            f"{'AdamParams' if state.kind == ADAMW else 'DimuonParams'}, or create another client."
        )
    gradients = {name: w.grad for name, w in adapter.weights.items() if w.grad is not None}
    if not gradients:
        return {"grad_norm": 0.0}
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()])))
    if not math.isfinite(norm):
        adapter.clear_gradients()
        raise Refused("the gradients are not finite; they were dropped and nothing was changed.")
    with torch.no_grad():
        if 0 < params.grad_clip_norm < norm:
            for gradient in gradients.values():
                gradient.mul_(params.grad_clip_norm / norm)
        state.step += 1
        if isinstance(params, AdamParams):
            _adamw(adapter, state, gradients, params)
            metrics = {}
        else:
            metrics = {"dimuon_update_norm": _dimuon(adapter, state, gradients, params)}
    adapter.clear_gradients()
    return {"grad_norm": norm, **metrics}


def _adamw(
    adapter: Adapter,
    state: OptimizerState,
    gradients: Mapping[str, torch.Tensor],
    params: AdamParams,
) -> None:
    """Loshchilov & Hutter 2019, algorithm 2."""
    bias1 = 1 - params.beta1**state.step
    bias2 = 1 - params.beta2**state.step
    for name, gradient in gradients.items():
        weight = adapter.weights[name]
        average, square = state.averages["exp_avg"][name], state.averages["exp_avg_sq"][name]
        weight.mul_(1 - params.learning_rate * params.weight_decay)
        average.lerp_(gradient, 1 - params.beta1)
        square.mul_(params.beta2).addcmul_(gradient, gradient, value=1 - params.beta2)
        denominator = (square.sqrt() / math.sqrt(bias2)).add_(params.eps)
        weight.addcdiv_(average, denominator, value=-params.learning_rate / bias1)


def _dimuon(
    adapter: Adapter,
    state: OptimizerState,
    gradients: Mapping[str, torch.Tensor],
    params: DimuonParams,
) -> float:
    """See dimuon.py. Gives the norm of the whole change of the weights."""
    squares = 0.0
    for name, gradient in gradients.items():
        momentum = state.averages["momentum"][name]
        momentum.lerp_(gradient, 1 - params.beta1)
        change = direction(momentum, adapter.config.rank)
        adapter.weights[name].add_(change, alpha=-params.learning_rate)
        squares += float(torch.linalg.vector_norm(change)) ** 2
    return params.learning_rate * math.sqrt(squares)


def state_tensors(state: OptimizerState) -> dict[str, torch.Tensor]:
    """The state as named tensors, fit for safetensors."""
    tensors = {"step": torch.tensor(state.step)}
    for kind, averages in state.averages.items():
        for name, tensor in averages.items():
            tensors[f"{kind}.{name}"] = tensor.cpu().contiguous()
    return tensors


def load_state_tensors(
    adapter: Adapter, tensors: Mapping[str, torch.Tensor], kind: str = ADAMW
) -> OptimizerState:
    """The inverse of `state_tensors`.

    Raises:
        Refused: it is of another optimizer, or a tensor is missing or has another shape.
    """
    state = new_state(adapter, kind)
    state.step = int(tensors["step"])
    [other] = set(_AVERAGES) - {kind}
    if any(name.startswith(f"{_AVERAGES[other][0]}.") for name in tensors):
        raise Refused(
            f"the saved optimizer state is of {other}, and this training client has {kind}: load "
            "it without the optimizer, or use create_training_client_from_state_with_optimizer."
        )
    for average, weights in state.averages.items():
        for name, tensor in weights.items():
            saved = tensors.get(f"{average}.{name}")
            if saved is None or saved.shape != tensor.shape:
                raise Refused(f"the saved optimizer state does not fit the adapter at {name}.")
            tensor.copy_(saved)
    return state
