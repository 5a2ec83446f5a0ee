"""The ranking of samples by their losses over the epochs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.sample_files import write
from tinkersmith.batches.in_memory import read_into_memory
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import SAMPLE_LOSSES_FILE, RunFolder
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.hard_samples import (
    HARD_SAMPLES_FILE,
    hard_samples_line,
    rank_samples,
    write_hard_samples,
)

WRONG = {5, 77, 140, 199}
COUNT = 200


def record_losses(run: RunFolder, epochs: int = 3, batch: int = 8, seed: int = 1) -> None:
    """The losses of a model that learns; the wrong samples lose 1.5 more, until it memorises."""
    random = np.random.default_rng(seed)
    step = 0
    for epoch in range(1, epochs + 1):
        order = random.permutation(COUNT) + 1
        for start in range(0, COUNT, batch):
            step += 1
            level = 3 * np.exp(-step / 10) + 0.2
            rows: list[list[float]] = []
            for record in order[start : start + batch].tolist():
                loss = level * np.exp(0.3 * random.standard_normal())
                loss += 1.5 / epoch if record in WRONG else 0
                rows.append([record, 20, round(float(loss), 5)])
            line = {"step": step, "epoch": epoch, "losses": {"data.json": rows}}
            run.append(SAMPLE_LOSSES_FILE, [line])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path)
    record_losses(folder)
    return folder


def data(tmp_path: Path, count: int = COUNT) -> Any:
    samples = [
        {"instruction": f"Question {number}?", "input": "Here.", "output": "long " * 100}
        for number in range(1, count + 1)
    ]
    file = write(tmp_path / "data.json", samples)
    return read_into_memory(settings_from({"DATA_FILES": [file.name]}))


def test_the_samples_that_stay_hard_are_first_though_early_ones_lose_more(run: RunFolder) -> None:
    hard = rank_samples(run, ["data.json"])
    assert {sample.source.record for sample in hard.samples[: len(WRONG)]} == WRONG
    assert hard.count == COUNT and hard.outstanding >= 2
    plain = sorted(hard.samples, key=lambda sample: -(sample.losses[0] or 0))
    assert plain[0].source.record not in WRONG, "the first epoch alone finds them as well"


def test_the_line_says_the_first_sample_and_nothing_where_none_stands_out(
    run: RunFolder, tmp_path: Path
) -> None:
    hard = rank_samples(run, ["data.json"])
    line = hard_samples_line(hard)
    assert line.endswith(" Look at these samples first when you search for wrong answers.")
    first = hard.samples[0]
    assert f"data.json, record {first.source.record} (loss {first.losses[-1]:.3g}, " in line
    (tmp_path / "calm").mkdir()
    calm = RunFolder(tmp_path / "calm")
    rows = [[record, 20, 0.3] for record in range(1, COUNT + 1)]
    calm.append(SAMPLE_LOSSES_FILE, [{"step": 1, "epoch": 1, "losses": {"data.json": rows}}])
    assert hard_samples_line(rank_samples(calm, ["data.json"])) == ""


def test_the_file_holds_losses_their_fall_and_the_beginnings_of_the_texts(
    run: RunFolder, tmp_path: Path
) -> None:
    hard = rank_samples(run, ["data.json"], listed=20)
    write_hard_samples(run, hard, data(tmp_path))
    lines = run.lines(HARD_SAMPLES_FILE)
    assert [line["rank"] for line in lines] == list(range(1, 21))
    assert [line["score"] for line in lines] == sorted((x["score"] for x in lines), reverse=True)
    stored = {
        (record, line["epoch"]): loss
        for line in run.lines(SAMPLE_LOSSES_FILE)
        for record, _, loss in line["losses"]["data.json"]
    }
    for line in lines:
        assert line["file"] == "data.json"
        assert line["losses"] == [stored[line["record"], epoch] for epoch in (1, 2, 3)]
        assert line["fall"] == pytest.approx(line["losses"][0] - line["losses"][2], abs=1e-5)
        assert line["question"] == f"Question {line['record']}?\nHere."
        assert line["answer"] == ("long " * 100)[:200] + "..."


def test_a_sample_that_an_epoch_does_not_take_has_no_loss_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for epoch, records in ((1, (1, 2)), (2, (2,)), (3, (1, 2, 2))):
        rows = [[record, 3, float(epoch + place)] for place, record in enumerate(records)]
        run.append(SAMPLE_LOSSES_FILE, [{"step": epoch, "epoch": epoch, "losses": {"x": rows}}])
    losses = {sample.source.record: sample.losses for sample in rank_samples(run, []).samples}
    assert losses == {1: [1.0, None, 3.0], 2: [2.0, 2.0, 4.5]}


def test_names_of_files_are_those_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored as seen from the run's folder, as a run may be resumed from elsewhere."""
    (tmp_path / "work" / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    run = RunFolder(Path("runs/mine"))
    rows = {"../../a.json": [[1, 1, 1.0]], "../../../b.json": [[1, 1, 2.0]]}
    run.append(SAMPLE_LOSSES_FILE, [{"step": 1, "epoch": 1, "losses": rows}])
    sources = {sample.source for sample in rank_samples(run, ["a.json", "../b.json"]).samples}
    assert sources == {Source("a.json", 1), Source("../b.json", 1)}


def test_a_damaged_line_is_a_sentence(run: RunFolder) -> None:
    with run.file(SAMPLE_LOSSES_FILE).open("a") as file:
        file.write("{no\n")
    with pytest.raises(UserError, match=r"sample_losses.jsonl, line 76 is damaged: it is not JSON"):
        rank_samples(run, ["data.json"])


@pytest.mark.parametrize("line", [{"step": 1}, {"epoch": 1, "losses": []}, {"epoch": "x"}])
def test_a_line_of_another_form_is_a_sentence(tmp_path: Path, line: dict[str, Any]) -> None:
    run = RunFolder(tmp_path)
    run.file(SAMPLE_LOSSES_FILE).write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="line 1 is damaged"):
        rank_samples(run, ["data.json"])
