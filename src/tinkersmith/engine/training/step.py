"""Datums -> loss, log-probabilities and LoRA gradients, in packs without padding.

Axes: T packed tokens, M rows of T that reach the output layer, K targets of a position, H hidden
size.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import Datum, LossConfig, LossOutput
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.dense import DenseModel
from tinkersmith.engine.model.kernels import Kernels, TrainingPass
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dense_pass import DensePass, numbers_kept
from tinkersmith.engine.training.head_pass import Pass, head_pass, target_logprobs
from tinkersmith.engine.training.losses import (
    LOSSES,
    has_gradient,
    loss_options,
    sequence_log_ratios,
    truncated_tokens,
)
from tinkersmith.engine.training.model_pass import ModelPass
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
    return _run(Pass(base, adapter, loss_fn, config, backward=False), datums, only_graded)


def forward_backward(
    base: BaseModel,
    adapter: Adapter,
    datums: Sequence[Datum],
    loss_fn: str,
    config: LossConfig,
    *,
    only_graded: bool = False,
) -> LossOutput:
    """Like `forward`, and accumulate gradients into the adapter's weights.

    Raises:
        Refused: a loss is not finite. Gradients may then be half added: the caller drops them.
    """
    return _run(Pass(base, adapter, loss_fn, config, backward=True), datums, only_graded)


def _run(batch_pass: Pass, datums: Sequence[Datum], only_graded: bool) -> LossOutput:
    logprobs: dict[int, np.ndarray] = {}
    losses: dict[int, float] = {}
    for pack in packs([len(datum.tokens) for datum in datums], _budget(batch_pass)):
        packed = [datums[index] for index in pack]
        lengths = [len(datum.tokens) for datum in packed]
        pack_losses, pack_logprobs = _run_pack(batch_pass, packed, lengths, only_graded)
        values = zip(pack_losses.split(lengths), pack_logprobs.split(lengths), strict=True)
        for index, (datum_losses, datum_logprobs) in zip(pack, values, strict=True):
            loss = float(datum_losses.double().sum())
            if not np.isfinite(loss):
                raise Refused(
                    f"the loss of datum {index} is {loss}: the weights or its inputs hold values "
                    "that are not finite or too large; lower the learning rate or load an "
                    "earlier checkpoint."
                )
            losses[index] = loss
            shape = datums[index].inputs["target_tokens"].shape
            width = shape[1] if len(shape) == 2 else 1
            logprobs[index] = datum_logprobs[:, :width].cpu().numpy().reshape(shape)
    in_order = range(len(datums))
    ordered = [logprobs[index] for index in in_order]
    metrics = {"loss:sum": float(np.sum([losses[index] for index in in_order]))}
    if batch_pass.loss_fn == "stable_reinforce":
        metrics["truncated_importance_tokens:sum"] = float(
            sum(map(truncated_tokens, ordered, [datum.inputs for datum in datums]))
        )
    return LossOutput(ordered, metrics)


def _run_pack(
    batch_pass: Pass, datums: Sequence[Datum], lengths: Sequence[int], only_graded: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and log-probabilities, each (T, K), of datums packed end to end."""
    base = batch_pass.base
    tokens = torch.from_numpy(np.concatenate([datum.tokens for datum in datums])).to(base.device)
    inputs = _joined_inputs(datums, batch_pass)
    graded = has_gradient(batch_pass.loss_fn, inputs)  # (T,)
    rows = graded.nonzero()[:, 0] if only_graded else None  # (M,)
    if rows is not None and batch_pass.loss_fn != "gspo":  # whose ratio needs whole sequences
        inputs = {name: values[rows] for name, values in inputs.items()}
        graded = graded[rows]
    else:
        rows = None
    dense, kernels = base.dense, base.kernels
    if dense is not None and kernels is not None and dense.holds(max(lengths)):
        if any(datum.images for datum in datums):
            layers = _pass_with_images(dense, kernels, batch_pass, tokens, lengths)
        else:
            layers = _dense_pass(dense, kernels, batch_pass, lengths)
    else:
        layers = ModelPass(base, batch_pass.adapter, lengths, backward=batch_pass.backward)
    hidden = layers.forward(tokens, rows)
    if batch_pass.loss_fn == "gspo":
        logprobs = target_logprobs(base, batch_pass.adapter, hidden, inputs["target_tokens"])
        inputs["sequence_log_ratio"] = sequence_log_ratios(logprobs, inputs, lengths)
    output = head_pass(batch_pass, hidden, inputs, graded)
    if output.grad_hidden is not None:
        layers.backward(output.grad_hidden)
    if rows is None:
        return output.losses, output.logprobs
    count = len(tokens)
    return _in_place(output.losses, rows, count), _in_place(output.logprobs, rows, count)


