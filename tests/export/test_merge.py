"""LoRA files -> PEFT folder and merged model, against peft and transformers themselves."""

import errno
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.support.exports import export, load_fp32, make_adapter
from tests.support.processes import PATIENCE
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.export.adapter import read_layers
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.peft_files import write_tensors
from tinkersmith.export.verify import logprobs_of_folder, verify_export

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
TOKENS = torch.tensor([[5, 9, 200, 31, 7, 77, 120]])


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits[0]  # (T, V)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [ATTENTION, ATTENTION + MLP, [*ATTENTION, *MLP, "lm_head"]])
def test_both_exports_give_the_logits_of_peft(tmp_path: Path, tied: bool, targets: list[str]):
    base = make_tiny_model(tmp_path / "base", tied=tied)
    wanted = logits(make_adapter(base, tmp_path / "lora", targets))
    assert not torch.allclose(wanted, logits(load_fp32(base)), atol=1e-2)

    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(load_fp32(base), adapter)
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-5, rtol=1e-5)

    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True)
    torch.testing.assert_close(logits(load_fp32(merged)), wanted, atol=1e-5, rtol=1e-5)
    config = json.loads((merged / "config.json").read_text())
    assert config["tie_word_embeddings"] == (tied and "lm_head" not in targets)


def test_a_merged_model_has_the_weights_of_merge_and_unload(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base", tied=False)
    model = make_adapter(base, tmp_path / "lora", [*ATTENTION, *MLP, "lm_head"])
    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True)
    theirs = model.merge_and_unload().state_dict()
    ours = load_file(merged / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-6)


def test_untying_leaves_the_input_embedding_alone(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base", tied=True)
    make_adapter(base, tmp_path / "lora", ["lm_head"])
    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True)
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert after.keys() - before.keys() == {"lm_head.weight"}
    assert not torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])


