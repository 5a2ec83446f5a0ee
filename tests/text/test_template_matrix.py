"""Every conversation becomes the tokens that transformers gives, in all templates and settings."""

from pathlib import Path

import pytest

from tests.support.chat_families import FAMILIES, make_family_tokenizer
from tests.support.template_matrix import check_family
from tinkersmith.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_is_trained_as_transformers_writes_it(name: str, tmp_path: Path) -> None:
    hf_tokenizer = make_family_tokenizer(tmp_path, FAMILIES[name])
    counts = check_family(hf_tokenizer, load_tokenizer(tmp_path), FAMILIES[name])
    print(name, dict(counts))
    assert counts["cases"] >= 100 and counts["trained answers"] >= 100
    assert counts["sequences"] >= 100
