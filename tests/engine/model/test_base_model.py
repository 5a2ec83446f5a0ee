"""Packed documents give what plain transformers gives for each alone; what cannot be is refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.support.base_models import SIZES, save
from tests.support.damaged_models import MODEL_DAMAGES, ModelDamage, in_two_shards
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model import base_model
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.machine import memory as memory_rules


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**SIZES)),
        (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    ],
)
def test_packed_documents_equal_each_alone_in_plain_transformers(
    tmp_path: Path, kind: type, config: PreTrainedConfig
) -> None:
    base = load_base_model("tiny", save(tmp_path, kind, config))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    documents = [torch.randint(0, 259, (length,)) for length in (1, 17, 40, 3)]
    lengths = [len(document) for document in documents]
    hidden = base.hidden(torch.cat(documents), lengths, None)
    for document, part in zip(documents, base.logits(hidden, None).split(lengths), strict=True):
        torch.testing.assert_close(part, plain(document[None]).logits[0], atol=1e-5, rtol=1e-5)


def test_all_parts_of_a_dense_model_can_be_trained(tmp_path: Path) -> None:
    base = load_base_model("tiny", make_tiny_model(tmp_path))
    adapter = new_adapter(base, LoraConfig(4))
    assert len(adapter.module_paths) == 2 * (4 + 3) + 1
    assert base.eos_ids == {256} and base.max_context == 512 and base.tied


def test_the_context_is_that_of_config_json_and_not_the_window(tmp_path: Path) -> None:
    config = MistralConfig(**SIZES, sliding_window=32)
    base = load_base_model("windowed", save(tmp_path, MistralForCausalLM, config))
    assert base.max_context == SIZES["max_position_embeddings"]
    assert base.dense is not None and base.dense.holds(32) and not base.dense.holds(33)


def test_positions_that_depend_on_the_rest_of_the_batch_are_refused_or_bounded(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    with pytest.raises(Refused, match="dynamic rotary positions"):
        load_base_model("dynamic", save(tmp_path / "dynamic", LlamaForCausalLM, config))
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    config = Phi3Config(
        **SIZES, pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=64
    )
    base = load_base_model("phi", save(tmp_path / "phi", Phi3ForCausalLM, config))
    assert base.max_context == 64


def test_an_architecture_that_cannot_be_driven_is_refused_in_words(tmp_path: Path) -> None:
    config = Llama4TextConfig(
        **{**SIZES, "intermediate_size": 32}, head_dim=8, num_local_experts=2, pad_token_id=0
    )
    with pytest.raises(Refused, match="not supported"):
        load_base_model("llama4", save(tmp_path, Llama4ForCausalLM, config))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no config\.json"):
        load_base_model("nothing", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match="model_type"):
        load_base_model("empty", tmp_path)


@pytest.mark.parametrize(
    ("bf16", "memory", "expected"),
    [
        (True, 10**12, torch.bfloat16),
        (False, 10**12, torch.float32),
        (False, 10**5, torch.bfloat16),  # float32 would take more than half of the memory
    ],
)
def test_a_large_model_is_kept_in_bf16_where_the_processor_multiplies_it_or_memory_is_short(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bf16: bool,
    memory: int,
    expected: torch.dtype,
) -> None:
    folder = make_tiny_model(tmp_path)
    assert load_base_model("small", folder).dtype == torch.float32
    monkeypatch.setattr(memory_rules, "SMALL", 1000)
    monkeypatch.setattr(base_model, "multiplies_bf16", lambda: bf16)
    monkeypatch.setattr(base_model, "machine_memory", lambda: memory)
    assert load_base_model("large", folder).model.dtype == expected


@pytest.mark.parametrize("damage", MODEL_DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_model_is_refused_with_folder_and_reason(
    tmp_path: Path, damage: ModelDamage
) -> None:
    folder = in_two_shards(make_tiny_model(tmp_path / "model"))
    assert load_base_model("whole", folder).vocab_size == 259
    damage.happen(folder)
    with pytest.raises(Refused, match=damage.words) as caught:
        load_base_model("damaged", folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
