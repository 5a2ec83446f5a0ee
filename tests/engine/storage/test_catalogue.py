"""Folders of base models are looked at before the engine offers them; what is wrong is named."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.damaged_models import MODEL_DAMAGES, ModelDamage, in_two_shards
from tests.support.hubs import REFUSING, hub_with
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.storage.catalogue import make_catalogue


@pytest.mark.parametrize("damage", [d for d in MODEL_DAMAGES if d.in_headers], ids=lambda d: d.name)
def test_a_damaged_folder_is_refused_at_the_engines_start(
    tmp_path: Path, damage: ModelDamage
) -> None:
    folder = in_two_shards(make_tiny_model(tmp_path / "model"))
    damage.happen(folder)
    with pytest.raises(Refused, match=damage.words) as caught:
        make_catalogue([f"mine={folder}"])
    assert re.search(re.escape(str(folder)), str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["", "[]", '{"model_type": "x", "text_config": 3}'])
def test_a_config_that_is_damaged_later_does_not_stop_the_list_of_models(
    tmp_path: Path, config: str
) -> None:
    folder = in_two_shards(make_tiny_model(tmp_path / "model"))
    catalogue = make_catalogue([f"mine={folder}"])
    assert catalogue.to_json()[-1]["max_context_length"] == 512
    (folder / "config.json").write_text(config)
    assert catalogue.to_json()[-1]["max_context_length"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "su", "original_max_position_embeddings": 64}}, 64),
        (
            {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 64},
            64,
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, 512),
        ({"text_config": {"max_position_embeddings": 96}}, 96),
        ({"sliding_window": 32, "use_sliding_window": True}, 512),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_announced_context_is_that_of_config_json(
    tmp_path: Path, changes: dict[str, object], expected: int | None
) -> None:
    folder = make_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    catalogue = make_catalogue([f"mine={folder}"])
    assert catalogue.context("mine") == expected
    catalogue.contexts["mine"] = 77  # as the model accepts once it is loaded
    assert catalogue.to_json()[-1]["max_context_length"] == 77


def test_a_hub_that_cannot_be_reached_is_not_called_one_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    catalogue = make_catalogue([])
    for endpoint, words in ((REFUSING, "the Hub cannot be reached"), ("", "does not provide it")):
        with hub_with("some-org/other", make_tiny_model(tmp_path / "on-the-hub")) as answering:
            monkeypatch.setattr(constants, "ENDPOINT", endpoint or answering.url)
            with pytest.raises(Refused, match=words):
                asyncio.run(catalogue.fetcher("some-org/some-model"))
