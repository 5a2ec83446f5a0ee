"""The figures of docs/explanation/speed.md are those of benchmarks/results; their counts hold."""

import json
from pathlib import Path

import pytest

from benchmarks.table import (
    BEGIN,
    CHINESE,
    END,
    ENGLISH,
    HEADS,
    RESULTS,
    ROWS,
    table,
    with_table,
)
from benchmarks.training_data import SAMPLES, random_tokens, step_lengths, useful_flops
from tests.support.paths import ROOT


@pytest.mark.parametrize("page", list(HEADS))
def test_the_table_of_figures_is_the_one_that_the_results_give(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split(BEGIN, 1)[1].split(END, 1)[0]
    assert shown == table(page), "run: python -m benchmarks.table"


def test_a_changed_result_changes_the_table(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "exactness.json").read_text())
    content["figures"]["greedy prompts equal token for token"] = 49
    (tmp_path / "exactness.json").write_text(json.dumps(content))
    assert "49 / 50" in table(ENGLISH, tmp_path)
    assert "49 / 50" not in table(ENGLISH)


def test_a_missing_results_file_takes_its_rows_along(tmp_path: Path) -> None:
    assert table(ENGLISH, tmp_path) == HEADS[ENGLISH]


def test_both_languages_show_the_same_rows_and_values() -> None:
    def values(page: str) -> list[list[str]]:
        return [line.split(" | ")[1:] for line in table(page).splitlines()[2:]]

    assert values(ENGLISH) == values(CHINESE)
    assert len({row.english for row in ROWS}) == len({row.chinese for row in ROWS}) == len(ROWS)


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{BEGIN}old\n{END}\nafter\n"
    assert with_table(text, "new\n") == f"before\n{BEGIN}new\n{END}\nafter\n"


def test_the_operations_of_a_step_follow_from_its_shapes() -> None:
    # One graded token: each layer's q, k, v, o, gate, up and down, written out.
    frozen = 512 * 512 + 2 * 512 * 256 + 512 * 512 + 3 * 512 * 1536
    lora = 32 * ((512 + 512) + 2 * (512 + 256) + (512 + 512) + 3 * (512 + 1536))
    layers = 8 * (4 * frozen + 6 * lora + 6 * 2 * 512) - 2 * 512 * 1024
    assert useful_flops([[0, 1]], 1000) == layers + 4 * 512 * 1000


def test_drawn_lengths_look_like_the_data_they_stand_for(tmp_path: Path) -> None:
    steps, source = step_lengths(tmp_path / "absent.json", 60, 16384)
    totals = sorted(sum(pair) for step in steps for pair in step)
    assert source.startswith("drawn")
    assert all(len(step) == SAMPLES for step in steps)
    assert 440 < sum(totals) / len(totals) < 560
    assert 300 < totals[len(totals) // 2] < 400
    graded = sum(pair[1] for step in steps for pair in step)
    assert graded / sum(totals) == pytest.approx(0.76, abs=0.01)


def test_samples_of_a_file_are_cut_to_the_longest_allowed(tmp_path: Path) -> None:
    data = tmp_path / "some.json"
    records = [{"instruction": "a" * 30, "output": "b" * 10 * (i + 1)} for i in range(40)]
    data.write_text(json.dumps(records))
    steps, _ = step_lengths(data, 2, 100)
    assert max(sum(pair) for step in steps for pair in step) == 100
    tokens = random_tokens(steps[0], 50)
    assert [len(one) - 1 for one in tokens] == [sum(pair) for pair in steps[0]]
    assert all(one.min() >= 0 and one.max() < 50 for one in tokens)
