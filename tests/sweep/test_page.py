"""sweep.html: what it holds, and a click through it in a browser."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.browser import DESKTOP, PHONE, open_page, overflow
from tests.support.processes import eventually
from tinkersmith.files import write_json
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.reading import settings_from
from tinkersmith.sweep.conduct import comparable_values, results_of
from tinkersmith.sweep.grid import combinations_of, read_grid
from tinkersmith.sweep.page import write_sweep_page
from tinkersmith.sweep.ranking import Difference, effects, rank
from tinkersmith.sweep.record import Sweep, new_sweep
from tinkersmith.sweep.rungs import Rung
from tinkersmith.sweep.words import verdict_sentence


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of six runs, made up: five finished, and one diverged."""
    runs = tmp_path_factory.mktemp("runs")
    settings = settings_from({"VALIDATION_RATIO": 0.1, "OUTPUT_DIR": str(runs)})
    grid = read_grid(["LEARNING_RATE=1e-3,3e-3,1e-2", "LORA_RANK=4,16"], settings)
    made = new_sweep(
        runs / "six",
        settings,
        grid,
        combinations_of(grid, settings),
        [Rung(1.0, 6)],
        [40] * 6,
        by="validation_loss",
        seeds=1,
        budget=None,
        keep="all",
        backend="embedded",
    )
    for run in made.runs:
        folder = RunFolder(runs / f"{made.prefix(run)}-20260101-000000")
        folder.path.mkdir(parents=True)
        run.folder, run.steps_done = folder.name, 40
        write_json(
            folder.file("settings.json"),
            {"settings": {"VALIDATION_RATIO": 0.1}, "prompt_template": {}, "total_steps": 40},
        )
        is_lost = run.number == 6
        level = 9.0 if is_lost else 1.0 / run.number
        lines = [
            {"step": step, "epoch": 1, "loss": level + 3 / step, "completion_tokens": 9}
            for step in range(1, 41)
        ]
        lines += [{"step": step, "validation_loss": level + 2 / step} for step in (20, 40)]
        folder.append("metrics.jsonl", lines)
        path = f"tinker://r{run.number}/weights/step-000040"
        point = {"name": "step-000040", "step": 40, "epoch": 1, "state_path": path}
        folder.append("checkpoints.jsonl", [{**point, "sampler_path": path}])
        rows = [[n, level + 0.05 + 0.001 * n * (n + run.number), 7] for n in range(1, 30)]
        folder.append(
            "measured.jsonl",
            [{"step": 40, "of": "validation_loss", "answers": 1, "values": {"a.json": rows}}],
        )
        run.status = "diverged" if is_lost else "finished"
        run.rung_values = [] if is_lost else [level + 0.05]
        run.reason = "The loss has risen to <b>9</b>." if is_lost else ""
    made.folder.mkdir()
    made.write()
    return made


def page_of(sweep: Sweep, language: str) -> Path:
    ranking = rank(sweep.by, results_of(sweep))
    values = [combination.values for combination in sweep.combinations]
    found = effects(sweep.grid, values, comparable_values(sweep))
    return write_sweep_page(sweep, ranking, found, language)


