"""tinker-cookbook merges our adapters of families with a state, fused parts or latent attention."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.adapters import filled_adapter, merge_with_cookbook
from tests.support.family_twin import make_family
from tests.support.seeing_models import make_seeing
from tests.support.state_families import FAMILIES
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.base_model import load_base_model

pytestmark = pytest.mark.cookbook

pytest.importorskip(
    "tinker_cookbook.weights", reason="tinker-cookbook is not installed: see `make test`"
)
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize(
    "family",
    ["seeing qwen3_5", "seeing qwen3_5_moe", "deepseek_v3", "nemotron_h"],
)
def test_the_merged_model_computes_what_the_engine_computes(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "base"
    if family in BY_NAME:
        make_family(BY_NAME[family], folder)
    else:
        make_seeing(folder, family.removeprefix("seeing "))
    base = load_base_model(family, folder)
    adapter = filled_adapter(base, LoraConfig(4, 0))
    merged_folder = merge_with_cookbook(base, adapter, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(merged_folder, dtype=torch.float32)
    tokens = torch.arange(10, 80)
    with torch.no_grad():
        ours = base.logits(base.hidden(tokens, [70], adapter), adapter)
        unchanged = base.logits(base.hidden(tokens, [70], None), None)
        expected = merged.eval()(input_ids=tokens[None], use_cache=False).logits[0]
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
    assert (ours - unchanged).abs().max() > 0.1
