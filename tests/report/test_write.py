"""The report of a real run in a browser; and what becomes of hostile texts and bad files."""

import json
from pathlib import Path

import pytest

from tests.support.browser import DESKTOP, PHONE, open_page, overflow
from tests.support.run_folders import checkpoint, run_of_settings
from tests.support.small_run import small_run
from tinkersmith.cli.results.report import report_command
from tinkersmith.errors import UserError
from tinkersmith.report.write import REPORT_FILE, write_report, write_report_or_warn
from tinkersmith.runs.folder import RunFolder

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("size", "language", "dark", "heading"),
    [(DESKTOP, "en", False, "Curves"), (PHONE, "zh", True, "曲线")],
)
def test_training_writes_a_report_that_a_browser_shows(
    tmp_path: Path, size: tuple[int, int], language: str, dark: bool, heading: str
) -> None:
    run = small_run().run
    assert run.file(REPORT_FILE).is_file()  # by training itself
    file = write_report(run, language=language, out=tmp_path / "report.html")
    with open_page(file, size=size, dark=dark) as page:
        assert page.locator("h2").first.inner_text() == heading
        assert page.locator("figure svg[role=img]").count() >= 4
        assert page.locator("path.line").count() >= 3
        assert page.locator(".notice code").inner_text().endswith("--compare-base")
        assert overflow(page) == 0
        # No name of a setting is broken within a word, and no long text is a narrow column.
        for name in page.locator("code.setting").all():
            box = name.bounding_box()
            assert box is not None and box["width"] > 30  # the shortest word of a name
        for cell in page.locator("td.long:visible").all():
            assert (cell.bounding_box() or {"width": 0})["width"] >= 190
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "theme"
        if size == PHONE:  # what is computed where, and with what versions, is a list there
            assert page.locator("table.stacked:visible").count() >= 1
            for cell in page.locator("table.stacked td:visible").all():
                box = cell.bounding_box()
                assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0]


@pytest.mark.engine
def test_paper_shows_what_is_folded_and_cuts_nothing(tmp_path: Path) -> None:
    file = write_report(small_run().run, language="en", out=tmp_path / "report.html")
    with open_page(file, size=(720, 1000)) as page:
        folded = page.locator("details:not([open]) table").first
        assert not folded.is_visible()
        page.emulate_media(media="print")
        assert folded.is_visible() and not page.locator("button:visible").count()
        widths = "nodes => nodes.map(node => node.scrollWidth - node.clientWidth)"
        assert set(page.locator(".scroll").evaluate_all(widths)) == {0}


def evaluated_run(folder: Path) -> tuple[RunFolder, Path]:
    run = run_of_settings(folder / "runs" / "one")
    run.append("metrics.jsonl", [{"step": 1, "epoch": 1, "loss": 2.0, "completion_tokens": 5}])
    run.add_checkpoint(checkpoint(1))
    estimate = {"mean": 0.5, "n": 2, "interval_95": [0.1, 0.9]}
    record = {
        "file": "t.json",
        "draw": 1,
        "question": "q",
        "prompt": HOSTILE,
        "expected": HOSTILE,
        "expected_answer": None,
        "generated": None,
        "final_answer": None,
        "rule": "",
        "kind": "",
        "stop_reason": "stop",
        "thought_finished": True,
        "tokens": 3,
        "prompt_tokens": 2,
        "fields": {},
    }
    trained = [
        {**record, "record": n, "produced": HOSTILE, "scores": {"final_answer": float(n == 1)}}
        for n in (1, 2)
    ]
    base = [
        {**record, "record": n, "produced": "", "scores": {"final_answer": float(n == 2)}}
        for n in (1, 2)
    ]
    verdict = {
        "metric": "final_answer",
        "n": 2,
        "first": estimate,
        "second": estimate,
        "difference": {"mean": 0.0, "n": 2, "interval_95": [-0.5, 0.5]},
        "p_value": 1.0,
        "test": "McNemar, mid-p",
        "counts": {"won": 1, "lost": 1, "both_right": 0, "both_wrong": 0, "equal": 0},
        "questions": {"won": ["t.json, record 1"], "lost": ["t.json, record 2"]},
    }
    content = {
        "schema_version": 2,
        "model_path": checkpoint(1).sampler_path,
        "test_file": "t.json",
        "counts": {"distinct_questions": 2, "near_duplicates_of_training": 1},
        "metrics": {"final_answer": estimate},
        "base": {"metrics": {"final_answer": estimate}},
        "groups": [],
        "verdicts": {"final_answer": verdict},
        "samples": trained,
        "base_samples": base,
    }
    results = folder / "results.json"
    results.write_text(json.dumps(content))
    return run, results


def test_answers_are_side_by_side_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    run, results = evaluated_run(tmp_path)
    file = write_report(run, results=results, language="en")
    with open_page(file) as page:
        assert "no difference from the base model is shown" in page.locator(".verdict").inner_text()
        assert page.locator("img").count() == 0
        page.get_by_text("1 test question is nearly equal to one that was trained on.").wait_for()
        page.get_by_text("1 checkpoint", exact=True).wait_for()
        assert page.locator(".answer.good pre").inner_text() == HOSTILE
        page.locator("button", has_text="lost").click()
        assert page.locator(".answer.bad pre").inner_text() == HOSTILE
        assert page.locator("button", has_text="lost").get_attribute("aria-pressed") == "true"


def test_on_a_phone_scores_have_their_whole_names(tmp_path: Path) -> None:
    run, results = evaluated_run(tmp_path)
    file = write_report(run, results=results, language="en")
    with open_page(file, size=PHONE) as page:
        names = page.locator("figure svg text").all_text_contents()
        assert {"final answer right, trained", "final answer right, base"} <= set(names)
        assert overflow(page) == 0


def test_a_file_that_is_no_report_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated_run(tmp_path)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match=r"mine\.html exists and is no report"):
        report_command(["one", "--out", "mine.html"], prog="tinkersmith report")
    (tmp_path / "pages").mkdir()
    with pytest.raises(UserError, match=r"pages is a folder\. Name a file in it, such as pages"):
        report_command(["one", "--out", "pages"], prog="tinkersmith report")
    assert report_command(["--out", "new.html"], prog="tinkersmith report") == 0
    assert report_command(["one", "--out", "new.html"], prog="tinkersmith report") == 0


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    run, _ = evaluated_run(tmp_path)
    run.file("checkpoints.jsonl").write_text("not JSON\n")
    said: list[str] = []
    assert write_report_or_warn(run, said.append) is None
    (line,) = said
    assert "Warning: report.html is not written" in line
    assert "checkpoints.jsonl, line 1 is damaged" in line
