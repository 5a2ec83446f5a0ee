"""Small files are read into memory and large ones as a stream, and both report the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clocks import Lines
from tinkersmith.batches.in_memory import SamplesInMemory
from tinkersmith.batches.read import read_data
from tinkersmith.batches.streamed import SampleStream
from tinkersmith.data import large_files
from tinkersmith.progress import Progress
from tinkersmith.settings.reading import settings_from


def test_the_size_decides_and_the_report_is_the_same_but_for_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Any] = [{"instruction": f"q {n}", "output": "a"} for n in range(40)]
    records += [records[0], {"instruction": "no output"}, 7]
    file, other = tmp_path / "data.jsonl", tmp_path / "validation.json"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    other.write_text(json.dumps([records[3], {"instruction": "new", "output": "b"}, 8]))
    settings = settings_from(
        {"DATA_FILES": [str(file), "gone.json"], "VALIDATION_FILES": [str(other), "lost.json"]}
    )
    progress = Progress(Lines().say)
    small = read_data(settings, progress)
    monkeypatch.setattr(large_files, "STREAMED_ABOVE", 100)
    large = read_data(settings, progress)
    assert isinstance(small, SamplesInMemory) and isinstance(large, SampleStream)
    assert small.first == large.first
    *lines, about_streams = large.report()
    assert lines == small.report()
    assert about_streams.startswith("The files are large: they are read as a stream")
    for expected in (
        f"Read 41 samples from {file} as Alpaca records",
        f"Read 2 samples from {other} as Alpaca records",
        "Skipped 3 records, listed in skipped.jsonl:",
        "Kept for validation: 2 samples.",
    ):
        assert expected in lines
    assert sum("does not exist" in line for line in lines) == 2
    for source in (small, large):  # without a run's folder, no file lists anything
        unlisted = source.report(listed=False)
        assert "Skipped 3 records:" in unlisted
        assert not [line for line in unlisted if ".jsonl" in line and str(tmp_path) not in line]
    assert sum("1 validation sample asks" in line for line in lines) == 1
    assert sum("Found 1 exact duplicate" in line for line in lines) == 1
