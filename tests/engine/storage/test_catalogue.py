"""Folders of base models are looked at before the engine offers them; what is wrong is named."""

import re
from pathlib import Path

import pytest

from tests.support.damaged_models import MODEL_DAMAGES, ModelDamage, in_two_shards
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
