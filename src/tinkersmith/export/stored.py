"""Tensors of a base model's files -> its weights in full precision, whatever way they are stored.

Four ways are read: plain floating point; FP8 with a scale for each block (DeepSeek V3); INT4 packed
eight to an int32 with a scale for each group (compressed-tensors, Kimi K2); MXFP4 (gpt-oss).
Nothing is quantised here. Axes: O and I output and input size, E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.errors import UserError
from tinkersmith.fingerprint import text_config

if TYPE_CHECKING:
    from torch import Tensor

AS_IT_IS, FP8, INT4, MXFP4 = "plain", "FP8", "INT4", "MXFP4"
FLOATING = ("F64", "F32", "F16", "BF16")
_FP8_TYPES = ("F8_E4M3", "F8_E5M2")
# Stacked experts that the files of Granite's mixtures of experts call otherwise than transformers.
_STACKS = {
    ".block_sparse_moe.input_linear.weight": ".block_sparse_moe.experts.gate_up_proj",
    ".block_sparse_moe.output_linear.weight": ".block_sparse_moe.experts.down_proj",
}
# The 16 values of a 4-bit float with 2 bits of exponent and 1 of mantissa (OCP MX v1.0, 5.3.3).
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight in full precision, and the tensors that hold it."""

    name: str  # in full precision, such as model.layers.0.self_attn.q_proj.weight
    kind: str  # AS_IT_IS, FP8, INT4 or MXFP4; another type's name if it cannot be read
    shape: tuple[int, ...]  # in full precision; () where only the names are known
    tensors: tuple[str, ...]  # the first one decides in which file a replacement is written

    @property
    def quantised(self) -> bool:
        """Whether merging replaces the stored tensors by one in floating point."""
        return self.kind != AS_IT_IS


def stored_weights(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, StoredWeight]:
    """The weights of a model folder by name; `names` are all tensors, also of missing files."""
    weights: dict[str, StoredWeight] = {}
    for name in names:
        stored = _stored(name, shapes, dtypes, names)
        if stored is not None:
            weights[stored.name] = stored
    return weights


def _stored(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    names: Mapping[str, str],
) -> StoredWeight | None:
    shape, dtype = shapes.get(name, ()), dtypes.get(name, "")
    if name.endswith(".weight_packed"):
        stem = name.removesuffix("_packed")
        full = (shape[0], shape[1] * 8) if len(shape) == 2 else ()
        return StoredWeight(stem, INT4, full, (name, f"{stem}_scale", f"{stem}_shape"))
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in names:
        stem = name.removesuffix("_blocks")
        # (E, O, blocks, 16 bytes of 2 values) is (E, I, O) in full precision
        full = (shape[0], shape[2] * shape[3] * 2, shape[1]) if len(shape) == 4 else ()
        return StoredWeight(stem, MXFP4, full, (name, f"{stem}_scales"))
    if name.endswith(("_scale_inv", "_scale", "_scales", "_shape", "_zero_point", "_g_idx")):
        return None
    scale = f"{name}_scale_inv"
    if scale in names and (not dtype or dtype in _FP8_TYPES):
        return StoredWeight(name, FP8, shape, (name, scale))
    if name.endswith(".qweight"):
        return StoredWeight(f"{name.removesuffix('qweight')}weight", "GPTQ or AWQ", (), (name,))
    if not dtype or dtype in FLOATING:
        full_name = name
        for stored, stack in _STACKS.items():
            if name.endswith(stored):
                full_name = name.removesuffix(stored) + stack
        return StoredWeight(full_name, AS_IT_IS, shape, (name,))
    return StoredWeight(name, dtype, (), (name,))  # its shape in full precision is unknown


def check_readable(stored: StoredWeight, folder: object, config: Mapping[str, Any]) -> None:
    """Refuse a weight that is stored in a way that this module does not read.

    Raises:
        UserError: says which one, and what can be done.
    """
    wrong = ""
    if stored.kind == INT4:
        wrong = _unknown_int4(config)
    elif stored.kind not in (AS_IT_IS, FP8, MXFP4):
        wrong = f"its type is {stored.kind}"
    if wrong:
        raise UserError(
            f"{stored.name} in {folder} is quantised in a way that is not read here ({wrong}). "
            "Export the adapter, or name the folder of the unquantised model with --base-folder."
        )


