"""adapter_config.json, as the engine and the export write it."""

import json
from pathlib import Path

import torch
from torch import nn

from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import new_adapter, peft_config
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.export.adapter import LoraLayer
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.peft_files import write_peft_adapter
from tinkersmith.export.placement import find_place
from tinkersmith.peft_format import ADAPTER_CONFIG, adapter_config, target_modules

ATTENTION = [f"layers.{n}.attn.{name}" for n in (0, 1) for name in ("q_proj", "v_proj")]
OTHERS = ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "embed"]


def test_last_names_are_enough_where_only_trained_layers_have_them() -> None:
    assert target_modules(ATTENTION, [*ATTENTION, *OTHERS]) == ["q_proj", "v_proj"]
    assert target_modules(ATTENTION, iter(ATTENTION)) == ["q_proj", "v_proj"]


def test_whole_paths_are_written_where_another_layer_shares_a_last_name() -> None:
    some = ATTENTION[:3]
    assert target_modules(some, [*ATTENTION, *OTHERS]) == sorted(some)
    tower = [*ATTENTION, *OTHERS, "vision.q_proj"]
    assert target_modules(ATTENTION, tower) == sorted(ATTENTION)


def test_a_name_that_only_ends_alike_is_another_name() -> None:
    assert target_modules(["a.proj"], ["a.proj", "a.q_proj"]) == ["proj"]


def test_whole_alphas_are_written_as_whole_numbers() -> None:
    config = adapter_config("base", 8, 32.0, ["q"], alpha_pattern={"a": 16.0, "b": 0.5})
    assert json.dumps(config["lora_alpha"]) == "32"
    assert json.dumps(config["alpha_pattern"]) == '{"a": 16, "b": 0.5}'
    assert config["rank_pattern"] == {}


def test_engine_and_export_write_the_same_config(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    base = load_base_model("model", folder)
    for parts in ((True, True, True), (True, False, False)):
        wanted = dict(zip(("train_attn", "train_mlp", "train_unembed"), parts, strict=True))
        adapter = new_adapter(base, LoraConfig(rank=4, seed=0, **wanted))
        ours = peft_config(base, adapter, "model")
        files = read_base(folder)
        a, b = torch.zeros(4, 2), torch.zeros(2, 4)
        layers = [
            LoraLayer(path, a, b, scaling=32 / 4, place=find_place(path, files, outputs=2))
            for path in adapter.module_paths
        ]
        out = tmp_path / f"out-{sum(parts)}"
        out.mkdir()
        write_peft_adapter(layers, files, "model", out)
        assert json.loads((out / ADAPTER_CONFIG).read_text()) == ours


def test_the_engine_names_whole_paths_where_a_frozen_layer_shares_a_name(tmp_path: Path) -> None:
    base = load_base_model("model", make_tiny_model(tmp_path / "model"))
    adapter = new_adapter(base, LoraConfig(rank=4, seed=0))
    assert "q_proj" in peft_config(base, adapter, "model")["target_modules"]
    base.model.add_module("tower", nn.ModuleDict({"q_proj": nn.Linear(2, 2)}))
    assert peft_config(base, adapter, "model")["target_modules"] == sorted(adapter.module_paths)
