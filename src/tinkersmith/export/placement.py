"""A LoRA's name for a layer -> the region of the base model's weight that it changes.

Tinker's cloud trains some matrices one by one that the published models store joined: queries, keys
and values of a gated delta net, two inputs of a Mamba layer, the experts of a layer. A place says
which rows, or which expert, of the stored weight a trained matrix belongs to.
Axes: E experts, I and O input and output size.
"""

import re
from dataclasses import dataclass

from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import PREFIXES, BaseFolder

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
# Tinker's cloud names the matrices of an expert so, and so do Mixtral's files.
_CLOUD_MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_NUMBERED = {name: number for number, name in _CLOUD_MATRICES.items()}
GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert's matrix among those of its layer."""

    layer: str  # path of all the experts, such as model.layers.0.mlp.experts
    number: int
    matrix: str  # GATE, UP or DOWN


@dataclass(frozen=True, slots=True)
class WeightRegion:
    """The region of a stored weight that a matrix (O, I) of the LoRA is added to."""

    weight: str  # its name in full precision; see `stored.StoredWeight`
    index: tuple[int | slice, ...] = ()  # of the region; () for all of it
    transposed: bool = False  # the region is (I, O)
    expert: Expert | None = None
    first_row: int = 0  # of the region, if it is a part of the rows
    rows: int = 0  # of the whole weight, where the region is a part of them

    @property
    def module(self) -> str:
        """The path of the linear layer, or of the parameter."""
        return self.weight.removesuffix(".weight")


def find_place(path: str, base: BaseFolder, outputs: int) -> WeightRegion:
    """The place in `base` of the layer that the LoRA calls `path`, which has this many outputs.

    Raises:
        UserError: the base model has no such layer.
    """
    for name in _names(path, base):
        place = _place(name, base, outputs)
        if place is not None:
            return place
    raise UserError(
        f"The LoRA trains {path}, which the base model in {base.folder} does not have; exporting "
        "the rest would lose it. Check that this is the model it was trained on. If it is, its "
        "files name this layer in a way that the export does not know."
    )


def expert_count(layer: str, base: BaseFolder) -> int:
    """The number of experts of the layer that the LoRA calls `layer`; 0 if unknown."""
    for name in _names(layer, base):
        stack = base.weights.get(f"{name}.down_proj") or base.weights.get(f"{name}.up_proj")
        if stack is not None:
            return stack.shape[0] if stack.shape else 0
        numbered = re.compile(rf"{re.escape(name)}\.(\d+)\.")
        numbers = {int(match[1]) for key in base.weights if (match := numbered.match(key))}
        if numbers:
            return max(numbers) + 1
    return 0


def region_shape(place: WeightRegion, base: BaseFolder) -> tuple[int, ...]:
    """(O, I) of the region; () where the base's sizes are unknown."""
    shape: list[int] = []
    full = base.weights[place.weight].shape
    for position, size in enumerate(full):
        chosen = place.index[position] if position < len(place.index) else slice(None)
        if isinstance(chosen, slice):
            shape.append(len(range(*chosen.indices(size))))
    return tuple(reversed(shape)) if place.transposed else tuple(shape)


def text_path(path: str) -> str:
    """A path without the prefix of its family."""
    for prefix in PREFIXES:
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path


def _names(path: str, base: BaseFolder) -> list[str]:
    """The names under which the base's files may have the layer."""
    if path.rpartition(".")[2] in ("unembed_tokens", "lm_head"):
        return [base.output_layer]
    names = [path, base.text_prefix + text_path(path)]
    names += [re.sub(r"\.attn\.", ".self_attn.", name) for name in names]
    names += [name.replace(".mlp.experts", ".block_sparse_moe.experts") for name in names]
    return list(dict.fromkeys(names))


def _place(name: str, base: BaseFolder, outputs: int) -> WeightRegion | None:
    if base.has_layer(name):
        return WeightRegion(base.weight_of(name))
    expert = _EXPERT.fullmatch(name)
    if expert is not None:
        return _expert_place(expert[1], int(expert[2]), expert[3], base)
    return _rows_place(name, base, outputs)


def _expert_place(layer: str, number: int, matrix: str, base: BaseFolder) -> WeightRegion | None:
    wanted = _CLOUD_MATRICES.get(matrix, matrix)
    gated = _is_gated(layer, base)
    if not gated and matrix == "w1":
        wanted = UP  # the cloud's first matrix where there is no gate (Nemotron)
    expert = Expert(layer, number, wanted)
    for own in (wanted, _NUMBERED[wanted]):
        if base.has_layer(f"{layer}.{number}.{own}"):
            return WeightRegion(f"{layer}.{number}.{own}.weight", expert=expert)
    stack = f"{layer}.{DOWN if wanted == DOWN else 'gate_up_proj' if gated else UP}"
    stored = base.weights.get(stack)
    if stored is None:
        return None
    if stored.shape and number >= stored.shape[0]:
        return None
    everything = slice(None)
    transposed = base.transposed_experts
    halves: tuple[int | slice, ...] = ()
    if wanted != DOWN and gated:
        outputs = stored.shape[2 if transposed else 1] if stored.shape else 0
        if transposed:  # gpt-oss: gate and up take turns
            half = slice(0 if wanted == GATE else 1, None, 2)
        else:
            half = slice(0, outputs // 2) if wanted == GATE else slice(outputs // 2, None)
        halves = (everything, half) if transposed else (half, everything)
    return WeightRegion(stack, (number, *halves), transposed, expert)


def _is_gated(layer: str, base: BaseFolder) -> bool:
    names = (f"{layer}.gate_up_proj", f"{layer}.0.gate_proj.weight", f"{layer}.0.w1.weight")
    return any(name in base.weights for name in names)


def _rows_place(name: str, base: BaseFolder, outputs: int) -> WeightRegion | None:
    """The place of a matrix that the cloud trains alone and the files have joined with others."""
    parent, _, leaf = name.rpartition(".")
    if leaf in ("in_proj_q", "in_proj_k", "in_proj_v") and base.has_layer(f"{parent}.in_proj_qkv"):
        keys = _product(base, "linear_num_key_heads", "linear_key_head_dim")
        values = _product(base, "linear_num_value_heads", "linear_value_head_dim")
        first, size = {
            "in_proj_q": (0, keys),
            "in_proj_k": (keys, keys),
            "in_proj_v": (2 * keys, values),
        }[leaf]
        return _rows(f"{parent}.in_proj_qkv.weight", first, size, 2 * keys + values)
    if leaf in ("gate_proj", "x_proj") and base.has_layer(f"{parent}.in_proj"):
        size = _product(base, "mamba_num_heads", "mamba_head_dim")
        # gate, x, B and C of each group, and a time step of each head (Mamba 2)
        states = 2 * _product(base, "n_groups", "ssm_state_size")
        rows = 2 * size + states + _product(base, "mamba_num_heads")
        first = 0 if leaf == "gate_proj" else size
        return _rows(f"{parent}.in_proj.weight", first, outputs, rows)
    return None


def _rows(weight: str, first: int, size: int, rows: int) -> WeightRegion:
    return WeightRegion(weight, (slice(first, first + size),), first_row=first, rows=rows)


def _product(base: BaseFolder, *names: str) -> int:
    product = 1
    for name in names:
        value: object = base.text_config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"config.json in {base.folder} has {name} = {value!r}, so the rows of its joined "
                "projections are unknown. Copy the model again."
            )
        product *= value
    return product
