"""PEFT's adapter format: names of files and tensors, and adapter_config.json.

The engine writes it for checkpoints, the export for adapters that it has downloaded.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."


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
