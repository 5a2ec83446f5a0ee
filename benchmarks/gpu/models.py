"""Random models: real shapes, made on the GPU in bfloat16, and tiny ones to compare two devices."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.attention import NAME as OUR_ATTENTION
from tinkersmith.engine.model.base_model import BaseModel, LinearStorage, base_model_of
from tinkersmith.engine.model.lora import Adapter

# ---- tiny models, whose answers on two devices are compared

_TINY: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,  # so that logits are far from each other
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_HEADS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 64}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "moe_intermediate_size": 128, "norm_topk_prob": True}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**_TINY, **_HEADS, intermediate_size=512),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_TINY, **_HEADS, **_EXPERTS, num_experts_per_tok=2),
    # Without a choice of experts, which the last digit of a number can change.
    "qwen3_moe, all": lambda: Qwen3MoeConfig(**_TINY, **_HEADS, **_EXPERTS, num_experts_per_tok=8),
    "gemma": lambda: GemmaConfig(**_TINY, **_HEADS, intermediate_size=512),
    "gpt_neox": lambda: GPTNeoXConfig(**_TINY, intermediate_size=512),
}


def tiny_model(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """A random model of a family on the CPU, its weights rounded to `dtype` and held in float32.

    Norms differ from 1 and biases from 0: such values hide errors.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        FAMILIES[family](), dtype=torch.float32, attn_implementation=OUR_ATTENTION
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.to(dtype).float()


def moved(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of `model` on a device, in `dtype`."""
    return copy.deepcopy(model).to(device, dtype)  # type: ignore[arg-type]


def base_of(model: PreTrainedModel, storage: LinearStorage | None = None) -> BaseModel:
    """`model`, made with the engine's attention, as the engine loads it.

    It goes through transformers' own layers and autograd, in packs, until a path gives it kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        return base_model_of("random", Path(folder), model, model.device, storage)


def filled_adapter(base: BaseModel, rank: int = 16) -> Adapter:
    """An adapter on all parts that changes something: its B matrices are not zero."""
    flags = {flag: bool(base.parts[layers]) for flag, layers in _FLAGS.items()}
    adapter = new_adapter(base, LoraConfig(rank, 0, **flags))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return adapter


_FLAGS = {"train_attn": "attention", "train_mlp": "mlp", "train_unembed": "unembed"}

# ---- real shapes, whose speed is measured

_COMMON = {"head": 128, "LoRA rank": 32}
SHAPES: dict[str, dict[str, int]] = {
    "Qwen3-8B": _COMMON
    | {"hidden": 4096, "layers": 36, "heads": 32, "key/value heads": 8, "mlp": 12288},
    # "mlp" is that of the experts that a token has, for the count of operations
    "Qwen3-30B-A3B": _COMMON
    | {"hidden": 2048, "layers": 48, "heads": 32, "key/value heads": 4, "mlp": 8 * 768}
    | {"experts": 128, "experts a token": 8},
    "Qwen3-0.6B": _COMMON
    | {"hidden": 1024, "layers": 28, "heads": 16, "key/value heads": 8, "mlp": 3072},
}
VOCABULARY = 151_936
_TINY_COMMON = {"head": 16, "LoRA rank": 4, "hidden": 64, "layers": 2, "heads": 4}
TINY: dict[str, dict[str, int]] = {  # for --quick
    "Qwen3-8B": _TINY_COMMON | {"key/value heads": 2, "mlp": 96},
    "Qwen3-30B-A3B": _TINY_COMMON
    | {"key/value heads": 2, "mlp": 2 * 48, "experts": 4, "experts a token": 2},
    "Qwen3-0.6B": _TINY_COMMON | {"key/value heads": 2, "mlp": 64},
}
TINY_VOCABULARY = 512


def shaped_config(shape: dict[str, int], vocabulary: int) -> PreTrainedConfig:
    """The configuration of a Qwen3, or with "experts" of a Qwen3-MoE."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["key/value heads"],
        "head_dim": shape["head"],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    if "experts" not in shape:
        return Qwen3Config(**common, intermediate_size=shape["mlp"])
    active = shape["experts a token"]
    return Qwen3MoeConfig(
        **common,
        num_experts=shape["experts"],
        num_experts_per_tok=active,
        moe_intermediate_size=shape["mlp"] // active,
        norm_topk_prob=True,
    )


def shaped_model(
    shape: dict[str, int], vocabulary: int, device: str, attention: str
) -> PreTrainedModel:
    """A random model in bfloat16, made on `device`: the same weights for every contestant there."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            shaped_config(shape, vocabulary), dtype=torch.bfloat16, attn_implementation=attention
        )
