"""Exported adapters against what vLLM's LoRA loader takes, by names and shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.export_families import FAMILIES, RANK, make_cloud_lora, make_family
from tests.support.exports import export
from tinkersmith.export.base_folder import BaseFolder, read_base
from tinkersmith.export.vllm_shapes import check_for_vllm, check_vllm_folder
from tinkersmith.export.ways import export_ways

QUICK = ("Qwen3.5-MoE", "gpt-oss", "DeepSeek V3")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.long]) for n in FAMILIES]
)
def test_what_is_said_before_training_is_what_vllm_takes_afterwards(
    tmp_path: Path, name: str
) -> None:
    base = tmp_path / "base"
    model = make_family(base, name)
    source = read_base(base)
    trained = [
        ({}, {"attention": True, "mlp": True, "unembed": True}),
        ({"leave": "unembed"}, {"attention": True, "mlp": True, "unembed": False}),
        ({"only": "mlp"}, {"attention": False, "mlp": True, "unembed": False}),
        ({"only": "attn"}, {"attention": True, "mlp": False, "unembed": False}),
    ]
    for number, (layers, said) in enumerate(trained):
        if name == "Nemotron-3" and "only" in layers:
            continue  # its layers are all called mixer
        lora = tmp_path / f"lora{number}"
        make_cloud_lora(lora, name, model, **layers)
        adapter = export(lora, base, tmp_path / f"adapter{number}", merged=False)
        check = check_vllm_folder(adapter, source)
        assert check.passed == export_ways(str(base), **said, rank=RANK).vllm.works, check.problems
        assert (check.accepted == check.tensors) == check.passed


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("Qwen/Qwen3.8-27B", {}, 170),
        ("Qwen/Qwen3.8-27B", {"attention": False}, 512),
        ("openai/gpt-oss-20b", {"unembed": False}, 256),
        ("openai/gpt-oss-20b", {"unembed": False, "mlp": False}, 512),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {}, 256),
        ("tinkersmith/tiny-math", {}, 512),
    ],
)
def test_a_rank_that_vllm_cannot_load_is_said_before_training(
    name: str, settings: dict[str, Any], most: int
) -> None:
    assert export_ways(name, **settings, rank=most).vllm.works
    way = export_ways(name, **settings, rank=most + 1).vllm
    assert way.works is False and f"set LORA_RANK to at most {most}" in way.note


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseFolder, dict[str, Any], Path]:
    """An exported adapter of Qwen3.5-MoE: the base, the shapes and the folder for vLLM."""
    folder = tmp_path_factory.mktemp("stacked")
    model = make_family(folder / "base", "Qwen3.5-MoE")
    make_cloud_lora(folder / "lora", "Qwen3.5-MoE", model)
    adapter = export(folder / "lora", folder / "base", folder / "adapter", merged=False) / "vllm"
    tensors = load_file(adapter / "adapter_model.safetensors")
    return read_base(folder / "base"), {n: tuple(t.shape) for n, t in tensors.items()}, adapter


def test_the_rank_that_vllm_must_be_started_with_is_the_largest(
    stacked: tuple[BaseFolder, dict[str, Any], Path],
) -> None:
    base, shapes, folder = stacked
    config = json.loads((folder / "adapter_config.json").read_text())
    check = check_for_vllm(shapes, config, base)
    assert check.passed and check.rank == 3 * RANK  # queries, keys and values in one weight


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model.language_model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "no"),
        (".mlp.experts.base_layer", ".mlp.experts.0.gate_proj", "as a stack"),
        (".self_attn.q_proj", ".self_attn.query", "takes no LoRA on query"),
        ("base_model.model.", "", "does not know tensors like"),
    ],
)
def test_a_name_that_vllm_does_not_know_is_found(
    stacked: tuple[BaseFolder, dict[str, Any], Path], old: str, new: str, words: str
) -> None:
    base, shapes, folder = stacked
    config = json.loads((folder / "adapter_config.json").read_text())
    renamed = {name.replace(old, new): shape for name, shape in shapes.items()}
    check = check_for_vllm(renamed, config, base)
    assert not check.passed and words in check.problems[0]
    assert check.accepted < check.tensors


@pytest.mark.parametrize("change", ["transposed", "rank", "half"])
def test_a_shape_that_vllm_does_not_take_is_found(
    stacked: tuple[BaseFolder, dict[str, Any], Path], change: str
) -> None:
    base, shapes, folder = stacked
    config = json.loads((folder / "adapter_config.json").read_text())
    name = next(name for name in shapes if name.endswith("experts.base_layer.lora_B.weight"))
    if change == "rank":
        config["rank_pattern"] = {}
    else:
        outputs, ranks = shapes[name]
        wrong = (ranks, outputs) if change == "transposed" else (outputs // 2, ranks)
        shapes = {**shapes, name: wrong}
    check = check_for_vllm(shapes, config, base)
    assert not check.passed and "where vLLM 0.32 wants" in check.problems[0]


def test_a_family_without_known_rules_is_said_to_be_so(tmp_path: Path) -> None:
    make_family(tmp_path, "Llama 3")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "phi3"}))
    check = check_for_vllm({}, {"r": 4}, read_base(tmp_path))
    assert "The rules of vLLM for the model type 'phi3' are not known" in check.problems[0]
