"""PEFT's adapter format: names of files and tensors, and adapter_config.json.

The engine writes it for checkpoints, the export for adapters that it has downloaded.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank


def adapter_config(
    base_name_or_path: str,
    rank: int,
    alpha: float,
    modules: list[str],
    *,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of an adapter_config.json with everything that PEFT would otherwise guess.

    Args:
        modules: which layers have LoRA weights; see `target_modules`.
        rank_pattern: ranks of the layers that have another one, by path.
        alpha_pattern: alphas of the layers that have another one, by path.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name_or_path,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": {path: _whole(value) for path, value in (alpha_pattern or {}).items()},
        "target_modules": modules,
        "modules_to_save": None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def highest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of an adapter_config.json.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is damaged.
    """
    patterns: dict[str, int] = config.get("rank_pattern") or {}
    return max(int(config["r"]), *map(int, patterns.values()), 1)


def vllm_options(adapters: Mapping[str, object], rank: int, chat_template: object) -> list[str]:
    """The options of `vllm serve BASE` that add adapters to their base model.

    vLLM takes no chat template from an adapter's folder: without the option it writes the base
    model's prompts. "" leaves the option out.

    Raises:
        ValueError: vLLM takes no adapter of this rank.
    """
    limit = next((limit for limit in VLLM_RANKS if limit >= rank), None)
    if limit is None:
        raise ValueError(f"An adapter has rank {rank}; vLLM takes at most {VLLM_RANKS[-1]}.")
    names = [f"{name}={folder}" for name, folder in adapters.items()]
    options = ["--enable-lora", "--max-lora-rank", str(limit), "--lora-modules", *names]
    return [*options, "--chat-template", str(chat_template)] if chat_template else options


def target_modules(trained: Collection[str], all_modules: Iterable[str]) -> list[str]:
    """Last names such as "q_proj" where only trained layers have them, else whole paths, sorted.

    PEFT puts LoRA weights on every module whose path ends with one of these names. A last name that
    another module shares would therefore give that module weights that nobody trained.
    """
    short = {path.rpartition(".")[2] for path in trained}
    named = {path for path in all_modules if path.rpartition(".")[2] in short}
    return sorted(short if named <= set(trained) else trained)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
