"""Every family of today's line-up: LoRA in the cloud's names -> merged and adapter, exactly."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.export_families import (
    FAMILIES,
    TOKENS,
    load_plain,
    logprobs,
    make_cloud_lora,
    make_family,
)
from tests.support.exports import export
from tinkersmith.errors import UserError
from tinkersmith.export.verify import verify_export

FORMS = [
    (name, quantised)
    for name, family in FAMILIES.items()
    for quantised in ([False, True] if family.quantised else [False])
]
STACKED = "Qwen3.5-MoE with stacked experts"
QUICK = ("Qwen3.5 dense", STACKED, "gpt-oss", "Nemotron-3", "DeepSeek V3", "Kimi K2", "Qwen2-MoE")


@pytest.fixture(autouse=True)
def _quiet_and_two_threads():
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        pytest.param(name, quantised, marks=[] if name in QUICK else [pytest.mark.long])
        for name, quantised in FORMS
    ],
)
def test_a_merged_model_and_an_adapter_give_what_base_and_lora_give(
    tmp_path: Path, name: str, quantised: bool
):
    base = tmp_path / "base"
    model = make_family(base, name, quantised=quantised)
    before = logprobs(model)
    trained = make_cloud_lora(tmp_path / "lora", name, model)
    wanted = logprobs(model)
    assert (wanted - before).abs().max() > 0.1
    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True, dtype="float32")
    assert (logprobs(load_plain(merged)) - wanted).abs().max() < 1e-5
    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    numbers = sum(tensor.numel() for tensor in trained.values())
    written = load_file(adapter / "adapter_model.safetensors").values()
    assert sum(tensor.numel() for tensor in written) >= numbers
    if name == "Nemotron-3" or (name == "Kimi K2" and quantised):
        return  # peft takes no out_proj of Mamba; an INT4 base needs compressed-tensors
    result = verify_export(adapter, [TOKENS], [[None, *wanted.tolist()]], base_folder=base)
    assert result.largest < 1e-5


def test_stacked_and_single_experts_give_the_same_adapter(tmp_path: Path):
    written: list[dict[str, torch.Tensor]] = []
    for number, name in enumerate(("Qwen3.5-MoE", STACKED)):
        model = make_family(tmp_path / f"base{number}", name)
        make_cloud_lora(tmp_path / f"lora{number}", name, model, only="experts")
        base = load_file(tmp_path / f"base{number}" / "model.safetensors")
        assert any(key.endswith(".experts.gate_up_proj") for key in base) == (name == STACKED)
        out = tmp_path / f"adapter{number}"
        export(tmp_path / f"lora{number}", tmp_path / f"base{number}", out, merged=False)
        written.append(load_file(out / "vllm" / "adapter_model.safetensors"))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])


def test_peft_loads_a_nemotron_adapter_that_leaves_out_proj_alone(tmp_path: Path):
    model = make_family(tmp_path / "base", "Nemotron-3")
    make_cloud_lora(tmp_path / "lora", "Nemotron-3", model, leave="out_proj")
    adapter = export(tmp_path / "lora", tmp_path / "base", tmp_path / "adapter", merged=False)
    expected = [[None, *logprobs(model).tolist()]]
    result = verify_export(adapter, [TOKENS], expected, base_folder=tmp_path / "base")
    assert result.largest < 1e-5
    names = load_file(adapter / "vllm" / "adapter_model.safetensors")
    assert "base_model.model.backbone.layers.1.mixer.experts.3.up_proj.lora_B.weight" in names


@pytest.mark.parametrize(
    ("name", "only", "key"),
    [
        ("DeepSeek V3", "attn", "modules_to_not_convert"),
        ("Kimi K2", "attn", ""),
        ("gpt-oss", "attn", ""),
    ],
)
def test_only_the_trained_weights_lose_their_quantisation(
    tmp_path: Path, name: str, only: str, key: str
):
    base = tmp_path / "base"
    model = make_family(base, name, quantised=True)
    make_cloud_lora(tmp_path / "lora", name, model, only=only)
    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    kept = {name for name in before if ".mlp." in name and before[name].element_size() == 1}
    assert all(after[name].dtype == before[name].dtype for name in kept)
    trained = {name for name in after if "attn" in name and name.endswith("proj.weight")}
    assert {after[name].dtype for name in trained} == {torch.bfloat16}
    assert not any("attn" in name for name in after if "scale" in name)
    config = json.loads((merged / "config.json").read_text())
    if key:
        wanted = {name.removesuffix(".weight") for name in trained}
        assert wanted <= set(config["quantization_config"][key])
        assert (logprobs(load_plain(merged).float()) - logprobs(model)).abs().max() < 0.2
    assert "quantization_config" in config


def test_a_quantised_base_whose_every_weight_is_trained_is_plain_afterwards(tmp_path: Path):
    model = make_family(tmp_path / "base", "gpt-oss", quantised=True)
    make_cloud_lora(tmp_path / "lora", "gpt-oss", model)
    merged = export(tmp_path / "lora", tmp_path / "base", tmp_path / "merged", merged=True)
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    names = load_file(merged / "model.safetensors")
    assert not any(name.endswith(("_blocks", "_scales")) for name in names)


def test_a_lora_for_another_number_of_experts_is_refused(tmp_path: Path):
    model = make_family(tmp_path / "base", "Qwen3-MoE")
    make_cloud_lora(tmp_path / "lora", "Qwen3-MoE", model)
    from safetensors.torch import save_file

    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.mlp.experts.w1.lora_B.weight"
    save_file({**tensors, name: tensors[name][:3].clone()}, file)
    with pytest.raises(UserError, match=r"are for 3 experts, and .* has 4"):
        export(tmp_path / "lora", tmp_path / "base", tmp_path / "out", merged=True)


@pytest.mark.parametrize("name", ["Qwen3", pytest.param("Qwen2-MoE", marks=pytest.mark.long)])
def test_a_service_in_bfloat16_may_differ_by_what_its_rounding_does_and_no_more(
    tmp_path: Path, name: str
):
    model = make_family(tmp_path / "base", name)
    untrained = load_plain(tmp_path / "base")
    make_cloud_lora(tmp_path / "lora", name, model)
    merged = export(tmp_path / "lora", tmp_path / "base", tmp_path / "merged", merged=True)
    chance = torch.Generator().manual_seed(0)
    lists = [torch.randint(1, 250, (40,), generator=chance).tolist() for _ in range(6)]
    served = [_in_bfloat16(model, tokens) for tokens in lists]
    found = verify_export(merged, lists, served, exact=False)
    assert 1e-3 < found.mean <= found.limits[1] < 6 * found.mean
    assert found.limits[1] < 0.05
    with pytest.raises(UserError, match="is not the trained model"):
        verify_export(
            merged, lists, [_in_bfloat16(untrained, tokens) for tokens in lists], exact=False
        )


@torch.no_grad()
def _in_bfloat16(model: Any, tokens: list[int]) -> list[float | None]:
    """What a service returns that computes in bfloat16."""
    ids = torch.tensor([tokens])
    logits = model.bfloat16()(input_ids=ids).logits[0, :-1].float()  # (T - 1, V)
    return [None, *logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()]