def test_the_page_loads_nothing_and_says_what_the_sweep_found(sweep: Sweep) -> None:
    text = page_of(sweep, "en").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<b>9</b>" not in text
    assert re.findall(r"(?:src|href)=", text) == []
    held = re.search(r'id="data">(.*?)</script>', text)
    assert held is not None
    data = json.loads(held[1])
    assert data["verdict"].startswith("Best by validation loss: LEARNING_RATE=0.01 LORA_RANK=4.")
    assert [row["place"] for row in data["rows"]] == [1, 2, 3, 4, 5, None]
    assert data["rows"][-1]["reason"] == "The loss has risen to <b>9</b>."
    assert data["effects"][0]["setting"] == "LEARNING_RATE"
    assert [kind for kind, _ in data["commands"]] == ["measure", "export"]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_table_is_sorted_and_chooses_the_curves_in_a_browser(
    sweep: Sweep, size: tuple[int, int]
) -> None:
    with open_page(page_of(sweep, "en"), size=size) as page:
        assert overflow(page) == 0
        rows = page.locator("#table tbody tr")
        assert rows.count() == 6 and rows.first.get_attribute("class") == "best"
        ranks = page.locator("#table th button", has_text="LORA_RANK")
        ranks.click()
        column = page.locator("#table tbody tr td:nth-child(4)")
        assert column.all_inner_texts() == ["4", "4", "4", "16", "16", "16"]
        ranks.press("Enter")
        assert column.all_inner_texts() == ["16", "16", "16", "4", "4", "4"]
        assert page.locator("th[aria-sort='descending']").count() == 1
        page.locator("#table th button", has_text="Place").click()
        lines = page.locator("#losses path.line")
        assert lines.count() == 5, "the diverged run would squeeze the others"
        if size == PHONE:  # nothing of a row is outside the screen
            for cell in page.locator("#table tbody td:visible").all():
                box = cell.bounding_box()
                assert box is not None and box["x"] + box["width"] <= PHONE[0]
        boxes = page.locator("#table tbody input")
        boxes.first.uncheck()
        assert eventually(lambda: lines.count() == 4)
        boxes.last.check()
        assert eventually(lambda: lines.count() == 5)
        assert "The loss has risen to <b>9</b>." in page.locator("#reasons").inner_text()
        page.locator("#next button").first.click()
        page.locator("#next button", has_text="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "evaluate" in copied and "tinker://r5/weights/step-000040" in copied
        page.locator("button.theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_combinations_that_tie_are_told_so(sweep: Sweep) -> None:
    ranking = rank(sweep.by, results_of(sweep))
    tie = Difference(0.0, 0.0, 0.0, 29, 1.0, 1.0, seeds_alone=False)
    tied = replace(ranking, rows=[ranking.rows[0], replace(ranking.rows[1], difference=tie)])
    assert verdict_sentence(sweep, tied).startswith(
        "No winner: the 2 combinations that were compared have the same validation loss."
    )
    assert "2 种组合的验证损失都一样" in verdict_sentence(sweep, tied, "zh")


def test_a_loss_that_shot_up_leaves_the_others_their_scale(sweep: Sweep) -> None:
    ranking = rank(sweep.by, results_of(sweep))
    ranking.rows[-1] = replace(ranking.rows[-1], mean=2020.5, low=1900.0, high=2100.0)
    file = write_sweep_page(sweep, ranking, [], "en")
    with open_page(file) as page:
        assert page.locator("#scores circle").count() == 4
        assert page.locator("#scores text", has_text="2020").count() == 1
        ticked = page.locator("#table tbody input").evaluate_all("all => all.map(x => x.checked)")
        assert ticked == [True] * 4 + [False] * 2
        lines = page.locator("#losses path.line")
        assert lines.count() == 4
        page.locator("#table tbody input").nth(4).check()  # it is drawn where that is wanted
        assert eventually(lambda: lines.count() == 5)


@pytest.mark.parametrize("ended", [0, 1, 4])
def test_a_page_of_runs_that_are_still_at_work_says_so_and_offers_no_export(
    sweep: Sweep, ended: int
) -> None:
    at_work = copy.deepcopy(sweep)
    for run in at_work.runs[ended:]:
        run.status, run.folder, run.rung_values, run.steps_done = "waiting", "", [], 0
    with open_page(page_of(at_work, "en")) as page:
        verdict = page.locator("#verdict").inner_text()
        assert verdict.startswith(f"So far: {ended} of 6 runs have ended, and this page is ")
        assert ("Best by validation loss" in verdict or "No winner" in verdict) == (ended > 0)
        assert page.locator("#next-card").count() == 0
        assert page.locator("#table tbody tr").count() == 6


def test_the_page_speaks_chinese(sweep: Sweep) -> None:
    with open_page(page_of(sweep, "zh"), language="zh-CN") as page:
        text = page.locator("body").inner_text()
        for words in ("按验证损失最佳", "所有组合", "哪个设置重要", "训练损失", "发散"):
            assert words in text
        for words in ("All combinations", "Training loss", "undefined", "NaN", "validation"):
            assert words not in text


def test_a_lost_run_with_damaged_metrics_is_named_on_the_page_and_the_terminal(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep.folder_of(sweep.runs[5])  # it diverged: its values are not compared
    assert folder is not None
    file = folder.file("metrics.jsonl")
    sound = file.read_bytes()
    file.write_bytes(b'{"step": 1\n' + sound)
    try:
        page = page_of(sweep, "en").read_text()
    finally:
        file.write_bytes(sound)
    said = capsys.readouterr().out
    assert f"Warning: {file}, line 1 is damaged: it is not JSON." in said
    assert said.count("\n") == 1 and "The curves of this run are left out." in page
