"""The element-wise work of the dense path, between two products, by plain torch.

Every function works as it stands. Compiled by torch (see runtime/compilation.py), it reads and
writes each number once.

Axes: N rows of a block, H hidden size, F width of the MLP, Q query heads, G key/value heads,
J queries per key, D head size, W tokens of a block of the vocabulary.
"""

import torch
from torch.nn.functional import silu

from tinkersmith.engine.model.kernels import Elementwise, HeadTransform


def rms_norm(
    x: torch.Tensor,  # (N, H)
    weight: torch.Tensor,  # (H,)
    eps: float,
    output: torch.Tensor,  # (N, H)
) -> None:
    """output = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019)."""
    full = x.float()
    output.copy_((full * _inverse_rms(full, eps)).mul_(weight.float()))


def rms_norm_backward(
    grad: torch.Tensor,  # (N, H), the gradient of the normed rows
    x: torch.Tensor,  # (N, H)
    weight: torch.Tensor,  # (H,)
    eps: float,
    total: torch.Tensor,  # (N, H)
    normed: torch.Tensor,  # (N, H)
) -> None:
    """total += the gradient of x; normed = the output of `rms_norm`."""
    full = x.float()
    inverse = _inverse_rms(full, eps)
    full = full * inverse  # not in place: in fp32 it is x itself
    normed.copy_(full * weight.float())
    total += _norm_gradient(grad.float() * weight.float(), full, inverse)


def swiglu(gate_up: torch.Tensor, output: torch.Tensor) -> None:  # (N, 2 F) -> (N, F)
    """output = silu(gate) * up (Shazeer 2020)."""
    gate, up = gate_up.chunk(2, -1)
    torch.mul(silu(gate), up, out=output)


def swiglu_backward(
    grad: torch.Tensor,  # (N, F)
    gate_up: torch.Tensor,  # (N, 2 F)
    activated: torch.Tensor,  # (N, F)
    output: torch.Tensor,  # (N, 2 F)
) -> None:
    """activated = the output of `swiglu`; output = the gradient of gate_up."""
    gate, up = gate_up.chunk(2, -1)
    passed = silu(gate)  # (N, F)
    torch.mul(passed, up, out=activated)
    grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
    torch.cat([grad_gate, grad * passed], -1, out=output)


def split_heads(
    qkv: torch.Tensor,  # (N, (Q + 2 G) D)
    transform: HeadTransform,
    query: torch.Tensor,  # (G, N, J, D)
    key: torch.Tensor,  # (G, N, D)
    value: torch.Tensor,  # (G, N, D)
) -> None:
    """Writes heads in the order of attention: normed, rotated, queries times the scale."""
    query_norm, key_norm, eps, cosine, sine, scale = transform
    groups, count, share, size = query.shape
    q, k, v = qkv.view(count, -1, size).split([groups * share, groups, groups], 1)
    rotated = _rotate(_head_norm(q, query_norm, eps), cosine * scale, sine * scale)  # (N, Q, D)
    query.copy_(rotated.view(count, groups, share, size).transpose(0, 1))
    rotated = _rotate(_head_norm(k, key_norm, eps), cosine, sine)  # (N, G, D)
    key.copy_(rotated.transpose(0, 1))
    value.copy_(v.transpose(0, 1))


def split_heads_backward(
    qkv: torch.Tensor,  # (N, (Q + 2 G) D)
    transform: HeadTransform,
    query: torch.Tensor,  # (G, N, J, D), the gradient of the queries
    key: torch.Tensor,  # (G, N, D), of the keys
    value: torch.Tensor,  # (G, N, D), of the values
    output: torch.Tensor,  # (N, (Q + 2 G) D)
) -> None:
    """output = the gradient of qkv, from those of what `split_heads` writes."""
    query_norm, key_norm, eps, cosine, sine, scale = transform
    groups, count, share, size = query.shape
    sizes = [groups * share, groups, groups]
    q, k, _ = qkv.view(count, -1, size).split(sizes, 1)
    grad_q, grad_k, grad_v = output.view(count, -1, size).split(sizes, 1)
    grad = query.transpose(0, 1).reshape(q.shape).float()  # (N, Q, D)
    grad = _rotate(grad, cosine * scale, sine * -scale)
    grad_q.copy_(_head_norm_backward(grad, q, query_norm, eps))
    grad = _rotate(key.transpose(0, 1).float(), cosine, -sine)  # (N, G, D)
    grad_k.copy_(_head_norm_backward(grad, k, key_norm, eps))
    grad_v.copy_(value.transpose(0, 1))


def exponentials(
    logits: torch.Tensor,  # (N, W)
    shift: torch.Tensor,  # (N, 1) in fp32
    sums: torch.Tensor,  # (N,) in fp32
    powers: torch.Tensor | None,  # (N, W)
) -> None:
    """powers = exp(logits - shift); sums = their sums, before they are rounded."""
    exact = logits.float().sub_(shift).exp_()
    torch.sum(exact, -1, out=sums)
    if powers is not None:
        powers.copy_(exact)


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021) applied to (N, heads, D) in fp32."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], -1)


def _head_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """(N, heads, D) -> the same shape in fp32: each head normed, if the model has such a norm."""
    x = x.float()
    return x if weight is None else (x * _inverse_rms(x, eps)).mul_(weight.float())


def _head_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """The gradient of `_head_norm`'s x, (N, heads, D) in fp32."""
    if weight is None:
        return grad
    full = x.float()
    inverse = _inverse_rms(full, eps)
    return _norm_gradient(grad * weight.float(), full * inverse, inverse)


def _norm_gradient(grad: torch.Tensor, normed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of x, given normed = x * inverse and inverse = 1 / rms(x); all in fp32."""
    along = (grad * normed).mean(-1, keepdim=True)
    return (grad - normed * along).mul_(inverse)


def _inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:  # (..., D) -> (..., 1)
    return x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


TORCH_ELEMENTWISE = Elementwise(
    rms_norm=rms_norm,
    rms_norm_backward=rms_norm_backward,
    swiglu=swiglu,
    swiglu_backward=swiglu_backward,
    split_heads=split_heads,
    split_heads_backward=split_heads_backward,
    exponentials=exponentials,
)
