"""benchmarks/serving.py keeps the parts of earlier runs."""

import json
from pathlib import Path

import pytest

from benchmarks import results_file, serving


def test_a_part_is_written_beside_those_that_were_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (results_file, serving):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    file = tmp_path / "serving.json"
    # Figures of an older version of the script have no date of their own.
    file.write_text(json.dumps({"figures": {"bundled": {"ratio": 1}}}))
    serving.write_part("load", {"errors": 0}, 3, 2)
    serving.write_part("bundled", {"generate": 1}, 3, 2)
    serving.write_part("load", {"errors": 2}, 3, 2)
    content = json.loads(file.read_text())
    assert content["command"] == "python -m benchmarks.serving --rounds 3 --minutes 2"
    figures = content["figures"]
    assert figures["load"]["errors"] == 2 and figures["bundled"]["generate"] == 1
    assert "ratio" not in figures["bundled"]
