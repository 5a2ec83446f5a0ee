"""Families with sliding windows, soft-capping and sinks, as tiny random models."""

from typing import Any

from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.support.families import SIZES
from tests.support.family_twin import WINDOW, TinyFamily, alternating_experts

_ALTERNATING = ["sliding_attention", "full_attention"]
_TWO_BASES: Any = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
# Caps that many scores and logits of these models come near.
_GEMMA: dict[str, Any] = {
    **SIZES,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}

FAMILIES = [
    TinyFamily("Mistral v0.1", MistralForCausalLM, MistralConfig(**SIZES, sliding_window=WINDOW)),
    TinyFamily(
        "Qwen2 with windows in its last layers",
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    ),
    TinyFamily(
        "Gemma 2",
        Gemma2ForCausalLM,
        Gemma2Config(
            **_GEMMA,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=6.0,
            layer_types=_ALTERNATING,
        ),
    ),
    TinyFamily(
        "Gemma 3",
        Gemma3ForCausalLM,
        Gemma3TextConfig(**_GEMMA, layer_types=_ALTERNATING, rope_parameters=_TWO_BASES),
    ),
    TinyFamily("Phi-3", Phi3ForCausalLM, Phi3Config(**SIZES, sliding_window=WINDOW)),
    TinyFamily(
        "gpt-oss",
        GptOssForCausalLM,
        GptOssConfig(
            **SIZES,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
            layer_types=_ALTERNATING,
            swiglu_limit=1.0,  # which many values of these experts exceed
            attention_bias=True,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 32,
            },
        ),
        experts=alternating_experts,
    ),
    TinyFamily(
        "Cohere2",
        Cohere2ForCausalLM,
        Cohere2Config(
            **{**SIZES, "tie_word_embeddings": True},
            logit_scale=0.25,
            sliding_window=WINDOW,
            layer_types=_ALTERNATING,
        ),
    ),
    TinyFamily(
        "Granite",
        GraniteForCausalLM,
        GraniteConfig(
            **SIZES,
            embedding_multiplier=2.0,
            attention_multiplier=0.4,
            residual_multiplier=0.5,
            logits_scaling=3.0,
        ),
    ),
]
