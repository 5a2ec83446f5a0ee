"""docs/reference/compatibility.md is what a run of tools/compatibility.py writes."""

import sys

import pytest
import tinker

from tests.support.engine import KEY, MODEL, RunningEngine
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import compatibility

pytestmark = pytest.mark.engine


def test_the_table_of_methods_and_commands_is_what_a_run_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_PROJECT_ID", "local")
    if not tinker.__version__.startswith(compatibility.SDK):
        pytest.skip(f"the table is of tinker {compatibility.SDK}, not of {tinker.__version__}")
    assert compatibility.run_page() == compatibility.PAGE.read_text(encoding="utf-8")


def test_a_method_without_a_driver_is_an_error(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(compatibility.METHODS, "RestClient.whoami")
    with (
        compatibility.new_world(engine.url, KEY, MODEL) as world,
        pytest.raises(LookupError, match=r"without a driver.*whoami"),
    ):
        compatibility.page(world)
