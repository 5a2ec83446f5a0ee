"""Adapters: what they train, how they are saved, and that plain PEFT reads them the same way."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import (
    adapter_state,
    load_adapter_state,
    new_adapter,
    save_adapter,
    snapshot,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("attn", "mlp", "unembed"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_plain_peft_loads_every_tensor_and_gives_the_same_logits(
    tmp_path: Path, tied: bool, attn: bool, mlp: bool, unembed: bool
) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path / "model", tied=tied))
    adapter = filled_adapter(base, LoraConfig(8, 0, attn, mlp, unembed))
    folder = save_as_peft(base, adapter, tmp_path / "adapter")
    tokens = torch.randint(0, 250, (30,))
    ours = base.logits(base.hidden(tokens, [30], adapter), adapter)
    untouched = base.logits(base.hidden(tokens, [30], None), None)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), folder)
    loaded = {
        name.replace(".default", "") for name, _ in plain.named_parameters() if "lora" in name
    }
    assert loaded == set(adapter_state(adapter))
    theirs = plain(tokens[None]).logits[0]
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - untouched).abs().max() > 1e-2


def test_equal_weights_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path / "base"))
    adapter = filled_adapter(base, LoraConfig(4, 0))
    contents = set()
    for number in range(8):  # the order of two notes by chance would show with 99 %
        folder = tmp_path / str(number)
        folder.mkdir()
        save_adapter(base, adapter, folder)
        contents.add((folder / "adapter_model.safetensors").read_bytes())
    assert len(contents) == 1
    loaded = load_file(tmp_path / "0" / "adapter_model.safetensors")
    for name, weight in adapter_state(adapter).items():
        assert torch.equal(loaded[name], weight)


def test_a_new_adapter_changes_nothing_and_the_seed_decides_it(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path))
    one, again, other = (new_adapter(base, LoraConfig(4, seed)) for seed in (1, 1, 2))
    tokens = torch.randint(0, 250, (9,))
    assert torch.equal(base.hidden(tokens, [9], one), base.hidden(tokens, [9], None))
    name = "model.layers.0.self_attn.q_proj.lora_A"
    assert torch.equal(one.weights[name], again.weights[name])
    assert not torch.equal(one.weights[name], other.weights[name])


def test_a_snapshot_does_not_follow_later_training(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path))
    adapter = filled_adapter(base, LoraConfig(4, 0))
    frozen = snapshot(adapter)
    before = {name: weight.clone() for name, weight in frozen.weights.items()}
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight.add_(1)
    assert all(torch.equal(frozen.weights[name], before[name]) for name in before)


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path))
    small, large = new_adapter(base, LoraConfig(4)), new_adapter(base, LoraConfig(8))
    with pytest.raises(Refused, match="does not fit this adapter"):
        load_adapter_state(small, adapter_state(large))
    partial = new_adapter(base, LoraConfig(4, train_unembed=False))
    with pytest.raises(Refused, match="lm_head"):
        load_adapter_state(small, adapter_state(partial))


def test_an_adapter_that_would_train_nothing_is_refused(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path))
    with pytest.raises(Refused, match="nothing would train"):
        new_adapter(base, LoraConfig(4, 0, False, False, False))
    with pytest.raises(Refused, match="between 1 and 512"):
        new_adapter(base, LoraConfig(0))
