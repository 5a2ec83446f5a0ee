"""benchmarks/families.py and export_families.py measure every family, and see what is wrong."""

import json
from pathlib import Path

import pytest

from benchmarks import export_families, families
from benchmarks.family_tables import RESULTS
from tests.support.export_families import FAMILIES as EXPORT_FAMILIES
from tinkersmith.engine.training.optimizer import new_state

pytestmark = pytest.mark.engine


def figures_of(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def test_the_results_have_every_tiny_family_within_the_limits() -> None:
    results = figures_of("families")
    names = [family.name for family in families.all_families()]
    assert list(results["families"]) == names, "run: python -m benchmarks.families"
    assert results["limits"] == families.LIMITS
    assert not [name for name, row in results["families"].items() if families.broken(row)]


def test_the_results_have_every_form_of_export() -> None:
    rows = figures_of("export_families")["exports"]
    forms = [
        (name, form)
        for name, family in EXPORT_FAMILIES.items()
        for form in (["bfloat16", family.quantised] if family.quantised else ["bfloat16"])
    ]
    wanted = "run: python -m benchmarks.export_families"
    assert [(row["family"], row["base"]) for row in rows] == forms, wanted


def test_a_figure_beyond_its_limit_or_no_number_is_named() -> None:
    good = dict.fromkeys(families.LIMITS, 0.0) | {"resumed bit for bit": True}
    assert families.broken(good) == []
    bad = good | {"loss": 1e-4, "packed": float("nan"), "resumed bit for bit": False}
    assert families.broken(bad) == ["loss", "packed", "resumed bit for bit"]


def test_a_family_is_measured_and_a_lost_optimizer_state_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families.all_families()[0]
    assert families.broken(families.measure(family, tmp_path / "right")) == []
    monkeypatch.setattr(families, "load_state_tensors", lambda adapter, _: new_state(adapter))
    lost = families.measure(family, tmp_path / "lost")
    assert families.broken(lost) == ["resumed bit for bit"]


def test_both_exports_of_a_family_are_measured(tmp_path: Path) -> None:
    row = export_families.measure("Qwen3", quantised=False, folder=tmp_path)
    assert 0 < row["merged"] < export_families.LIMIT < row["changed by the LoRA"]
    assert 0 < row["adapter in peft"] < export_families.LIMIT
