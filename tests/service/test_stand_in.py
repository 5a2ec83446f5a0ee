"""The model that stands in for a larger one in a rehearsal."""

import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.service.stand_in import embedding_rows, write_stand_in
from tinkersmith.text.tokenizer import load_tokenizer


def test_about_half_of_the_tokens_of_a_stand_in_end_the_text(tmp_path: Path) -> None:
    write_stand_in(tmp_path / "model", 3000, 17, 4096)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert model.config.max_position_embeddings == 4096
    tokens = torch.randint(0, 3000, (4, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chance = model(tokens).logits.softmax(-1)[..., 17]
    assert 0.25 < float(chance.mean()) < 0.75
    assert float(chance.min()) > 0.05


def test_a_vocabulary_of_200_000_takes_seconds_and_some_megabytes(tmp_path: Path) -> None:
    begun = time.process_time()
    write_stand_in(tmp_path / "model", 200_000, 199_999, 262_144)
    assert time.process_time() - begun < 10
    assert sum(file.stat().st_size for file in (tmp_path / "model").iterdir()) < 60_000_000


def test_a_stand_in_has_a_row_for_every_id_of_the_tokenizer(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    assert embedding_rows(load_tokenizer(tmp_path)) == 259
