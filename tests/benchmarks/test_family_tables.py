"""The tables of docs/reference/model-families.md are those of benchmarks/results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.family_tables import (
    CHINESE,
    ENGLISH,
    PAGES,
    RESULTS,
    export_table,
    training_table,
    with_tables,
)
from tests.support.paths import ROOT


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_families_are_those_that_the_results_give(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert training_table(page) in text and export_table(page) in text
    assert with_tables(text, page) == text, "run: python -m benchmarks.family_tables"


def test_a_changed_result_changes_its_cell(tmp_path: Path) -> None:
    content = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    content["figures"]["families"]["gpt-oss"] |= {"gradient": 0.25, "resumed bit for bit": False}
    (tmp_path / "families.json").write_text(json.dumps(content), encoding="utf-8")
    [line] = [line for line in training_table(ENGLISH, tmp_path).splitlines() if "gpt-oss" in line]
    assert "| 2.5e-01 |" in line and line.endswith("| no |")
    [line] = [line for line in training_table(CHINESE, tmp_path).splitlines() if "gpt-oss" in line]
    assert "| 2.5e-01 |" in line and line.endswith("| 否 |")


def test_both_languages_show_the_same_figures() -> None:
    for table in (training_table, export_table):
        english, chinese = (
            [re.findall(r"\d[\w./-]*", line) for line in table(page).splitlines()[2:-2]]
            for page in PAGES
        )
        assert english == chinese and len(english) > 10


def test_no_english_word_is_left_in_the_chinese_tables() -> None:
    tables = training_table(CHINESE) + export_table(CHINESE)
    assert not [word for word in (" with ", " without ", "limit", "yes") if word in tables]


def test_the_export_table_says_what_was_not_measured() -> None:
    lines = export_table(ENGLISH).splitlines()
    assert [line.split(" | ")[0] for line in lines if "not measured" in line] == ["| Kimi K2"]
    assert [line.split(" | ")[0] for line in lines if "without" in line] == ["| Nemotron-3"]