def test_a_sharded_base_stays_sharded_and_its_index_is_right(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base", tied=True)
    sharded = tmp_path / "sharded"
    load_fp32(base).save_pretrained(sharded, max_shard_size="60KB")
    wanted = logits(make_adapter(base, tmp_path / "lora", [*ATTENTION, "lm_head"]))
    merged = export(tmp_path / "lora", sharded, tmp_path / "merged", merged=True)
    assert len(list(merged.glob("*.safetensors"))) == len(list(sharded.glob("*.safetensors"))) > 2
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    stored = {file.name: load_file(file) for file in merged.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, part in stored.items() for name in part}
    sizes = [tensor.nbytes for part in stored.values() for tensor in part.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    torch.testing.assert_close(logits(load_fp32(merged)), wanted, atol=1e-5, rtol=1e-5)


def test_a_half_precision_base_keeps_its_type_unless_told_otherwise(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base")
    load_fp32(base).to(torch.bfloat16).save_pretrained(base)
    wanted = logits(make_adapter(base, tmp_path / "lora", ATTENTION))
    same = export(tmp_path / "lora", base, tmp_path / "same", merged=True)
    full = export(tmp_path / "lora", base, tmp_path / "full", merged=True, dtype="float32")
    kinds = [{t.dtype for t in load_file(f / "model.safetensors").values()} for f in (same, full)]
    assert kinds == [{torch.bfloat16}, {torch.float32}]
    assert json.loads((full / "config.json").read_text())["dtype"] == "float32"
    torch.testing.assert_close(logits(load_fp32(full)), wanted, atol=1e-5, rtol=1e-5)
    assert (logits(load_fp32(same)) - wanted).abs().max() < 0.5


def test_the_cloud_s_names_become_those_of_peft(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base", tied=True)
    wanted = logits(make_adapter(base, tmp_path / "lora", [*ATTENTION, "lm_head"]))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    prefix = "base_model.model."
    renamed = {
        name.replace(f"{prefix}lm_head", f"{prefix}model.unembed_tokens"): tensor
        for name, tensor in load_file(file).items()
    }
    assert any("unembed_tokens" in name for name in renamed)
    save_file(renamed, file)
    for merged in (False, True):
        out = export(tmp_path / "lora", base, tmp_path / f"out-{merged}", merged=merged)
        if merged:
            model = load_fp32(out)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = PeftModel.from_pretrained(load_fp32(base), out)
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)


def make_tiny_moe(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    Qwen3MoeForCausalLM(config).float().save_pretrained(folder)
    return folder


def cloud_expert_adapter(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """As Tinker's cloud writes it: the side of the hidden size is shared by all experts."""
    torch.manual_seed(1)
    tensors = {}
    for layer in range(2):
        for part, inner in (("w1", True), ("w3", True), ("w2", False)):
            path = f"base_model.model.model.layers.{layer}.mlp.experts.{part}"
            sizes = (32, 24) if inner else (24, 32)  # in, out
            experts = (1, 4) if inner else (4, 1)
            tensors[f"{path}.lora_A.weight"] = 0.2 * torch.randn(experts[0], 4, sizes[0])
            tensors[f"{path}.lora_B.weight"] = 0.2 * torch.randn(experts[1], sizes[1], 4)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 32}))
    return tensors


def test_the_cloud_s_experts_are_merged_and_exported_one_by_one(tmp_path: Path):
    base = make_tiny_moe(tmp_path / "base")
    cloud = cloud_expert_adapter(base, tmp_path / "lora")
    before = load_file(base / "model.safetensors")
    merged = export(tmp_path / "lora", base, tmp_path / "merged", merged=True)
    after = load_file(merged / "model.safetensors")
    assert after.keys() == before.keys()
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for part, name in names.items():
        for expert in range(4):
            path = f"base_model.model.model.layers.1.mlp.experts.{part}"
            a = cloud[f"{path}.lora_A.weight"].expand(4, -1, -1)[expert]
            b = cloud[f"{path}.lora_B.weight"].expand(4, -1, -1)[expert]
            key = f"model.layers.1.mlp.experts.{expert}.{name}.weight"
            torch.testing.assert_close(after[key], before[key] + 8 * b @ a, atol=1e-5, rtol=1e-5)
    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    written = load_file(adapter / "adapter_model.safetensors")
    assert len(written) == 2 * 2 * 3 * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_fp32(base), adapter)
    torch.testing.assert_close(logits(model), logits(load_fp32(merged)), atol=1e-4, rtol=1e-4)


def damage(tensors: dict[str, Any], config: dict[str, Any], how: str) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if how == "unpaired":
        del tensors[name]
    elif how == "foreign layer":
        for side in "AB":
            old = name.replace("lora_A", f"lora_{side}")
            tensors[old.replace("q_proj", "z_proj")] = tensors[old].clone()
    elif how == "other tensor":
        tensors["base_model.model.lm_head.modules_to_save.weight"] = torch.zeros(2)
    elif how == "shape":
        tensors[name] = torch.zeros(4, 31)
    elif how == "rank":
        config["r"] = 8
    elif how == "alpha":
        del config["lora_alpha"]
    elif how == "dora":
        config["use_dora"] = True
    elif how == "empty":
        tensors.clear()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unpaired", "only lora_B"),
        ("foreign layer", "z_proj, which the base model"),
        ("other tensor", "modules_to_save"),
        ("shape", "[64, 31]"),
        ("rank", "rank 4"),
        ("alpha", "lora_alpha"),
        ("dora", "use_dora"),
        ("empty", "no weights"),
    ],
)
def test_what_cannot_be_exported_whole_is_refused(tmp_path: Path, how: str, words: str):
    base = make_tiny_model(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", ATTENTION)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    config_file = tmp_path / "lora" / "adapter_config.json"
    tensors, config = load_file(file), json.loads(config_file.read_text())
    damage(tensors, config, how)
    save_file(tensors, file)
    config_file.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read_layers(tmp_path / "lora", read_base(base))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("qweight", torch.zeros(4, 64, dtype=torch.int32)), ("weight", torch.zeros(64, 16).byte())],
)
def test_a_base_that_is_quantised_in_an_unknown_way_takes_an_adapter_only(
    tmp_path: Path, name: str, tensor: torch.Tensor
):
    base = make_tiny_model(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", ATTENTION)
    tensors = load_file(base / "model.safetensors")
    path = "model.layers.0.self_attn.q_proj"
    del tensors[f"{path}.weight"]
    save_file({**tensors, f"{path}.{name}": tensor}, base / "model.safetensors")
    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    assert len(load_file(adapter / "adapter_model.safetensors")) == 2 * 2 * 4
    with pytest.raises(UserError, match=r"q_proj.weight in .* is quantised in a way"):
        export(tmp_path / "lora", base, tmp_path / "out", merged=True)


def test_a_full_disk_shows_as_the_system_s_error(tmp_path: Path):
    # RLIMIT_FSIZE makes the real write fail, as a full disk does, with another number.
    script = (
        "import resource, signal, torch\n"
        "from pathlib import Path\n"
        "from tinkersmith.export.peft_files import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        f"    write_tensors(Path({str(tmp_path / 'x')!r}), {{'a': torch.zeros(9999)}})\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "nowhere" / "x", {"a": torch.zeros(1)})


def test_verification_passes_the_true_export_and_fails_a_changed_one(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base")
    model = make_adapter(base, tmp_path / "lora", [*ATTENTION, "lm_head"])
    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    found = logits(model).log_softmax(-1)[:-1].gather(-1, TOKENS[0, 1:, None])[:, 0].tolist()
    result = verify_export(adapter, [TOKENS[0].tolist()], [[None, *found]])
    assert result.passed and result.tensors == 2 * (2 * 4 + 1) and result.largest < 1e-5

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    save_file({**tensors, name: tensors[name] * 1.01}, file)
    with pytest.raises(UserError, match="is not the trained model"):
        verify_export(adapter, [TOKENS[0].tolist()], [[None, *found]])
    foreign = {**tensors, name.replace("q_", "z_"): tensors[name].clone()}
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    for changed in (foreign, missing):
        save_file(changed, file)
        with pytest.raises(UserError, match="did not load"):
            verify_export(adapter, [TOKENS[0].tolist()], [[None, *found]])


def test_rounded_weights_may_differ_by_what_their_rounding_does_and_no_more(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", [*ATTENTION, *MLP])
    exact = export(tmp_path / "lora", base, tmp_path / "exact", merged=True)
    rounded = export(tmp_path / "lora", base, tmp_path / "half", merged=True, dtype="bfloat16")
    lists = [list(range(3, 90)), TOKENS[0].tolist()]
    wanted = [[None, *row] for row in logprobs_of_folder(exact, lists)]
    found = verify_export(rounded, lists, wanted, exact=False, rounded_to="bfloat16")
    assert 0 < found.mean <= found.limits[1] < 10 * found.mean
    # A fault that moves the model by more than rounding does is no rounding.
    weights = load_file(rounded / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(
        {**weights, name: weights[name] * 1.2}, rounded / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="is not the trained model"):
        verify_export(rounded, lists, wanted, exact=False, rounded_to="bfloat16")


def test_a_base_that_cannot_be_loaded_is_not_blamed_on_the_export(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", ATTENTION)
    adapter = export(tmp_path / "lora", base, tmp_path / "adapter", merged=False)
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    tokens = [[1, 2]], [[None, -1.0]]
    for folder in (broken, tmp_path / "gone"):
        with pytest.raises(UserError) as caught:
            verify_export(adapter, *tokens, base_folder=folder)
        sentence = str(caught.value)
        assert str(folder) in sentence and "--force" not in sentence
        assert "name another folder with --base-folder" in sentence and "--no-verify" in sentence
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="Export it again with --force"):
        verify_export(adapter, *tokens, base_folder=base)
