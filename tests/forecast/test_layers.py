"""What a token leaves in a layer, against what autograd and the engine's kernels keep."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Cache,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.support.adapters import filled_adapter
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.engine.training.model_pass import ModelPass
from tinkersmith.forecast.layers import has_kernels, kept_by_transformers, probabilities
from tinkersmith.settings.reading import settings_from

TOKENS = 256
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
}
TWO: dict[str, Any] = {**SIZES, "num_hidden_layers": 2}
DELTA_NET: dict[str, Any] = {
    **TWO,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 96,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 32,
    "q_lora_rank": 96,
    "kv_lora_rank": 48,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
}
MAMBA: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "n_groups": 2,
    "ssm_state_size": 64,
    "chunk_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 96,
}
SINKS: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64}
WINDOWS: dict[str, Any] = {"sliding_window": 64}

FAMILIES: dict[str, tuple[Any, Any]] = {
    "Mistral": (MistralForCausalLM, MistralConfig(**TWO, **WINDOWS)),
    "Gemma 3": (Gemma3ForCausalLM, Gemma3TextConfig(**TWO, **WINDOWS)),
    "gpt-oss": (GptOssForCausalLM, GptOssConfig(**TWO, **SINKS)),
    "Qwen3-MoE": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**TWO, **EXPERTS)),
    "DeepSeek V3": (DeepseekV3ForCausalLM, DeepseekV3Config(**{**TWO, **LATENT})),
}
if hasattr(Cache, "get_conv_state"):
    FAMILIES |= {
        "Qwen3.5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig(**DELTA_NET)),
        "Qwen3.5 with experts": (
            Qwen3_5MoeForCausalLM,
            Qwen3_5MoeTextConfig(**DELTA_NET, **EXPERTS),
        ),
        "Qwen3-Next": (Qwen3NextForCausalLM, Qwen3NextConfig(**DELTA_NET, **EXPERTS)),
        "Nemotron 3": (NemotronHForCausalLM, NemotronHConfig(**SIZES, **MAMBA)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_token_leaves_is_what_autograd_keeps(family: str, tmp_path: Path) -> None:
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    make_tiny_tokenizer(tmp_path)
    base = load_base_model(family, tmp_path)
    adapter = filled_adapter(base, LoraConfig(rank=8))
    one_pass = ModelPass(base, adapter, [TOKENS], backward=True, budget=2**60)
    one_pass.forward(torch.arange(TOKENS))
    values = json.loads((tmp_path / "config.json").read_bytes())
    forecast = kept_by_transformers(values, settings_from({"LORA_RANK": 8}))
    assert len(forecast) == base.layers
    assert 0.85 < sum(forecast) / (one_pass.kept / 4 / TOKENS) < 1.15


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "qwen3", "sliding_window": 512, "use_sliding_window": False}, 0),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, 512),
        ({"model_type": "qwen3", "sliding_window": 512, "layer_types": ["full_attention"]}, 0),
        ({"model_type": "llama"}, 0),
    ],
)
def test_kernels_are_for_samples_within_the_window(values: dict[str, Any], window: int) -> None:
    config = {"num_hidden_layers": 2, "max_window_layers": 1, **values}
    assert has_kernels(config, 512)
    assert has_kernels(config, 513) == (window == 0)


@pytest.mark.parametrize("lengths", [[4898], [2048], [700, 700, 600], [86] * 23])
def test_attention_is_forecast_as_the_engine_keeps_it(lengths: list[int]) -> None:
    config = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    kept = TileAttention(lengths, 2, torch.float32, torch.device("cpu")).numbers_kept(8, 4, 8)
    forecast = probabilities(config, sum(lengths), max(lengths))
    assert 0.8 < forecast / (3 * kept) < 1.3