def _budget(batch_pass: Pass) -> int:
    """Tokens of a pack: on a GPU as many as can keep all that their backward pass needs."""
    base, adapter = batch_pass.base, batch_pass.adapter
    if base.device.type != "cuda" or adapter is None or base.kernels is None or base.dense is None:
        return PACK_TOKENS
    # Of the GPU's whole memory, not of what is free now: packs are the same every time.
    total = torch.cuda.get_device_properties(base.device).total_memory
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    numbers = numbers_kept(base.dense, adapter) * base.layers
    return gpu_budget(total - weights, numbers * base.dtype.itemsize)


def _dense_pass(
    dense: DenseModel, kernels: Kernels, batch_pass: Pass, lengths: Sequence[int]
) -> TrainingPass:
    adapter = batch_pass.adapter
    if adapter is not None and kernels.prepared is not None:
        prepared = kernels.prepared(adapter, lengths)
        if prepared is not None:
            return prepared
    return DensePass(dense, kernels, adapter, lengths, backward=batch_pass.backward)


def _pass_with_images(
    dense: DenseModel,
    kernels: Kernels,
    batch_pass: Pass,
    tokens: torch.Tensor,  # (T,)
    lengths: Sequence[int],
) -> TrainingPass:
    vision = batch_pass.base.vision
    assert vision is not None  # see with_images
    return DensePass(
        dense,
        kernels,
        batch_pass.adapter,
        lengths,
        backward=batch_pass.backward,
        vision=vision,
        positions=vision.positions_of_documents(tokens, lengths),
    )


def _in_place(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The values (M, K) of some rows where they belong among `count` rows; the others are 0."""
    whole = values.new_zeros(count, values.shape[1])
    whole[rows] = values
    return whole


def _joined_inputs(datums: Sequence[Datum], batch_pass: Pass) -> dict[str, torch.Tensor]:
    """Each input that the loss uses as one (T, K) tensor; missing targets have weight 0."""
    loss = LOSSES[batch_pass.loss_fn]
    # What an optional input is where a datum lacks it.
    defaults = {"weights": 1.0, **loss_options(batch_pass.loss_fn, batch_pass.config)}
    widths = {datum.inputs["target_tokens"].size // len(datum.tokens) for datum in datums}
    widest = max(widths)
    names = {name for datum in datums for name in datum.inputs} & loss.used
    if len(widths) > 1:  # so only cross_entropy can be
        names.add("weights")
    joined = {}
    for name in names:
        arrays = []
        for datum in datums:
            targets = datum.inputs["target_tokens"].reshape(len(datum.tokens), -1)
            array = datum.inputs.get(name)
            if array is None:
                array = np.full(targets.shape, defaults[name], np.float32)
            array = array.reshape(targets.shape)
            arrays.append(np.pad(array, ((0, 0), (0, widest - array.shape[1]))))
        array = np.ascontiguousarray(np.concatenate(arrays))
        dtype = torch.int64 if name == "target_tokens" else torch.float32
        joined[name] = torch.from_numpy(array).to(device=batch_pass.base.device, dtype=dtype)
    return joined
