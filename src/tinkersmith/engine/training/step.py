"""Datums -> loss, log-probabilities and LoRA gradients, in packs without padding.

Axes: N tokens of a chunk, K targets a position, T packed tokens, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import Datum, LossConfig, LossOutput
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dense_pass import DensePass, numbers_kept
from tinkersmith.engine.training.head_pass import HeadOutput, head_pass
from tinkersmith.engine.training.losses import has_gradient
from tinkersmith.engine.training.packing import PACK_TOKENS, gpu_budget, packs


def forward(
    base: BaseModel,
    adapter: Adapter | None,
    datums: Sequence[Datum],
    loss_fn: str,
    config: LossConfig,
    *,
    only_graded: bool = False,
) -> LossOutput:
    """Loss and log-probabilities only; with `only_graded`, 0 where no loss depends on them."""
    return _run(base, adapter, datums, loss_fn, config, backward=False, only_graded=only_graded)


def forward_backward(
    base: BaseModel,
    adapter: Adapter,
    datums: Sequence[Datum],
    loss_fn: str,
    config: LossConfig,
    *,
    only_graded: bool = False,
) -> LossOutput:
    """The same, and the gradients are added to those that the adapter's weights hold.

    Raises:
        Refused: a loss is not finite. Gradients may then be half added: the caller drops them.
    """
    return _run(base, adapter, datums, loss_fn, config, backward=True, only_graded=only_graded)


def _run(
    base, adapter, datums, loss_fn, config, *, backward: bool, only_graded: bool
) -> LossOutput:
    logprobs: dict[int, np.ndarray] = {}
    losses: dict[int, float] = {}
    budget = _budget(base, adapter)
    for pack in packs([len(datum.tokens) for datum in datums], budget):
        chosen = [datums[index] for index in pack]
        lengths = [len(datum.tokens) for datum in chosen]
        tokens = torch.from_numpy(np.concatenate([datum.tokens for datum in chosen]))
        inputs = _joined_inputs(chosen, base.device)
        rows = has_gradient(loss_fn, inputs).nonzero()[:, 0] if only_graded else None
        head_inputs = inputs if rows is None else {k: v[rows] for k, v in inputs.items()}

        def head(hidden: torch.Tensor, inputs: dict[str, torch.Tensor] = head_inputs) -> HeadOutput:
            return head_pass(base, adapter, hidden, inputs, loss_fn, config, backward=backward)

        run_pack = _run_generic if base.kernels is None else _run_dense
        output = run_pack(base, adapter, tokens.to(base.device), lengths, rows, head, backward)
        found = (_in_place(part, rows, len(tokens)) for part in (output.losses, output.logprobs))
        parts = (part.split(lengths) for part in found)
        for index, datum, part_losses, part_logprobs in zip(pack, chosen, *parts, strict=True):
            loss = float(part_losses.double().sum())
            if not np.isfinite(loss):
                raise Refused(
                    f"the loss of datum {index} is {loss}: the weights or its inputs hold values "
                    "that are not finite or too large; lower the learning rate or load an "
                    "earlier checkpoint."
                )
            losses[index] = loss
            shape = datum.inputs["target_tokens"].shape
            width = shape[1] if len(shape) == 2 else 1
            logprobs[index] = part_logprobs[:, :width].cpu().numpy().reshape(shape)
    in_order = range(len(datums))
    total = float(np.sum([losses[index] for index in in_order]))
    return LossOutput([logprobs[index] for index in in_order], {"loss:sum": total})


def _budget(base: BaseModel, adapter: Adapter | None) -> int:
    """Tokens of a pack: on a GPU as many as can keep all that their backward pass needs."""
    if base.device.type != "cuda" or base.kernels is None or adapter is None:
        return PACK_TOKENS
    # Of the GPU's whole memory, not of what is free now: packs are the same every time.
    total = torch.cuda.get_device_properties(base.device).total_memory
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    assert base.dense is not None
    numbers = numbers_kept(base.dense, adapter) * base.layers
    return gpu_budget(total - weights, numbers * base.dtype.itemsize)


def _run_dense(base, adapter, tokens, lengths, rows, head, backward: bool) -> HeadOutput:
    kernels, training_pass = base.kernels, None
    if kernels.prepared is not None and adapter is not None:
        training_pass = kernels.prepared(adapter, lengths)
    if training_pass is None:
        training_pass = DensePass(base.dense, kernels, adapter, lengths, backward=backward)
    output = head(training_pass.forward(tokens, rows))
    if backward:
        training_pass.backward(output.grad_hidden)
    return output


def _run_generic(base, adapter, tokens, lengths, rows, head, backward: bool) -> HeadOutput:
    """Through the model's own layers and autograd: for every family without a path of its own."""
    with torch.set_grad_enabled(backward):
        hidden = base.hidden(tokens, lengths, adapter)  # (T, H)
        hidden = hidden if rows is None else hidden[rows]
    # The graph is cut here: the head forms its gradient itself.
    output = head(hidden.detach())
    if hidden.requires_grad:
        hidden.backward(output.grad_hidden)
    return output


def _in_place(part: torch.Tensor, rows: torch.Tensor | None, count: int) -> torch.Tensor:
    """The values of chosen rows where they belong among `count`; the others are 0."""
    if rows is None:
        return part
    whole = part.new_zeros(count, part.shape[1])
    whole[rows] = part
    return whole


def _joined_inputs(datums: Sequence[Datum], device: torch.device) -> dict[str, torch.Tensor]:
    """Each input of a pack as one (T, K) tensor; missing targets have weight 0."""
    widths = {datum.inputs["target_tokens"].size // len(datum.tokens) for datum in datums}
    widest = max(widths)
    names = {name for datum in datums for name in datum.inputs}
    if len(widths) > 1:  # so only cross_entropy can be
        names.add("weights")
    joined = {}
    for name in names:
        parts = []
        for datum in datums:
            targets = datum.inputs["target_tokens"].reshape(len(datum.tokens), -1)
            values = datum.inputs.get(name)
            # Only cross_entropy's weights may be missing: they are 1 then.
            part = np.ones(targets.shape, np.float32) if values is None else values
            part = part.reshape(targets.shape)
            parts.append(np.pad(part, ((0, 0), (0, widest - part.shape[1]))))
        array = np.ascontiguousarray(np.concatenate(parts))
        dtype = torch.int64 if name == "target_tokens" else torch.float32
        joined[name] = torch.from_numpy(array).to(device=device, dtype=dtype)
    return joined
