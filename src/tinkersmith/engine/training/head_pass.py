"""Hidden states -> log-probabilities of targets, losses, and the hidden states' gradient at once.

The logits of a chunk of rows exist only once, block of vocabulary by block, as exponentials; the
gradient is formed from them at once. No (T, V) matrix is ever held, and rows whose gradient is
zero cost no backward pass.

Axes: T packed tokens, M rows of T that reach the output layer, N rows of a block, K targets of a
position, H hidden size, V vocabulary, R rank of the adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.head import TorchHead
from tinkersmith.engine.messages import LossConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import Head, HeadWeights
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.losses import token_losses


@dataclass(frozen=True, slots=True)
class Pass:
    """The computation over a batch: model, adapter, loss, and whether gradients are wanted."""

    base: BaseModel
    adapter: Adapter | None
    loss_fn: str
    config: LossConfig
    backward: bool


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """What the output layer gives for M rows."""

    logprobs: torch.Tensor  # (M, K) fp32
    losses: torch.Tensor  # (M, K) fp32
    grad_hidden: torch.Tensor | None  # (M, H) in the base model's dtype


@torch.no_grad()
def head_pass(
    batch_pass: Pass,
    hidden: torch.Tensor,  # (M, H)
    inputs: Mapping[str, torch.Tensor],  # target_tokens and what the loss needs, each (M, K)
    graded: torch.Tensor,  # (M,), see losses.has_gradient
) -> HeadOutput:
    """Log-probabilities and losses of rows; with `batch_pass.backward`, gradients too.

    The output layer's LoRA gradients are added to the adapter's.
    """
    base, adapter, backward = batch_pass.base, batch_pass.adapter, batch_pass.backward
    loss_fn, config = batch_pass.loss_fn, batch_pass.config
    weights = _weights(base, adapter)
    targets = inputs["target_tokens"]
    logprobs = torch.zeros(targets.shape, device=hidden.device)
    losses = torch.zeros_like(logprobs)
    grad_hidden = torch.zeros_like(hidden) if backward else None
    head = _head(base, weights)
    graded = graded & backward
    for rows, with_gradient in ((graded.nonzero()[:, 0], True), ((~graded).nonzero()[:, 0], False)):
        for chunk in rows.split(head.rows) if len(rows) else ():
            chunk_inputs = {name: values[chunk] for name, values in inputs.items()}
            leaf = head.logprobs(hidden[chunk], chunk_inputs["target_tokens"], keep=with_gradient)
            logprobs[chunk] = leaf
            with torch.enable_grad():
                chunk_losses = token_losses(loss_fn, leaf.requires_grad_(), chunk_inputs, config)
                losses[chunk] = chunk_losses.detach()
                if with_gradient and grad_hidden is not None:
                    (slope,) = torch.autograd.grad(chunk_losses.sum(), leaf)
                    grad_hidden[chunk] = head.backward(slope).to(hidden.dtype)
    if backward and adapter is not None and weights.a is not None:
        rank = adapter.config.rank
        add_gradient(adapter, f"{base.unembed.path}.lora_A", head.grad_a[:rank])
        add_gradient(adapter, f"{base.unembed.path}.lora_B", head.grad_b[:, :rank])
    return HeadOutput(logprobs, losses, grad_hidden)


@torch.no_grad()
def target_logprobs(
    base: BaseModel, adapter: Adapter | None, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:  # (T, H), (T, K) -> (T, K) in fp32
    """Log-probabilities alone, equal to those of `head_pass`."""
    head = _head(base, _weights(base, adapter))
    chunks = zip(hidden.split(head.rows), targets.split(head.rows), strict=True)
    return torch.cat([head.logprobs(*chunk, keep=False) for chunk in chunks])


def add_gradient(adapter: Adapter, name: str, gradient: torch.Tensor) -> None:
    """Add to a weight's gradient, in fp32."""
    weight = adapter.weights[name]
    if weight.grad is None:
        weight.grad = gradient.float().contiguous()
    else:
        weight.grad += gradient


def _head(base: BaseModel, weights: HeadWeights) -> Head:
    if base.kernels is not None:
        return base.kernels.head(weights)
    return TorchHead(weights, base.dtype, base.device, TORCH_ELEMENTWISE)


def _weights(base: BaseModel, adapter: Adapter | None) -> HeadWeights:
    layer = base.unembed
    weight = layer.weight.detach()
    bias = None if layer.base.bias is None else layer.base.bias.detach()
    cap = base.logits_form.softcap
    if adapter is None or f"{layer.path}.lora_A" not in adapter.weights:
        return HeadWeights(weight, bias, None, None, 0.0, cap)
    a, b = (adapter.weights[f"{layer.path}.lora_{side}"].detach() for side in "AB")
    odd = adapter.config.rank % 2
    a, b = pad(a, (0, 0, 0, odd)), pad(b, (0, odd))
    scaled = (b * adapter.scaling).to(base.dtype)
    return HeadWeights(weight, bias, a.to(base.dtype), scaled, adapter.scaling, cap)