def _unknown_int4(config: Mapping[str, Any]) -> str:
    quantisation = quantisation_of(config)
    groups = quantisation.get("config_groups")
    for group in cast("dict[str, Any]", groups).values() if isinstance(groups, dict) else ():
        inner: object = (
            cast("dict[str, Any]", group).get("weights") if isinstance(group, dict) else 0
        )
        weights = cast("dict[str, Any]", inner if isinstance(inner, dict) else {})
        if weights.get("num_bits") != 4 or weights.get("symmetric") is False:
            return f"{weights.get('num_bits')} bits, symmetric: {weights.get('symmetric')}"
        if weights.get("actorder"):
            return f"actorder: {weights['actorder']}"
    return ""


def quantisation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization_config of a model's config.json, also of its text part; {} if none."""
    for values in (config, text_config(config)):
        wanted: object = values.get("quantization_config")
        if isinstance(wanted, dict) and wanted:
            return cast("dict[str, Any]", wanted)
    return {}


def read_stored(
    stored: StoredWeight, tensor: "Callable[[str], Tensor]", config: Mapping[str, Any]
) -> "Tensor":
    """The weight in full precision: as stored if it is AS_IT_IS, bfloat16 for MXFP4, else float32.

    Args:
        tensor: gives a tensor of the model's files by name.
        config: the model's config.json.

    Raises:
        UserError: the tensors do not fit together.
    """
    if stored.kind == AS_IT_IS:
        return tensor(stored.tensors[0])
    parts = [tensor(name) for name in stored.tensors]
    try:
        if stored.kind == FP8:
            weight, scale = parts
            return _read_fp8(weight, scale, quantisation_of(config).get("weight_block_size"))
        if stored.kind == INT4:
            packed, scale, shape = parts
            return _read_int4(packed, scale, shape)
        blocks, scales = parts
        return _read_mxfp4(blocks, scales)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{stored.name} cannot be converted from {stored.kind}: its tensors do not fit "
            f"together ({reason.rstrip('.')}). Copy the model again."
        ) from None


def _read_fp8(
    weight: "Tensor",  # (O, I)
    scale: "Tensor",  # a number for each block of rows and columns, or one for the whole
    block: object,  # rows and columns of a block, as config.json has them
) -> "Tensor":
    import torch

    # A uint8 is an exponent: float8_e8m0 as some files write it.
    factors = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    if factors.numel() == 1:
        return weight.float() * factors.reshape(())
    rows, columns = cast("list[int]", block) if isinstance(block, list) else (128, 128)
    full = factors.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    if full.shape[0] - weight.shape[0] not in range(rows):
        raise ValueError(f"{list(scale.shape)} blocks of {rows} rows for {list(weight.shape)}")
    return weight.float() * full[: weight.shape[0], : weight.shape[1]]


def _read_int4(packed: "Tensor", scale: "Tensor", shape: "Tensor") -> "Tensor":
    import torch

    sizes: Any = shape
    rows, columns = cast("list[int]", sizes.tolist())
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    values = (packed[..., None] >> shifts) & 15  # (O, I / 8, 8), from the lowest bits on
    # compressed-tensors stores the value plus 8.
    signed = (values - 8).reshape(rows, -1)[:, :columns].float()
    groups = scale.shape[-1]
    return (signed.reshape(rows, groups, -1) * scale.float()[..., None]).reshape(rows, columns)


def _read_mxfp4(blocks: "Tensor", scales: "Tensor") -> "Tensor":
    import torch

    table = torch.tensor([*_FP4, *(-value for value in _FP4)], dtype=torch.bfloat16)
    experts, outputs = blocks.shape[:2]
    full = torch.empty(experts, prod(blocks.shape[2:]) * 2, outputs, dtype=torch.bfloat16)
    for expert in range(experts):  # one at a time: a stack is large
        pairs = torch.stack((blocks[expert] & 15, blocks[expert] >> 4), dim=-1).long()
        values = table[pairs].flatten(-2)  # (O, blocks, 32)
        exponents = scales[expert].int() - 127
        full[expert] = torch.ldexp(values.float(), exponents[..., None]).reshape(outputs, -1).T
    return full
