"""Names and shapes of an exported adapter -> whether vLLM's LoRA loader takes every tensor.

The rules are those of vLLM 0.32 (`vllm/lora/` and `vllm/model_executor/models/`), as read there;
vLLM itself is not needed. What it computes with the tensors is not checked.
Axes: R rank, E experts, I and O input and output size of a layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tinkersmith.export.base_folder import BaseFolder, read_model_json
from tinkersmith.export.peft_files import VLLM_FOLDER
from tinkersmith.export.placement import DOWN, GATE, UP, expert_count
from tinkersmith.fingerprint import safetensors_header
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, VLLM_RANKS

VLLM_VERSION = "0.32"
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_MLP = frozenset({GATE, UP, DOWN})
_DELTA = frozenset({"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"})
_LATENT = frozenset({"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "q_proj", "o_proj"})
_IMAGES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


@dataclass(frozen=True, slots=True)
class VllmFamily:
    """What vLLM's class for a family takes a LoRA for."""

    layers: frozenset[str]  # last names of linear layers, as adapters name them
    output_layer: bool = True  # `embedding_modules` of the class names lm_head
    experts: tuple[str, ...] = ()  # names of the matrices where experts come one by one
    stacked_experts: bool = False  # experts come as `experts` and `experts.base_layer`
    renamed: tuple[tuple[str, str], ...] = ()  # beginnings of names in files, and in vLLM
    not_applied: frozenset[str] = frozenset()  # layers whose LoRA is loaded and has no effect
    takes_lora: bool = True


_SINGLE = (GATE, DOWN, UP)
_QWEN3_5 = VllmFamily(_ATTENTION | _MLP | _DELTA, renamed=_IMAGES)
_QWEN3_5_MOE = VllmFamily(_ATTENTION | _MLP | _DELTA, stacked_experts=True, renamed=_IMAGES)
VLLM_FAMILIES: dict[str, VllmFamily] = {
    "llama": VllmFamily(_ATTENTION | _MLP),
    "mistral": VllmFamily(_ATTENTION | _MLP, output_layer=False),
    "mixtral": VllmFamily(_ATTENTION, experts=("w1", "w2", "w3")),
    "qwen2": VllmFamily(_ATTENTION | _MLP, output_layer=False),
    "qwen2_moe": VllmFamily(_ATTENTION | _MLP, output_layer=False, experts=_SINGLE),
    "qwen3": VllmFamily(_ATTENTION | _MLP),
    "qwen3_moe": VllmFamily(_ATTENTION | _MLP, experts=_SINGLE),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5_MOE,
    "gpt_oss": VllmFamily(_ATTENTION, output_layer=False, stacked_experts=True),
    "nemotron_h": VllmFamily(
        _ATTENTION | {UP, DOWN, "in_proj", "out_proj", "fc1_latent_proj", "fc2_latent_proj"},
        experts=(UP, DOWN),
        renamed=(("backbone.", "model."),),
    ),
    # https://github.com/vllm-project/vllm/issues/48974: attention uses matrices that were made of
    # kv_b_proj when the base model was loaded.
    "deepseek_v3": VllmFamily(
        _LATENT | _MLP,
        output_layer=False,
        experts=_SINGLE,
        not_applied=frozenset({"kv_b_proj"}),
    ),
    "gemma3": VllmFamily(_ATTENTION | _MLP, output_layer=False, renamed=_IMAGES),
    "gemma3_text": VllmFamily(_ATTENTION | _MLP, output_layer=False),
    "kimi_k25": VllmFamily(frozenset(), takes_lora=False),
}


@dataclass(frozen=True, slots=True)
class VllmCheck:
    """What vLLM would do with an adapter."""

    tensors: int
    accepted: int  # of them: name and shape fit, and the LoRA is applied
    rank: int  # that --max-lora-rank must at least have
    problems: tuple[str, ...]  # sentences

    @property
    def passed(self) -> bool:
        """Whether vLLM takes and applies the whole adapter."""
        return not self.problems


def check_vllm_folder(adapter: Path, base: BaseFolder) -> VllmCheck:
    """Check an exported adapter, or the folder in it that is meant for vLLM.

    Raises:
        UserError: the adapter's configuration is damaged.
        DamagedWeights: the adapter's tensors are.
    """
    own = adapter / VLLM_FOLDER
    folder = own if own.is_dir() else adapter
    header = safetensors_header(folder / ADAPTER_WEIGHTS)
    shapes = {name: tuple(entry.shape) for name, entry in header.items()}
    return check_for_vllm(shapes, read_model_json(folder / ADAPTER_CONFIG), base)


def check_for_vllm(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], base: BaseFolder
) -> VllmCheck:
    """Check the tensors of an adapter by name and shape.

    Args:
        shapes: those of the tensors in adapter_model.safetensors.
        config: the adapter_config.json.
    """
    patterns: Mapping[str, int] = config.get("rank_pattern") or {}
    rank = max([int(config["r"]), *map(int, patterns.values())])
    own, inner = base.config.get("model_type"), base.text_config.get("model_type")
    family = VLLM_FAMILIES.get(str(own)) or VLLM_FAMILIES.get(str(inner))
    if family is None:
        problem = f"The rules of vLLM for the model type {own!r} are not known here."
        return VllmCheck(len(shapes), 0, rank, (problem,))
    if not family.takes_lora:
        problem = f"vLLM {VLLM_VERSION} takes no LoRA for the model type {own!r}."
        return VllmCheck(len(shapes), 0, rank, (problem,))
    modules = {_renamed(path, family) for path in base.layers()}
    problems: dict[str, None] = {}
    if rank > VLLM_RANKS[-1]:
        problems[f"The largest rank is {rank}, and vLLM takes at most {VLLM_RANKS[-1]}."] = None
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _TENSOR.fullmatch(name)
        if match is None or not name.startswith(PEFT_PREFIX):
            problems[f"vLLM does not know tensors like {name}."] = None
        else:
            pairs.setdefault(match[1].removeprefix(PEFT_PREFIX), {})[match[2]] = shape
    accepted = 0
    for path, sides in pairs.items():
        problem = _problem(path, sides, config, base, family, modules)
        if problem:
            problems[problem] = None
        else:
            accepted += len(sides)
    return VllmCheck(len(shapes), accepted, rank, tuple(problems))


