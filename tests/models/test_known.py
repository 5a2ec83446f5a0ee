"""The table of models explains names, and never replaces the server's list."""

import datetime as dt
import re

import pytest

from tinkersmith.models.known import (
    adapter_weights,
    current_replacements,
    known_model,
    not_offered,
    prices_of,
    retirement_note,
    suggested_learning_rate,
    vocabulary_size,
)
from tinkersmith.models.line_up import OFFERED, RETIRED, TABLE_DATE
from tinkersmith.models.names import _MODEL_ALIASES
from tinkersmith.models.table import OfferedModel, aligned_lines, offer_rows, unlisted_rows


def test_each_retired_model_has_a_date_and_leads_to_models_that_are_not_retired() -> None:
    for model in RETIRED:
        assert model.retired is not None
        assert dt.date(2026, 1, 1) < model.retired.since <= TABLE_DATE
        names = current_replacements(model)
        assert names
        for name in names:
            known = known_model(name)
            assert known is not None and known.retired is None, (model.name, name)


def test_names_are_in_the_table_once() -> None:
    names = [model.name.lower() for model in (*OFFERED, *RETIRED)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in names)


def test_no_alias_leads_to_a_retired_model() -> None:
    for name in _MODEL_ALIASES.values():
        known = known_model(name)
        assert known is None or known.retired is None, name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
            ["2026-06-12", "Qwen/Qwen3.6-35B-A3B", "non-thinking"],
        ),
        ("Qwen/Qwen3-30B-A3B-Instruct", ["(as Qwen/Qwen3-30B-A3B-Instruct-2507)", "2026-06-12"]),
        ("Qwen/Qwen3.5-27B", ["2026-06-12", "Qwen/Qwen3.8-27B"]),
    ],
)
def test_a_retired_name_says_since_when_and_what_its_page_leads_to(
    name: str, words: list[str]
) -> None:
    note = retirement_note(name)
    assert all(word in note for word in words), note


def test_a_replacement_that_the_server_does_not_offer_is_not_named() -> None:
    note = retirement_note("Qwen/Qwen3-32B", ["Qwen/Qwen3-8B"])
    assert "Qwen3.8" not in note and "2026-06-12" in note and "https://" in note
    assert retirement_note("Qwen/Qwen3-8B") == retirement_note("somebody/else") == ""


def test_the_servers_list_decides_where_the_table_says_otherwise() -> None:
    text = not_offered("Qwen/Qwen3-8B", "https://server", ["openai/gpt-oss-20b"], "openai/...")
    assert "does not offer Qwen/Qwen3-8B for training" in text
    assert "server's own list decides" in text


def test_prices_are_those_of_the_name_with_its_context() -> None:
    plain, longer = prices_of("Qwen/Qwen3.8-27B"), prices_of("Qwen/Qwen3.8-27B:peft:262144")
    assert plain is not None and longer is not None and plain.train is not None
    assert longer.train is not None and longer.train > plain.train
    assert prices_of("zai-org/GLM-5.3") is None  # offered with a long context alone
    assert prices_of("Qwen/Qwen3.8-27B:peft:12") is None
    assert prices_of("Qwen/Qwen3-32B") is prices_of("somebody/else") is None


def test_the_learning_rate_is_the_published_formula_and_unknown_elsewhere() -> None:
    assert suggested_learning_rate("Qwen/Qwen3-8B") == 4.7e-4  # 5e-4 * (2000 / 4096) ** 0.0775
    assert suggested_learning_rate("meta-llama/Llama-3.2-1B") == 4.9e-4
    assert suggested_learning_rate("somebody/qwen-finetune", hidden=2000) == 5e-4
    assert suggested_learning_rate("openai/gpt-oss-20b") is None


def test_an_adapters_size_grows_with_its_rank() -> None:
    assert adapter_weights("Qwen/Qwen3-8B", 32) == 32 * (1_769_472 + 958_464 + 156_032)
    assert adapter_weights("somebody/else", 32) is None


def test_a_model_that_the_table_does_not_know_is_shown_with_what_the_server_says() -> None:
    offers = [OfferedModel("org/new", 4096, True), OfferedModel("Qwen/Qwen3-8B", None, False)]
    lines = aligned_lines(offer_rows(offers))
    assert lines[1].split()[:2] == ["org/new", "4,096"] and "?" in lines[1]
    assert "sampling only" in lines[2] and "0.44" in lines[2]
    assert "Qwen/Qwen3-8B" not in [row["name"] for row in unlisted_rows(offers)]


def test_the_table_knows_the_size_of_every_vocabulary() -> None:
    assert vocabulary_size("Qwen/Qwen3-8B") == 151_936
    assert vocabulary_size("meta-llama/Llama-3.1-8B") == 128_256
    assert vocabulary_size("somebody/else") is None
    for model in (*OFFERED, *RETIRED):
        size = vocabulary_size(model.name)
        assert size is not None and 100_000 < size < 300_000 and size % 64 == 0, model.name
