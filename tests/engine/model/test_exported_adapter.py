"""Adapters of our own export, and of plain peft, read back for every family that is trained."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.exports import export
from tests.support.families import FAMILIES
from tests.support.family_twin import TinyFamily, family_datums, make_family
from tests.support.seeing_models import make_seeing
from tests.support.state_families import FAMILIES as STATE_FAMILIES
from tests.support.state_families import SEEING_FAMILIES
from tests.support.window_families import FAMILIES as WINDOW_FAMILIES
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams, LoraConfig
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.optimizer import new_state, optim_step
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.engine
CONFIG = LoraConfig(4, 0)
ALL = [TinyFamily(name, *parts) for name, parts in FAMILIES.items()]
ALL += [*WINDOW_FAMILIES, *STATE_FAMILIES, *SEEING_FAMILIES]
GPT_OSS = next(family for family in ALL if family.name == "gpt-oss")
STACK = "base_model.model.model.layers.0.mlp.experts"


@dataclass(frozen=True)
class Trained:
    base: BaseModel
    adapter: Adapter
    exported: Path
    checkpoint: Path


def trained_and_exported(name: str, folder: Path, datums: list[Any]) -> Trained:
    base = load_base_model(name, folder / "model", "float32")
    adapter = filled_adapter(base, CONFIG)
    forward_backward(base, adapter, datums, "cross_entropy", {})
    optim_step(adapter, new_state(adapter), AdamParams(learning_rate=0.01))
    checkpoint = save_as_peft(base, adapter, folder / "checkpoint")
    out = export(checkpoint, folder / "model", folder / "exported", merged=False)
    return Trained(base, adapter, out, checkpoint)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("gpt-oss")
    make_family(GPT_OSS, folder / "model")
    yield trained_and_exported("gpt-oss", folder, family_datums(GPT_OSS)[:2])


def changed(folder: Path, new: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """A copy of an adapter with other tensors and settings."""
    new.mkdir()
    save_file(tensors, new / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (new / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return new


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_an_exported_adapter_comes_back_with_every_weight(
    family: TinyFamily, tmp_path: Path
) -> None:
    make_family(family, tmp_path / "model")
    datums = family_datums(family)[:3]
    trained = trained_and_exported(family.name, tmp_path, datums)
    base, adapter = trained.base, trained.adapter
    expected = forward(base, adapter, datums, "cross_entropy", {}).logprobs
    for folder, wanted in (
        (trained.exported, None),
        (trained.exported, CONFIG),
        (trained.checkpoint, None),
    ):
        loaded = read_exported_adapter(base, folder, wanted)
        assert loaded.weights.keys() == adapter.weights.keys()
        for name, weight in adapter.weights.items():
            torch.testing.assert_close(loaded.weights[name], weight, atol=1e-7, rtol=1e-6)
        logprobs = forward(base, loaded, datums, "cross_entropy", {}).logprobs
        for ours, theirs in zip(logprobs, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_both_folders_of_an_export_are_read_where_peft_and_vllm_want_other_names(
    family: str, tmp_path: Path
) -> None:
    make_seeing(tmp_path / "model", family)
    trained = trained_and_exported("sees", tmp_path, family_datums(GPT_OSS)[:2])
    for folder in (trained.exported, trained.exported / "vllm"):
        loaded = read_exported_adapter(trained.base, folder)
        for name, weight in trained.adapter.weights.items():
            torch.testing.assert_close(loaded.weights[name], weight, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("parts", ["train_attn", "train_mlp"])
def test_an_adapter_of_some_layers_is_read_as_one_of_these_layers(
    parts: str, gpt_oss: Trained, tmp_path: Path
) -> None:
    config = LoraConfig(4, 0, False, False, False)
    config = LoraConfig(4, 0, parts == "train_attn", parts == "train_mlp", False)
    adapter = filled_adapter(gpt_oss.base, config)
    save_as_peft(gpt_oss.base, adapter, tmp_path / "checkpoint")
    out = export(tmp_path / "checkpoint", gpt_oss.base.folder, tmp_path / "out", merged=False)
    loaded = read_exported_adapter(gpt_oss.base, out)
    assert loaded.weights.keys() == adapter.weights.keys()
    for name, weight in adapter.weights.items():
        torch.testing.assert_close(loaded.weights[name], weight, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "family",
    [family for family in ALL if family.name in ("qwen3_moe", "gpt-oss", "nemotron_h")],
    ids=lambda family: family.name,
)
def test_an_adapter_that_peft_trained_on_all_experts_gives_what_peft_gives(
    family: TinyFamily, tmp_path: Path
) -> None:
    make_family(family, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    gated = family.name != "nemotron_h"
    names = ["experts.gate_up_proj" if gated else "experts.up_proj", "experts.down_proj"]
    torch.manual_seed(1)
    settings = PeftLoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=names,
        init_lora_weights=False,
    )
    peft = get_peft_model(plain, settings)
    peft.save_pretrained(str(tmp_path / "peft"))
    base = load_base_model(family.name, tmp_path / "model", "float32")
    adapter = read_exported_adapter(base, tmp_path / "peft")
    tokens = torch.arange(20)
    with torch.no_grad():
        expected = peft(input_ids=tokens[None]).logits[0]
        logits = base.logits(base.hidden(tokens, [20], adapter), adapter)
        without = base.logits(base.hidden(tokens, [20], None), None)
    assert (expected - without).abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(Refused, match="can be sampled from, and not trained on"):
        read_exported_adapter(base, tmp_path / "peft", LoraConfig(3, 0))


def test_a_tensor_that_has_no_layer_is_refused(gpt_oss: Trained, tmp_path: Path) -> None:
    tensors = load_file(gpt_oss.exported / "adapter_model.safetensors")
    for number, (path, sentence) in enumerate(
        (
            ("model.layers.7.self_attn.q_proj", "model.layers.7.self_attn.q_proj, which gpt-oss "),
            ("model.layers.0.mlp.router", "model.layers.0.mlp.router, which no LoRA can change"),
            ("layers.0.self_attn.q_proj", "two sets of weights for model.layers.0.self_attn.q"),
        )
    ):
        more = {
            f"base_model.model.{path}.lora_A.weight": torch.ones(4, 32),
            f"base_model.model.{path}.lora_B.weight": torch.ones(32, 4),
        }
        folder = changed(gpt_oss.exported, tmp_path / str(number), {**tensors, **more})
        with pytest.raises(Refused, match=sentence):
            read_exported_adapter(gpt_oss.base, folder)


def test_stacked_experts_that_do_not_fit_are_refused(gpt_oss: Trained, tmp_path: Path) -> None:
    tensors = load_file(gpt_oss.exported / "adapter_model.safetensors")
    folder = changed(gpt_oss.exported, tmp_path / "unnamed", tensors, target_parameters=None)
    with pytest.raises(Refused, match="target_parameters = None, which do not say what"):
        read_exported_adapter(gpt_oss.base, folder)
    name = f"{STACK}.lora_A.weight"
    fewer = {**tensors, name: tensors[name][:-1].clone()}
    folder = changed(gpt_oss.exported, tmp_path / "fewer", fewer)
    with pytest.raises(Refused, match=r"needs 4 experts of \[rank, 48\] and \[32, rank\]"):
        read_exported_adapter(gpt_oss.base, folder)
    settings = json.loads((gpt_oss.exported / "adapter_config.json").read_text())
    ranks = dict.fromkeys(settings["rank_pattern"], 9)
    folder = changed(gpt_oss.exported, tmp_path / "ranks", tensors, rank_pattern=ranks)
    with pytest.raises(Refused, match="says another rank than"):
        read_exported_adapter(gpt_oss.base, folder)
