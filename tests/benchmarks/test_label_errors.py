"""The short form of benchmarks/label_errors.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.label_errors import KINDS, auc, figures_of, planted, trained_on
from tests.support.environment import without_cloud
from tests.support.paths import ROOT

RECORDS = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))


def test_each_planted_record_has_another_answer_of_its_kind() -> None:
    records, kinds = planted(RECORDS, seed=3)
    assert len(kinds) == 100 and set(kinds.values()) == set(KINDS)
    for number, (record, original) in enumerate(zip(records, RECORDS, strict=True), start=1):
        assert (record != original) == (number in kinds)
        assert {**record, "output": ""} == {**original, "output": ""}


def test_the_auc_is_that_of_its_definition() -> None:
    assert auc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False])) == 1.0
    assert auc(np.array([1.0, 2.0, 3.0]), np.array([True, False, False])) == 0.0
    assert auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


@pytest.mark.engine
@pytest.mark.long
def test_wrong_answers_among_some_samples_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer samples than the whole data: the model knows less when it first sees one."""
    without_cloud(monkeypatch)
    records, kinds = planted(RECORDS[:400], seed=1)
    figures = figures_of(trained_on(records, 1, tmp_path), kinds)
    assert figures["samples"] == 400 and figures["planted"] == 20
    assert float(str(figures["AUC"])) >= 0.93, figures
