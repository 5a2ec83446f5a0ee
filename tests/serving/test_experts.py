"""Adapters of a base model with experts, served together and asked by OpenAI's client."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.families import make
from tests.support.loading import load_with_torch
from tests.support.serving import openai_of, serving
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.serving.models import models_to_serve
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.long]


def test_adapters_of_a_base_with_experts_answer_by_their_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "moe", "qwen3_moe")
    base = load_with_torch("moe", folder)
    for seed, name in enumerate(("first", "second"), start=1):
        adapter = filled_adapter(base, LoraConfig(4, seed, train_unembed=False), seed)
        save_as_peft(base, adapter, tmp_path / name)
    settings = settings_from({"OUTPUT_DIR": str(tmp_path / "runs"), "PROMPT_TEMPLATE": "chat"})
    names = [str(tmp_path / "first"), f"other={tmp_path / 'second'}"]
    models = models_to_serve(names, settings, base_model=str(folder))
    with serving(models) as server:
        client = openai_of(server)
        answers: dict[str, str] = {}
        for model in client.models.list():
            asked: Any = {"model": model.id, "prompt": "3 + 4", "temperature": 0, "max_tokens": 24}
            [choice] = client.completions.create(**asked).choices
            chunks = client.completions.create(**asked, stream=True)
            assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
            answers[model.id] = choice.text
    assert list(answers) == ["first", "other", "moe"] and len(set(answers.values())) == 3
