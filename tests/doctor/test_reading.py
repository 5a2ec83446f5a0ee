"""Files of every size and kind are walked twice, and written as they were."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.data.samples import Source
from tinkersmith.doctor import reading as module
from tinkersmith.doctor.reading import Reading


@pytest.fixture(params=[50_000_000, 100], ids=["whole", "as a stream"])
def in_one_piece_up_to(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "_WHOLE_AT_MOST", request.param)
    return request.param


def some_records(rng: random.Random) -> list[Any]:
    records: list[Any] = [
        {"instruction": f"Question {number}?", "output": "是" * rng.randint(1, 30), "id": number}
        for number in range(50)
    ]
    records[7] = {"instruction": "No answer."}
    records[9]["large"] = 2**70
    records[11]["float"] = 0.1
    return records


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_all_records_come_in_order_with_their_places(
    form: str, in_one_piece_up_to: int, tmp_path: Path
) -> None:
    records = some_records(random.Random(1))
    file = tmp_path / f"data.{form}"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if form == "jsonl" else "[" + ",\n".join(lines) + "]"
    file.write_text(text, encoding="utf-8")
    reading = Reading([str(file)])
    samples = list(reading.samples())
    assert [sample.source.record for sample in samples] == [
        number for number in range(1, 51) if number != 8
    ]
    assert list(reading.again()) == samples
    assert reading.counts == {file.as_posix(): 49}
    assert reading.skipped_count == 1 and reading.first_skipped[0].source.record == 8
    assert list(reading.records()) == [
        (Source(file.as_posix(), number), record, number != 8)
        for number, record in enumerate(records, start=1)
    ]


def test_columns_are_used_in_every_walk(in_one_piece_up_to: int, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("frage,antwort\n" + "Was?,Das\n" * 20, encoding="utf-8")
    reading = Reading([str(file)], {"instruction": "frage", "output": "antwort"})
    samples = list(reading.samples())
    assert len(samples) == 20 and samples[0].output == "Das"
    assert list(reading.again()) == samples
    assert next(reading.records())[1:] == ({"frage": "Was?", "antwort": "Das"}, True)
