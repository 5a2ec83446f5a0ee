"""Bytes of the Tinker wire <-> messages. Protobuf for batches and samples, JSON for the rest.

Reads leniently: an unknown field is refused only if it changes the result.
"""

import contextlib
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import (
    ADAMW,
    DIMUON,
    AdamParams,
    BatchRequest,
    Datum,
    DimuonParams,
    ImageChunk,
    LoraConfig,
    LossOutput,
    OptimParams,
    SampleRequest,
    SampleResult,
    SparseLayout,
)
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.bodies import MAX_BODY, Address, Envelope
from tinkersmith.engine.server.fields import Body
from tinkersmith.engine.server.image_files import image_chunk


def _load_protocol() -> ModuleType:
    """Load the SDK's message classes without `import tinker`, which takes seconds."""
    name = "tinker.proto.tinker_public_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("tinker")
    if package is None or not package.submodule_search_locations:
        raise ImportError("the tinker SDK is not installed")
    file = Path(package.submodule_search_locations[0], "proto", "tinker_public_pb2.py")
    spec = importlib.util.spec_from_file_location("tinkersmith_tinker_public_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pb: Any = _load_protocol()

_DTYPES = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}


def read_batch(envelope: Envelope) -> BatchRequest:
    """Parse a forward_backward body. If it cannot be parsed, `datums` holds the reason."""
    if isinstance(envelope.plain, Refused):
        return _unreadable_batch(envelope.address, envelope.plain)
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(envelope.plain)
    except DecodeError:
        reason = Refused("the body is not a ForwardBackwardRequest protobuf message.")
        return _unreadable_batch(envelope.address, reason)
    try:
        datums = [_read_datum(datum, index) for index, datum in enumerate(message.data)]
    except Refused as refusal:
        datums = Refused(str(refusal))  # without its traceback, which holds the message
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        config[key] = value.text if value.WhichOneof("value") == "text" else value.number
    return BatchRequest(
        model_id=envelope.address.model_id,
        seq_id=envelope.address.seq_id,
        datums=datums,
        loss_fn=message.loss_fn,
        config=config,
        forward_only=message.forward_only,
    )


def _unreadable_batch(address: Address, reason: Refused) -> BatchRequest:
    # Counts as a forward_backward: its step loses gradients, so the optim_step must fail too.
    return BatchRequest(*address, datums=reason, loss_fn="", config={}, forward_only=False)


def _read_datum(message: Any, index: int) -> Datum:
    tokens = [np.zeros(0, np.int64)]
    images: list[ImageChunk] = []
    for chunk in message.model_input:
        kind = chunk.WhichOneof("chunk")
        if kind == "image":
            images.append(_read_image(chunk.image, sum(map(len, tokens)), f"datum {index}"))
            continue
        if kind != "encoded_text":
            raise Refused(f"datum {index} has a chunk of kind {kind}; {_SUPPORTED}.")
        tokens.append(_numbers(chunk.encoded_text.tokens, np.dtype("<i4"), f"datum {index}"))
    inputs = {
        name: _read_tensor(tensor, f"datum {index}, {name}")
        for name, tensor in message.loss_fn_inputs.items()
    }
    datum = Datum(np.concatenate(tokens).astype(np.int64), inputs, chunks=tuple(images))
    targets = len(inputs["target_tokens"]) if "target_tokens" in inputs else 0
    # What an image has is checked with the model; the SDK counts what it says here.
    inputs_length = len(datum.tokens) + sum(image.expected_tokens or 0 for image in images)
    lengths = {"model_input_spans": inputs_length, "loss_fn_input_spans": targets}
    spans = {name: getattr(message, name, []) for name in lengths}  # older SDKs know none
    if not any(spans.values()):
        return datum
    for name, length in lengths.items():
        covered = sum(getattr(span, span.WhichOneof("span")).length for span in spans[name])
        if covered != length:
            raise Refused(
                f"datum {index}: its {name} cover {covered:,} tokens; there are {length:,}."
            )
    return dataclasses.replace(datum, has_provenance=True)


_SUPPORTED = "text and images are supported"


def _read_image(message: Any, place: int, where: str) -> ImageChunk:
    """An image of a batch, behind so many tokens of text."""
    if message.HasField("override_dimensions"):
        raise Refused(f"{where}: override_dimensions of an image are not supported; resize it.")
    expected = message.expected_tokens if message.HasField("expected_tokens") else None
    return image_chunk(message.data, message.format, place, f"an image of {where}", expected)


