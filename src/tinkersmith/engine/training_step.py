"""Datums -> loss, log-probabilities and LoRA gradients, in packs without padding.

Axes: N tokens of a chunk, K targets a position, T packed tokens, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tinkersmith.engine.base_model import BaseModel
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.lora import Adapter
from tinkersmith.engine.losses import token_losses
from tinkersmith.engine.messages import Datum, LossConfig, LossOutput
from tinkersmith.engine.packing import packs

CHUNK_ROWS = 256  # rows of logits that live at a time: (256, V), never (T, V)


def forward(
    base: BaseModel,
    adapter: Adapter | None,
    datums: Sequence[Datum],
    loss_fn: str,
    config: LossConfig,
) -> LossOutput:
    """Loss and log-probabilities only."""
    with torch.no_grad():
        return _run(base, adapter, datums, loss_fn, config, backward=False)


def forward_backward(
    base: BaseModel, adapter: Adapter, datums: Sequence[Datum], loss_fn: str, config: LossConfig
) -> LossOutput:
    """The same, and the gradients are added to those that the adapter's weights hold.

    Raises:
        Refused: a loss is not finite. Gradients may then be half added: the caller drops them.
    """
    return _run(base, adapter, datums, loss_fn, config, backward=True)


def _run(base, adapter, datums, loss_fn, config, *, backward: bool) -> LossOutput:
    logprobs: list[np.ndarray] = []
    losses: list[float] = []
    for pack in packs([len(datum.tokens) for datum in datums]):
        chosen = [datums[index] for index in pack]
        pack_logprobs, pack_losses = _run_pack(base, adapter, chosen, loss_fn, config, backward)
        for index, loss in zip(pack, pack_losses, strict=True):
            if not np.isfinite(loss):
                raise Refused(
                    f"the loss of datum {index} is {loss}: the weights or its inputs hold values "
                    "that are not finite or too large; lower the learning rate or load an "
                    "earlier checkpoint."
                )
        logprobs += pack_logprobs
        losses += pack_losses
    return LossOutput(logprobs, {"loss:sum": float(np.sum(losses))})


def _run_pack(
    base: BaseModel,
    adapter: Adapter | None,
    datums: Sequence[Datum],
    loss_fn: str,
    config: LossConfig,
    backward: bool,
) -> tuple[list[np.ndarray], list[float]]:
    lengths = [len(datum.tokens) for datum in datums]
    tokens = torch.from_numpy(np.concatenate([datum.tokens for datum in datums]))
    hidden = base.hidden(tokens, lengths, adapter)  # (T, H)
    # The graph is cut here: head and loss run chunk by chunk and leave their gradient in `leaf`,
    # so that logits of only one chunk live at a time.
    leaf = hidden.detach().requires_grad_(backward)
    logprobs, losses = [], []
    start = 0
    for datum, length in zip(datums, lengths, strict=True):
        rows = leaf[start : start + length]
        start += length
        inputs = {name: _tensor(values, base.device) for name, values in datum.inputs.items()}
        parts, loss = [], 0.0
        for first in range(0, length, CHUNK_ROWS):
            chunk = slice(first, first + CHUNK_ROWS)
            part_inputs = {name: values[chunk] for name, values in inputs.items()}
            part = target_logprobs(base, adapter, rows[chunk], part_inputs["target_tokens"])
            part_loss = token_losses(loss_fn, part, part_inputs, config).sum()
            if backward:
                part_loss.backward()
            parts.append(part.detach())
            loss += float(part_loss.detach().double())
        logprobs.append(torch.cat(parts).cpu().numpy())
        losses.append(loss)
    if backward and hidden.requires_grad:
        hidden.backward(leaf.grad)
    return logprobs, losses


def target_logprobs(
    base: BaseModel, adapter: Adapter | None, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of targets (N,) or (N, K) under hidden states (N, H)."""
    logits = base.logits(hidden, adapter)  # (N, V)
    picked = logits.gather(-1, targets.view(len(targets), -1)).view(targets.shape)
    normaliser = logits.logsumexp(-1)
    return picked - (normaliser if targets.ndim == 1 else normaliser[:, None])


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    dtype = torch.int64 if values.dtype.kind == "i" else torch.float32
    return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)
