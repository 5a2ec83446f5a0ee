"""AdamW on an adapter's weights, its settings given anew at each step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams
from tinkersmith.engine.model.lora import Adapter


@dataclass(slots=True)
class AdamState:
    step: int
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]


def new_state(adapter: Adapter) -> AdamState:
    return AdamState(
        step=0,
        exp_avg={name: torch.zeros_like(weight) for name, weight in adapter.weights.items()},
        exp_avg_sq={name: torch.zeros_like(weight) for name, weight in adapter.weights.items()},
    )


@torch.no_grad()
def optim_step(adapter: Adapter, state: AdamState, params: AdamParams) -> dict[str, float]:
    """One AdamW step over the accumulated gradients, which are then cleared.

    Loshchilov & Hutter 2019, algorithm 2. The gradients' global norm is clipped first, if asked;
    the metric is the norm before that. Weights without a gradient are left as they are.

    Raises:
        Refused: there are no gradients, or they are not finite; nothing is changed then.
    """
    names = [name for name, weight in adapter.weights.items() if weight.grad is not None]
    if not names:
        raise Refused("there are no gradients to apply: call forward_backward before optim_step.")
    gradients = [g for name in names if (g := adapter.weights[name].grad) is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
    if not math.isfinite(norm):
        adapter.clear_gradients()
        raise Refused("the gradients are not finite; they were dropped and nothing was changed.")
    if params.grad_clip_norm and norm > params.grad_clip_norm:
        for gradient in gradients:
            gradient.mul_(params.grad_clip_norm / norm)
    state.step += 1
    bias1 = 1 - params.beta1**state.step
    bias2 = 1 - params.beta2**state.step
    for name, gradient in zip(names, gradients, strict=True):
        weight, average, square = (
            adapter.weights[name],
            state.exp_avg[name],
            state.exp_avg_sq[name],
        )
        weight.mul_(1 - params.learning_rate * params.weight_decay)
        average.lerp_(gradient, 1 - params.beta1)
        square.mul_(params.beta2).addcmul_(gradient, gradient, value=1 - params.beta2)
        denominator = (square.sqrt() / math.sqrt(bias2)).add_(params.eps)
        weight.addcdiv_(average, denominator, value=-params.learning_rate / bias1)
    adapter.clear_gradients()
    return {"grad_norm": norm}


def state_tensors(state: AdamState) -> dict[str, torch.Tensor]:
    """The state as named tensors, fit for safetensors."""
    tensors = {"step": torch.tensor(state.step)}
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, tensor in getattr(state, kind).items():
            tensors[f"{kind}.{name}"] = tensor.cpu().contiguous()
    return tensors


def load_state_tensors(adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> AdamState:
    """The inverse of `state_tensors`.

    Raises:
        Refused: a tensor is missing or has another shape.
    """
    state = new_state(adapter)
    state.step = int(tensors["step"])
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, tensor in getattr(state, kind).items():
            saved = tensors.get(f"{kind}.{name}")
            if saved is None or saved.shape != tensor.shape:
                raise Refused(f"the saved optimizer state does not fit the adapter at {name}.")
            tensor.copy_(saved)
    return state
