"""Layers that carry a state from token to token: found, wrapped, and their joined projections.

transformers computes them; the active context of attention.py decides where a state begins, so that
it never crosses from one document of a pack to the next, and where it is kept for sampling.

Axes: B rows, T packed tokens, H hidden size.
"""

import inspect
import math
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import Cache

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.model import attention
from tinkersmith.engine.model.layer_states import LayerStates

# The names of Tinker's cloud for the rows of a joined projection, in their order; rows that are
# left over stay frozen.
Rows = tuple[tuple[str, int], ...]

_STATES_NAMES = ("cache", "cache_params")  # since transformers 5.24, and before


class RecurrentLayer(nn.Module):
    """A layer with a state, computed as the active context says."""

    def __init__(self, base: nn.Module, index: int) -> None:
        super().__init__()
        self.base = base
        self.index = index
        self.states_name = _states_name(base)

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        context = attention.active_context()
        if context is None:  # as plain transformers
            return self.base(hidden_states, *arguments, **named)
        return context.carry(self.index, self._carry, hidden_states)

    def _carry(self, hidden: torch.Tensor, states: LayerStates | None) -> torch.Tensor:
        return self.base(hidden, **{self.states_name: states})


def _states_name(layer: nn.Module) -> str:
    """What a layer calls the cache that it reads its state from; "" if it reads none."""
    names = inspect.signature(layer.forward).parameters
    return next((name for name in _STATES_NAMES if name in names), "")


def recurrent_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with a state, by module path: they read a cache's states and own a convolution.

    Raises:
        Refused: there are some, and this version of transformers keeps states in another way.
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and any(isinstance(child, nn.Conv1d) for child in module.children())
        and _states_name(module)
    }
    if layers and not hasattr(Cache, "get_conv_state"):
        raise Refused(
            "this model has layers that carry a state, which needs transformers 5.21 or newer; "
            f"{transformers.__version__} is installed. Run: pip install -U transformers"
        )
    return layers


def wrap_recurrent_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        wrapped = RecurrentLayer(layer, cast(int, layer.layer_idx))
        setattr(model.get_submodule(parent), name, wrapped)
        if hasattr(layer, "time_step_limit") and hasattr(layer, "in_proj"):
            _limit_single_steps(layer)


def joined_rows(layer: Any) -> dict[str, Rows]:
    """The joined projections of a layer with a state, whose parts the cloud trains separately."""
    if hasattr(layer, "in_proj_qkv"):  # a gated delta-net (Yang et al. 2024)
        rows = (("in_proj_q", layer.key_dim), ("in_proj_k", layer.key_dim))
        return {"in_proj_qkv": (*rows, ("in_proj_v", layer.value_dim))}
    if _is_mamba2(layer):  # the rows of B, C and the time step follow
        width = layer.intermediate_size
        return {"in_proj": (("gate_proj", width), ("x_proj", width))}
    return {}


def _is_mamba2(layer: Any) -> bool:
    """Whether a layer's input projection has the rows of Mamba 2 (Dao & Gu 2024)."""
    if not (hasattr(layer, "ssm_state_size") and hasattr(layer, "conv_dim")):
        return False
    rows = layer.intermediate_size + layer.conv_dim + layer.num_heads
    return isinstance(layer.in_proj, nn.Linear) and layer.in_proj.out_features == rows


def _limit_single_steps(layer: Any) -> None:
    """Let one token alone have the least time step that tokens of a whole text have.

    transformers limits the step softplus(dt + bias) only where it computes a whole text, so that
    sampled tokens would have other log-probabilities than the same tokens in training.
    """
    least = float(getattr(layer, "time_step_limit", (0.0,))[0])
    if least <= 0:
        return
    heads = layer.num_heads
    inverse = math.log(math.expm1(least))  # softplus(inverse) = least

    def limit(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if output.shape[1] != 1 or torch.is_grad_enabled():
            return output
        floor = (inverse - layer.dt_bias.float()).to(output.dtype)
        return torch.cat([output[..., :-heads], output[..., -heads:].maximum(floor)], -1)

    layer.in_proj.register_forward_hook(limit)
