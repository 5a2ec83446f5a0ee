"""Model families with and without experts, saved in Hugging Face format."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.tiny_models import make_tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "bos_token_id": None,
}


EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


LLAMA3: Any = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


FAMILIES: dict[str, tuple[type, Any]] = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **EXPERTS)),
    "qwen3_moe with a dense layer": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[0]),
    ),
    "qwen2_moe with shared experts": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=24),
    ),
    "granitemoe": (
        GraniteMoeForCausalLM,
        GraniteMoeConfig(
            **SIZES,
            num_local_experts=4,
            num_experts_per_tok=2,
            attention_multiplier=0.4,
            residual_multiplier=0.5,
        ),
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    ),
}


def make(folder: Path, family: str) -> Path:
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    kind(config).float().save_pretrained(folder)
    make_tiny_tokenizer(folder)
    return folder
