"""What a run's export will be is said with what its settings, and where it starts, decide."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.run_folders import checkpoint, run_of_settings
from tinkersmith.forecast.lines import _export_lines
from tinkersmith.settings.reading import settings_from

GPT_OSS, DEEPSEEK = "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V3.1"


def said(base_model: str, **settings: Any) -> str:
    forecast: Any = SimpleNamespace(settings=settings_from(settings), base_model=base_model)
    return "\n".join(_export_lines(forecast))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (GPT_OSS, {}, "vLLM: no (vLLM 0.32 takes no LoRA on the output layer of gpt-oss"),
        (GPT_OSS, {"TRAIN_UNEMBED": "no"}, "vLLM: yes"),
        (GPT_OSS, {"TRAIN_UNEMBED": "no", "LORA_RANK": 512}, "set LORA_RANK to at most 256"),
        (GPT_OSS, {"TRAIN_MLP": False}, "the MXFP4 weights stay as they are"),
        (DEEPSEEK, {"TRAIN_UNEMBED": "no"}, "loads the LoRA on kv_b_proj and does not apply it"),
        (DEEPSEEK, {"TRAIN_UNEMBED": "no", "TRAIN_ATTN": False}, "vLLM: yes"),
        ("Qwen/Qwen3.8-27B", {"LORA_RANK": 256}, "3 matrices of rank 256 lie in one weight"),
        ("moonshotai/Kimi-K2.6", {}, "vLLM 0.32 takes no LoRA for Kimi-K2"),
        ("nobody/has-heard-of-it", {}, "not tested for nobody/has-heard-of-it"),
    ],
)
def test_what_vllm_cannot_load_is_said_before_training(
    name: str, settings: dict[str, Any], words: str
) -> None:
    assert words in said(name, **settings)


@pytest.mark.parametrize(("unembed", "works"), [("yes", "vLLM: no"), ("no", "vLLM: yes")])
def test_a_state_to_start_from_decides_what_is_trained(
    tmp_path: Path, unembed: str, works: str
) -> None:
    first = run_of_settings(tmp_path / "first", TRAIN_UNEMBED=unembed)
    first.add_checkpoint(checkpoint(1))
    second = run_of_settings(
        tmp_path / "second", INITIAL_CHECKPOINT="first", OUTPUT_DIR=str(tmp_path)
    )
    second.add_checkpoint(checkpoint(2))
    for name in ("first", "second"):  # the second one went on from the first
        assert works in said(GPT_OSS, INITIAL_CHECKPOINT=name, OUTPUT_DIR=str(tmp_path))
    chosen = {"INITIAL_CHECKPOINT": "gone", "OUTPUT_DIR": str(tmp_path), "TRAIN_UNEMBED": "no"}
    assert "vLLM: yes" in said(GPT_OSS, **chosen)
