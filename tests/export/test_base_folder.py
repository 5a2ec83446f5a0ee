"""Damaged and wrong base folders: a merge refuses them in one sentence, before it writes."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support.damaged_models import INDEX, MODEL_DAMAGES, SECOND, ModelDamage, in_two_shards
from tests.support.exports import export, make_adapter
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_base

ATTENTION = ["q_proj", "v_proj"]
SEEN = [damage for damage in MODEL_DAMAGES if damage.in_headers]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora 适配")
    make_adapter(make_tiny_model(folder / "base"), folder / "lora", ATTENTION)
    return folder / "lora"


def refusal(lora: Path, base: Path, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        export(lora, base, out, merged=True)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "damage",
    [damage for damage in SEEN if damage.name != "config of something else"],
    ids=lambda damage: damage.name,
)
def test_a_damaged_base_is_refused(tmp_path: Path, lora: Path, damage: ModelDamage) -> None:
    base = in_two_shards(make_tiny_model(tmp_path / "base 基座"))
    damage.happen(base)
    sentence = refusal(lora, base, tmp_path / "out")
    if damage.name == "a shard gone":
        assert f"there is no {SECOND}" in sentence and "--base-folder" in sentence
    else:
        assert re.search(damage.words, sentence), sentence
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_shard_that_is_a_copy_of_another_is_found(tmp_path: Path, lora: Path) -> None:
    base = in_two_shards(make_tiny_model(tmp_path / "base"))
    first = base / SECOND.replace("2-of", "1-of")
    (base / SECOND).write_bytes(first.read_bytes())
    sentence = refusal(lora, base, tmp_path / "out")
    assert re.search(rf"{SECOND} has no tensor 'model\.\S+', which the index names", sentence)


def test_shards_without_their_index_are_named(tmp_path: Path, lora: Path) -> None:
    base = in_two_shards(make_tiny_model(tmp_path / "base"))
    (base / INDEX).unlink()
    sentence = refusal(lora, base, tmp_path / "out")
    assert f"has weights in several files, but not {INDEX}" in sentence


def test_a_base_of_another_size_or_depth_is_refused(tmp_path: Path, lora: Path) -> None:
    wider = make_tiny_model(tmp_path / "wider", hidden=64)
    assert "Check that this is the model it was trained on" in refusal(lora, wider, tmp_path / "1")
    flatter = make_tiny_model(tmp_path / "flatter", layers=1)
    sentence = refusal(lora, flatter, tmp_path / "2")
    assert "layers.1" in sentence and "Check that this is the model it was trained on" in sentence


def test_an_output_layer_that_was_lost_is_named(tmp_path: Path, lora: Path) -> None:
    base = make_tiny_model(tmp_path / "base", tied=False)
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors")
    sentence = refusal(lora, base, tmp_path / "out")
    assert "tie_word_embeddings is false" in sentence and "lm_head.weight" in sentence


def test_a_tied_base_may_store_its_output_layer_twice(tmp_path: Path, lora: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": copy}, base / "model.safetensors")
    assert read_base(base).tied
    merged = export(lora, base, tmp_path / "out", merged=True)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is True