def _read_tensor(message: Any, where: str) -> np.ndarray:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise Refused(f"{where}: its dtype is not float32 or int64.")
    if len(message.shape) > 2:
        raise Refused(f"{where}: its shape has {len(message.shape)} axes; it may have one or two.")
    shape = tuple(message.shape)
    if message.WhichOneof("encoding") == "sparse_csr":
        sparse = message.sparse_csr
        if len(shape) != 2:
            raise Refused(f"{where}: a sparse tensor needs a shape of two axes.")
        values = _numbers(sparse.values, dtype, where)
        columns = _numbers(sparse.col_indices, np.dtype("<i8"), where)
        row_starts = _numbers(sparse.crow_indices, np.dtype("<i8"), where)
        return _dense(values, SparseLayout(row_starts, columns), shape, 0, where)
    values = _numbers(message.dense, dtype, where)
    if not shape:
        return values
    return _reshaped(values, shape, where)


def _reshaped(values: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    # The largest axis matters where another is 0: numpy has no array of 0 times 2**62 values.
    if math.prod(shape) != values.size or min(shape) < 0 or max(shape) > MAX_BODY:
        raise Refused(f"{where}: {values.size} values do not fit the shape {list(shape)}.")
    return values.reshape(shape)


def _dense(
    values: np.ndarray, layout: SparseLayout, shape: Sequence[int], elsewhere: int, where: str
) -> np.ndarray:
    """The matrix that has `values` in the cells of `layout`, and `elsewhere` in the others."""
    rows, columns = shape
    starts = layout.row_starts
    fits = (
        min(shape) >= 0
        and len(starts) == rows + 1
        and starts[0] == 0
        and (np.diff(starts) >= 0).all()
    )
    if not fits or starts[-1] != len(values):
        raise Refused(f"{where}: the sparse indices do not fit the shape {list(shape)}.")
    outside = (layout.columns < 0) | (layout.columns >= columns)
    if len(layout.columns) != len(values) or outside.any():
        raise Refused(f"{where}: a sparse column is outside the shape {list(shape)}.")
    if max(rows, 1) * columns * values.itemsize > MAX_BODY:
        raise Refused(f"{where}: the shape {list(shape)} is too large.")
    dense = np.full(shape, elsewhere, values.dtype)
    dense[layout.cells()] = values
    return dense


def _numbers(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise Refused(f"{where}: {len(data)} bytes are not a whole number of {dtype} values.")
    return np.frombuffer(data, dtype).copy()  # torch needs memory that it may write to


def batch_output(output: LossOutput) -> bytes:
    """A ForwardBackwardOutput message. Neighbours with targets of equal width share a record."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    start = 0
    for end in range(1, len(output.logprobs) + 1):
        if end < len(output.logprobs) and (
            output.logprobs[end].shape[1:] == output.logprobs[start].shape[1:]
        ):
            continue
        group = output.logprobs[start:end]
        record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(group))
        tensor = record.fields["logprobs"]
        tensor.dtype = pb.DTYPE_FLOAT32
        tensor.data = b"".join(logprobs.astype("<f4").tobytes() for logprobs in group)
        offsets = np.cumsum([0, *(logprobs.size * 4 for logprobs in group)])
        tensor.offsets = offsets.astype("<i8").tobytes()
        tensor.trailing_shape.extend(group[0].shape[1:])
        start = end
    for name, value in output.metrics.items():
        message.metrics[name] = value
    return message.SerializeToString()


def read_lora_config(body: Body) -> LoraConfig:
    """The lora_config of a create_model body; an absent one is the SDK's."""
    if body.get("lora_config") is None:
        return LoraConfig(DEFAULT_RANK)
    config = fields.json_object(body, "lora_config")
    known = {"rank", "seed", "train_attn", "train_mlp", "train_unembed"}
    fields.refuse_unknown(config, known, "lora_config")
    seed = fields.optional_integer(config, "seed")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise Refused(f"seed is {seed}; it must be a whole number of at most 64 bits.")
    return LoraConfig(
        rank=fields.integer(config, "rank"),
        seed=seed,
        train_attn=fields.flag(config, "train_attn", True),
        train_mlp=fields.flag(config, "train_mlp", True),
        train_unembed=fields.flag(config, "train_unembed", True),
    )


DEFAULT_RANK = 32  # of the SDK's create_lora_training_client
# What older SDKs send besides, with its default: a later version of the interface dropped it.
_DROPPED_FROM_DIMUON = {"damping": 1e-4, "rank_lr_correction_exponent": 0.175}


def read_optimizer(body: Body, default: str = ADAMW) -> str:
    """The optimizer that a body's optimizer_config names."""
    config = fields.json_object(body, "optimizer_config")
    kind = default if config.get("type") is None else fields.string(config, "type")
    if kind not in (ADAMW, DIMUON):
        raise Refused(f"optimizer {kind!r} is not supported; use {ADAMW} or {DIMUON}.")
    version = fields.optional_integer(config, "version", 1)
    if version != 1:
        raise Refused(f"{kind} of version {version} is not supported; version 1 is.")
    fields.refuse_unknown(config, {"type", "version"}, "optimizer_config")
    return kind


def optimizer_config(kind: str) -> dict[str, object]:
    """An optimizer as an answer names it."""
    return {"type": kind, "version": 1} if kind == DIMUON else {"type": kind}


def read_optim_params(body: Body) -> OptimParams:
    """The parameters of an optim_step body."""
    where = "optimizer_params" if body.get("optimizer_params") else "adam_params"
    if where == "optimizer_params" and body.get("adam_params"):
        raise Refused("send adam_params or optimizer_params, not both.")
    params = fields.json_object(body, where)
    default = ADAMW if where == "adam_params" else None
    kind = default if params.get("type") is None else fields.string(params, "type")
    if kind not in (ADAMW, "adam", DIMUON):
        raise Refused(f"{where} has type = {kind!r}; it must be {ADAMW!r} or {DIMUON!r}.")
    known = DimuonParams if kind == DIMUON else AdamParams
    names = known.__dataclass_fields__
    left = dict(params)
    if kind == DIMUON:
        for name, value in _DROPPED_FROM_DIMUON.items():
            if left.get(name) == value:
                del left[name]
    fields.refuse_unknown(left, {*names, "type"}, where)
    values = {name: fields.number(params, name) for name in names if name in params}
    if kind == DIMUON and "learning_rate" not in values:
        raise Refused(f"{where} has no learning_rate.")
    return known(**values)


def read_sample_request(body: Body) -> SampleRequest:
    """An asample body, without its address."""
    params = fields.json_object(body, "sampling_params")
    fields.refuse_unknown(
        params,
        {"max_tokens", "seed", "stop", "temperature", "top_k", "top_p", "type"},
        "sampling_params",
    )
    fields.flag(body, "record_stability_info", False)  # our stable_reinforce needs no record
    targets, layout = _read_targets(body)
    prompt, images = _read_prompt(body)
    return SampleRequest(
        prompt=prompt,
        chunks=images,
        num_samples=fields.optional_integer(body, "num_samples", 1),
        max_tokens=fields.optional_integer(params, "max_tokens"),
        temperature=fields.optional_number(params, "temperature", 1.0),
        top_k=fields.optional_integer(params, "top_k", -1),
        top_p=fields.optional_number(params, "top_p", 1.0),
        seed=fields.optional_integer(params, "seed"),
        stop=_read_stop(params.get("stop")),
        prompt_logprobs=fields.flag(body, "prompt_logprobs", False),
        prompt_logprobs_last_n=fields.optional_integer(body, "prompt_logprobs_last_n"),
        topk_prompt_logprobs=fields.optional_integer(body, "topk_prompt_logprobs", 0),
        topk_sample_logprobs=fields.optional_integer(body, "topk_sample_logprobs", 0),
        target_prompt_logprobs=targets,
        target_layout=layout,
        prompt_alt_tokens_k=fields.optional_integer(body, "prompt_alt_tokens_k", 0),
    )


def _read_prompt(body: Body) -> tuple[list[int], tuple[ImageChunk, ...]]:
    tokens: list[int] = []
    images: list[ImageChunk] = []
    for chunk in fields.object_list(fields.json_object(body, "prompt"), "chunks"):
        kind = chunk.get("type", "encoded_text")
        if kind == "image":
            images.append(_read_prompt_image(chunk, len(tokens)))
            continue
        if kind == "image_asset_pointer":
            raise Refused(
                "the prompt has a chunk of kind image_asset_pointer: this engine fetches no "
                "images; send the bytes of the file as an ImageChunk."
            )
        if kind != "encoded_text":
            raise Refused(f"the prompt has a chunk of kind {kind}; {_SUPPORTED}.")
        ids: object = [] if chunk.get("tokens") is None else chunk["tokens"]
        # One set of types, not a test for each token: prompts are long, and this runs on the
        # event loop.
        if not fields.is_list(ids) or set(map(type, ids)) - {int}:
            raise Refused("the prompt's tokens must be a list of whole numbers.")
        tokens += ids
    return tokens, tuple(images)


def _read_prompt_image(chunk: Body, place: int) -> ImageChunk:
    where = "an image of the prompt"
    fields.refuse_unknown(chunk, {"type", "data", "format", "expected_tokens"}, where)
    expected = fields.optional_integer(chunk, "expected_tokens")
    data, kind = fields.string(chunk, "data"), fields.string(chunk, "format")
    return image_chunk(data, kind, place, where, expected)


def _read_stop(stop: object) -> list[int] | list[str] | None:
    if stop is None:
        return None
    items: object = [stop] if isinstance(stop, str) else stop
    if not fields.is_list(items):
        raise Refused("stop must be a string, a list of strings, or a list of token ids.")
    if all(isinstance(item, str) and item for item in items):
        return items
    if all(isinstance(item, int) for item in items):
        return items
    raise Refused("stop must hold either non-empty strings or token ids, not both.")


def _read_targets(body: Body) -> tuple[np.ndarray | None, SparseLayout | None]:
    """Token ids for each position of the prompt except the first; -1 where none is requested."""
    name = "target_prompt_logprobs"
    if body.get(name) is None:
        return None, None
    tensor = fields.json_object(body, name)
    values = _whole_numbers(tensor, "data", name)
    if tensor.get("shape") is None:
        shape = [values.size]
    else:
        shape = [int(size) for size in _whole_numbers(tensor, "shape", name)]
    if tensor.get("sparse_crow_indices") is None:
        return _reshaped(values, shape or [values.size], name), None
    row_starts = _whole_numbers(tensor, "sparse_crow_indices", name)
    columns = _whole_numbers(tensor, "sparse_col_indices", name)
    if len(shape) != 2:
        raise Refused(f"{name}: a sparse tensor needs a shape of two axes.")
    layout = SparseLayout(row_starts, columns)
    return _dense(values, layout, shape, -1, name), layout


def _whole_numbers(tensor: Body, name: str, where: str) -> np.ndarray:
    values: object = tensor.get(name)
    if fields.is_list(values) and not set(map(type, values)) - {int}:
        with contextlib.suppress(OverflowError):
            return np.asarray(values, np.int64)
    raise Refused(f"{where}: {name} must be a list of whole numbers of at most 64 bits.")


def sample_output(result: SampleResult, target_layout: SparseLayout | None = None) -> bytes:
    """A SampleResponse message, with the target log-probabilities in the layout of the request."""
    message = pb.SampleResponse()
    for sequence in result.sequences:
        stopped = sequence.stop_reason == "stop"
        added = message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH,
            tokens=np.asarray(sequence.tokens, "<i4").tobytes(),
            logprobs=np.asarray(sequence.logprobs, "<f4").tobytes(),
        )
        if sequence.topk is not None:
            _write_topk(added.topk_sampled_logprobs, *sequence.topk)
    message.prompt_cache_hit_tokens = result.prompt_cache_hit_tokens
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = result.prompt_logprobs.astype("<f4").tobytes()
    if result.topk_prompt_logprobs is not None:
        _write_topk(message.topk_prompt_logprobs, *result.topk_prompt_logprobs)
    if result.target_prompt_logprobs is not None:
        _write_tensor(message.target_prompt_logprobs, result.target_prompt_logprobs, target_layout)
    if result.prompt_alt_tokens is not None:
        ids, logprobs = result.prompt_alt_tokens
        _write_tensor(message.prompt_alt_tokens.tokens, ids)
        _write_tensor(message.prompt_alt_tokens.logprobs, logprobs)
    return message.SerializeToString()


def _write_topk(message: Any, ids: np.ndarray, logprobs: np.ndarray) -> None:
    message.length, message.k = ids.shape
    message.token_ids = ids.astype("<i4").tobytes()
    message.logprobs = logprobs.astype("<f4").tobytes()


def _write_tensor(message: Any, values: np.ndarray, layout: SparseLayout | None = None) -> None:
    whole = values.dtype.kind == "i"
    dtype = "<i4" if whole else "<f4"
    message.dtype = pb.DTYPE_INT32 if whole else pb.DTYPE_FLOAT32
    message.shape.extend(values.shape)
    if layout is None:
        message.dense = values.astype(dtype).tobytes()
        return
    message.sparse_csr.values = values[layout.cells()].astype(dtype).tobytes()
    message.sparse_csr.crow_indices = layout.row_starts.astype("<i8").tobytes()
    message.sparse_csr.col_indices = layout.columns.astype("<i8").tobytes()


def json_numbers(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """The metrics with NaN and infinities as strings, which the SDK reads as numbers: JSON has
    none."""
    return {name: _json_number(value) for name, value in metrics.items()}


def _json_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
