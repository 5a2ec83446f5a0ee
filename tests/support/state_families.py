"""Families with a state, latent attention or shared experts, as tiny random models."""

from typing import Any

import transformers
from transformers import (
    Cache,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.support.families import SIZES
from tests.support.family_twin import TinyFamily, experts_without_gate

# Shorter than a convolution, and longer than a chunk of the delta rule.
_LENGTHS = (40, 7, 2, 1, 70, 33)
_DELTA_NET: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"],
}
_SHARED_EXPERT: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
_LATENT: dict[str, Any] = {
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
_MAMBA: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 8,
    "chunk_size": 16,
    "time_step_min": 0.2,  # so that it is reached
    "n_routed_experts": 5,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
}
_JOINED_DELTA_NET = {"in_proj_qkv": ("in_proj_q", "in_proj_k", "in_proj_v")}
_JOINED_MAMBA = {"in_proj": ("gate_proj", "x_proj")}
_WITHOUT_LAYERS = {name: value for name, value in SIZES.items() if name != "num_hidden_layers"}

_DEEPSEEK = TinyFamily(
    "deepseek_v3", DeepseekV3ForCausalLM, DeepseekV3Config(**{**SIZES, **_LATENT})
)


def _all() -> list[TinyFamily]:
    return [
        TinyFamily(
            "qwen3_5",
            Qwen3_5ForCausalLM,
            Qwen3_5TextConfig(**SIZES, **_DELTA_NET),
            lengths=_LENGTHS,
            joined=_JOINED_DELTA_NET,
        ),
        TinyFamily(
            "qwen3_5_moe",
            Qwen3_5MoeForCausalLM,
            Qwen3_5MoeTextConfig(**SIZES, **_DELTA_NET, **_SHARED_EXPERT),
            lengths=_LENGTHS,
            joined=_JOINED_DELTA_NET,
        ),
        TinyFamily(
            "qwen3_next",
            Qwen3NextForCausalLM,
            Qwen3NextConfig(**SIZES, **_DELTA_NET, **_SHARED_EXPERT),
            lengths=_LENGTHS,
        ),
        _DEEPSEEK,
        TinyFamily(
            "nemotron_h",
            NemotronHForCausalLM,
            NemotronHConfig(**_WITHOUT_LAYERS, **_MAMBA),
            experts=experts_without_gate,
            lengths=_LENGTHS,
            joined=_JOINED_MAMBA,
        ),
        TinyFamily(
            "nemotron_h with latent experts",
            NemotronHForCausalLM,
            NemotronHConfig(**_WITHOUT_LAYERS, **_MAMBA, moe_latent_size=20),
            experts=experts_without_gate,
            lengths=_LENGTHS,
            joined=_JOINED_MAMBA,
        ),
    ]


# Older versions of transformers keep states in another way, which the engine refuses.
FAMILIES = _all() if hasattr(Cache, "get_conv_state") else [_DEEPSEEK]


def _kimi() -> TinyFamily:
    config = transformers.Kimi_K25Config(
        text_config=DeepseekV3Config(**{**SIZES, **_LATENT}).to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        tie_word_embeddings=False,
    )
    return TinyFamily("Kimi K2", transformers.Kimi_K25ForConditionalGeneration, config)


# Families whose folders hold a part that sees images, beside a text part of another family.
SEEING_FAMILIES = [_kimi()] if hasattr(transformers, "Kimi_K25Config") else []
