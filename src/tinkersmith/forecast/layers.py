"""A model's config.json -> the numbers that a token leaves in each layer for the backward pass.

They were counted layer by layer: tests/forecast/test_layers.py counts them again.
"""

from collections.abc import Sequence
from typing import Any, cast

from tinkersmith.settings.fields import Settings

_KERNELS = ("llama", "mistral", "qwen2", "qwen3")  # families that have kernels
_TILE = 128  # tokens whose attention is one product
_CHUNK = 64  # tokens that the gated delta rule computes at a time
_STATE_KINDS = ("linear_attention", "mamba", "M")
_ATTENTION_KINDS = ("full_attention", "sliding_attention", "attention", "*")
_MLP_KINDS = ("mlp", "-")  # of families whose layers are one thing each
_EXPERTS_KINDS = ("moe", "E")


def has_kernels(config: dict[str, Any], longest: int) -> bool:
    """Whether the engine computes the layers by its own kernels, up to a sample of `longest`.

    Else they are those of transformers, whose attention keeps no probabilities.
    """
    return config.get("model_type") in _KERNELS and longest <= (_window(config) or longest)


def kept_by_kernels(config: dict[str, Any], settings: Settings) -> list[int]:
    """Numbers that a token leaves in each layer that kernels compute."""
    hidden, heads, key_heads, head, inner = _sizes(config)
    projected = 2 * (heads + 2 * key_heads) * head + heads * head  # before and after the rotation
    layer = projected + 2 * hidden + 2 * inner + 4 * settings.lora_rank
    return [layer] * _number(config, "num_hidden_layers")


def kept_by_transformers(config: dict[str, Any], settings: Settings) -> list[int]:
    """Numbers that a token leaves in each layer, where these are those of transformers."""
    kinds = _kinds(config)
    apart = any(kind in (*_MLP_KINDS, *_EXPERTS_KINDS) for kind in kinds)  # each layer is one thing
    hidden = _number(config, "hidden_size")
    layers: list[int] = []
    for place, kind in enumerate(kinds):
        kept = 7 * settings.lora_rank
        if kind in _STATE_KINDS:
            kept += _state(config)
        elif kind in _ATTENTION_KINDS:
            kept += _attention(config)
        if not apart:
            dense = place < _number(config, "first_k_dense_replace")
            kept += 4 * hidden + _mlp(config, experts=not dense)
        elif kind in (*_MLP_KINDS, *_EXPERTS_KINDS):
            kept += _mlp(config, experts=kind in _EXPERTS_KINDS)
        # Norms have their input and their output; Gemma has one more after each part.
        norms = 6 if "gemma" in str(config.get("model_type")) else 2
        layers.append(kept + norms * hidden)
    return layers


def passing(config: dict[str, Any]) -> int:
    """Numbers of a token that one layer's pass needs beside what is kept."""
    hidden, heads, key_heads, head, inner = _sizes(config)
    return 4 * hidden + 3 * inner + 2 * (heads + 2 * key_heads) * head


def probabilities(config: dict[str, Any], tokens: int, longest: int) -> int:
    """The attention probabilities of all layers, where tokens see those before them in a sample."""
    _, heads, *_ = _sizes(config)
    return _number(config, "num_hidden_layers") * heads * tokens * (longest + 3 * _TILE) // 2


def _number(config: dict[str, Any], name: str) -> int:
    value: object = config.get(name)
    return value if isinstance(value, int) else 0


def _kinds(config: dict[str, Any]) -> list[str]:
    """What each layer computes."""
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        kinds: object = config.get(name)
        if isinstance(kinds, (str, list)) and kinds:
            return [str(kind) for kind in cast("Sequence[object]", kinds)]
    return ["full_attention"] * _number(config, "num_hidden_layers")


def _attention(config: dict[str, Any]) -> int:
    _, heads, key_heads, head, _ = _sizes(config)
    if latent := _number(config, "kv_lora_rank"):  # keys and values of each head come from it
        query = _number(config, "qk_nope_head_dim") + _number(config, "qk_rope_head_dim")
        value = _number(config, "v_head_dim")
        return heads * (4 * query + value) + latent + _number(config, "q_lora_rank")
    if _number(config, "linear_num_value_heads"):  # families that gate what attention gives
        heads *= 2
    return (3 * heads + 2 * key_heads) * head


def _state(config: dict[str, Any]) -> int:
    """A gated delta-net (Yang et al. 2024), or Mamba 2 (Dao & Gu 2024)."""
    if heads := _number(config, "linear_num_value_heads"):
        key = _number(config, "linear_key_head_dim")
        value = _number(config, "linear_value_head_dim")
        groups = _number(config, "linear_num_key_heads")
        return heads * (12 * key + 10 * value + 4 * _CHUNK) + 6 * groups * key
    heads, size = _number(config, "mamba_num_heads"), _number(config, "ssm_state_size")
    inner, chunk = _number(config, "mamba_head_dim"), _number(config, "chunk_size")
    return heads * (11 * inner + 8 * size + 2 * chunk) + 6 * _number(config, "n_groups") * size


def _mlp(config: dict[str, Any], *, experts: bool) -> int:
    family = config.get("model_type")
    products = {"gpt_oss": 7, "nemotron_h": 2}.get(str(family), 4)  # of an inner width
    chosen = _number(config, "num_experts_per_tok") if experts else 0
    if not chosen:
        return products * _number(config, "intermediate_size")
    each = _number(config, "moe_intermediate_size") or _number(config, "intermediate_size")
    shared = _number(config, "shared_expert_intermediate_size")
    shared += _number(config, "moe_shared_expert_intermediate_size")
    shared += _number(config, "n_shared_experts") * each if not shared else 0
    # Each expert has its input and its output.
    return products * (chosen * each + shared) + 2 * chosen * _number(config, "hidden_size")


def _window(config: dict[str, Any]) -> int:
    """Tokens that a token sees in the layers with a sliding window; 0 if no layer has one."""
    size = _number(config, "sliding_window")
    kinds: object = config.get("layer_types")
    if isinstance(kinds, list):
        return size if "sliding_attention" in kinds else 0
    if config.get("model_type") == "mistral":
        return size
    first = _number(config, "max_window_layers")  # Qwen: the layers from this one on
    return (
        size
        if config.get("use_sliding_window") and first < _number(config, "num_hidden_layers")
        else 0
    )


def _sizes(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """Width of the hidden states, heads, KV heads, head size, and width of a token's MLP."""
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    key_heads = _number(config, "num_key_value_heads") or heads
    head = _number(config, "head_dim") or hidden // max(heads, 1)
    inner = _number(config, "moe_intermediate_size") or _number(config, "intermediate_size")
    return hidden, heads, key_heads, head, inner * max(_number(config, "num_experts_per_tok"), 1)
