"""Which ways of export work is known from a name or a folder, before anything is trained."""

import json
from pathlib import Path

import pytest

from tests.support.export_families import FAMILIES, make_family
from tinkersmith.export.ways import export_ways


def test_the_bundled_model_can_be_exported_in_every_way() -> None:
    ways = export_ways("tiny-math")
    assert all(way.works for way in (ways.adapter, ways.merged, ways.vllm))


@pytest.mark.parametrize(
    ("name", "adapter", "vllm", "merged"),
    [
        ("openai/gpt-oss-20b", True, False, "MXFP4 weights are written in bfloat16, 4 times"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", False, True, ""),
        ("moonshotai/Kimi-K2.6", True, False, "INT4"),
        ("deepseek-ai/DeepSeek-V3.1", True, False, "FP8 weights are written in bfloat16, 2 times"),
        ("Qwen/Qwen3.8-27B", True, True, ""),
        ("nobody/has-heard-of-it", None, None, ""),
    ],
)
def test_a_name_of_the_cloud_is_enough(
    name: str, adapter: bool | None, vllm: bool | None, merged: str
) -> None:
    ways = export_ways(name)
    assert (ways.adapter.works, ways.vllm.works) == (adapter, vllm)
    assert merged in ways.merged.note
    assert len(ways.lines()) == 4


def test_what_is_trained_decides() -> None:
    assert export_ways("openai/gpt-oss-20b", unembed=False).vllm.works
    assert "stay as they are" in export_ways("openai/gpt-oss-20b", mlp=False).merged.note
    assert export_ways("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", attention=False).adapter.works


@pytest.mark.parametrize("name", ["Kimi K2", "Gemma 3", "Qwen3.5-MoE"])
def test_a_folder_is_recognised_by_its_config(tmp_path: Path, name: str) -> None:
    make_family(tmp_path, name)
    assert export_ways(str(tmp_path)).family in {"Kimi-K2", "Gemma 3", "Qwen3.5"}
    assert not export_ways(str(tmp_path)).merged.note  # this one is not quantised
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "x"}))
    assert export_ways("any", tmp_path).family in {"", "DeepSeek-V3", "Gemma 3", "Qwen3.5"}


def test_every_family_of_the_table_is_known_by_its_folder() -> None:
    from tinkersmith.export.ways import _BY_MODEL_TYPE, _model_type

    for family in FAMILIES.values():
        assert _model_type(family.make().config.to_dict()) in _BY_MODEL_TYPE
