"""Families with a state, latent attention or shared experts, as tiny random models."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.support.families import EXPERTS, SIZES
from tests.support.tiny_models import make_tiny_tokenizer

DELTA_NET: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"],
}
SHARED_EXPERT: dict[str, Any] = {**EXPERTS, "shared_expert_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}

STATE_FAMILIES: dict[str, tuple[type, Any]] = {
    "qwen3_5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig(**SIZES, **DELTA_NET)),
    "qwen3_5_moe": (
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig(**SIZES, **DELTA_NET, **SHARED_EXPERT),
    ),
    "qwen3_next": (
        Qwen3NextForCausalLM,
        Qwen3NextConfig(**SIZES, **DELTA_NET, **SHARED_EXPERT),
    ),
    "deepseek_v3": (DeepseekV3ForCausalLM, DeepseekV3Config(**{**SIZES, **LATENT})),
}


def make_with_state(folder: Path, family: str) -> Path:
    kind, config = STATE_FAMILIES[family]
    return _save(folder, kind, config)


def make_with_images(folder: Path, *, tied: bool) -> Path:
    """A Qwen3.5 that also sees images, as its folders on the Hub are laid out."""
    text = Qwen3_5TextConfig(**{**SIZES, **DELTA_NET, "tie_word_embeddings": tied})
    config = Qwen3_5Config(
        text_config=text.to_dict(), vision_config=VISION, tie_word_embeddings=tied
    )
    return _save(folder, Qwen3_5ForConditionalGeneration, config)


def _save(folder: Path, kind: type, config: Any) -> Path:
    torch.manual_seed(0)
    model = kind(config).float()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # zeros would not show whether it is used
            buffer.normal_(0, 0.1)
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            # A state that fades fast makes large sums of exponents, whose differences lose digits
            # in float32: plain transformers then differ from float64 by 1e-4.
            weight.data -= 4
    model.save_pretrained(folder)
    make_tiny_tokenizer(folder)
    return folder