def _renamed(path: str, family: VllmFamily) -> str:
    """A path of the files as vLLM's class names it."""
    for before, after in family.renamed:
        if f"{path}.".startswith(before):
            return (after + f"{path}.".removeprefix(before)).removesuffix(".")
    return path


def _problem(
    path: str,
    sides: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    base: BaseFolder,
    family: VllmFamily,
    modules: set[str],
) -> str:
    """Why vLLM does not take or apply the LoRA at `path`; "" if it does."""
    if len(sides) != 2:
        return f"{path} has only lora_{''.join(sides)}."
    last = path.rpartition(".")[2]
    if ".experts" in path:
        return _problem_of_experts(path, sides, config, base, family)
    if last == "lm_head" and not family.output_layer:
        return f"vLLM {VLLM_VERSION} takes no LoRA on lm_head of this family."
    if last != "lm_head" and last not in family.layers:
        return f"vLLM {VLLM_VERSION} takes no LoRA on {last} of this family."
    if _renamed(path, family) not in modules:
        return f"vLLM's model has no module {_renamed(path, family)}, so the LoRA has no effect."
    if last in family.not_applied:
        return f"vLLM {VLLM_VERSION} loads the LoRA on {last} and does not apply it."
    stored = base.weights.get(base.weight_of(base.output_layer if last == "lm_head" else path))
    wanted = stored.shape if stored is not None else ()
    rank = _rank_of(path, config)
    return _wrong_shape(path, sides, (rank,), wanted, rank)


def _problem_of_experts(
    path: str,
    sides: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    base: BaseFolder,
    family: VllmFamily,
) -> str:
    layer, _, rest = path.partition(".experts")
    layer += ".experts"
    count = expert_count(layer, base)
    if family.stacked_experts:
        if rest not in ("", ".base_layer"):
            return f"vLLM {VLLM_VERSION} wants the experts of {layer} as a stack, not {path}."
        rank = _rank_of(layer + (".gate_up_proj" if rest else ".down_proj"), config)
        sizes = _stacked_sizes(layer, base, first=bool(rest))
        return _wrong_shape(path, sides, (count, rank), sizes, count * rank)
    number, _, matrix = rest.removeprefix(".").partition(".")
    if matrix not in family.experts or not number.isdigit() or int(number) >= count:
        return f"vLLM {VLLM_VERSION} does not know {path} among the experts of this family."
    stored = base.weights.get(f"{path}.weight")
    if stored is not None:
        sizes = stored.shape
    elif matrix in (DOWN, "w2"):
        sizes = _stacked_sizes(layer, base, first=False)
    else:
        outputs, inputs = _stacked_sizes(layer, base, first=True) or (0, 0)
        gated = len(family.experts) == 3
        sizes = (outputs // 2 if gated else outputs, inputs) if outputs else ()
    rank = _rank_of(path, config)
    return _wrong_shape(path, sides, (rank,), sizes, rank)


def _stacked_sizes(layer: str, base: BaseFolder, *, first: bool) -> tuple[int, ...]:
    """(O, I) of an expert's weight; () where the base's sizes are unknown."""
    names = ("gate_up_proj", UP) if first else (DOWN,)
    stored = next(
        (base.weights[f"{layer}.{n}"] for n in names if f"{layer}.{n}" in base.weights), None
    )
    if stored is not None and len(stored.shape) == 3:
        outputs, inputs = stored.shape[1:]
        return (inputs, outputs) if base.transposed_experts else (outputs, inputs)
    single = base.weights.get(f"{layer}.0.{GATE if first else DOWN}.weight")
    if single is None or not single.shape:
        return ()
    return (2 * single.shape[0], single.shape[1]) if first else single.shape


def _rank_of(path: str, config: Mapping[str, Any]) -> int:
    """The rank that vLLM reads from the configuration, which decides the strength."""
    patterns: Mapping[str, int] = config.get("rank_pattern") or {}
    for pattern, rank in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return int(rank)
    return int(config["r"])


def _wrong_shape(
    path: str,
    sides: Mapping[str, tuple[int, ...]],
    rows: tuple[int, ...],
    sizes: tuple[int, ...],
    total: int,
) -> str:
    """Compare (R, I) and (O, R), or (E R, I) and (O, R E), with the base's sizes (O, I)."""
    outputs, inputs = sizes if len(sizes) == 2 else (sides["B"][0], sides["A"][-1])
    wanted = {"A": (prod(rows), inputs), "B": (outputs, total)}
    for side, shape in wanted.items():
        if tuple(sides[side]) != shape:
            return (
                f"{path} has lora_{side} {list(sides[side])} where vLLM {VLLM_VERSION} wants "
                f"{list(shape)}."
            )
    return ""
