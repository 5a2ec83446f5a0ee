"""Charts in a browser: what they draw, read out, and say without a picture."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.browser import open_page, overflow
from tinkersmith.pages.page import page_html, part

if TYPE_CHECKING:
    from playwright.sync_api import Page

DRAW = """
const data = JSON.parse(document.getElementById("data").textContent);
window.drawn = charts[data.kind](document.getElementById("chart"), data.spec);
document.body.append(elements.themeButton());
"""


@contextmanager
def drawn(
    folder: Path, kind: str, spec: dict[str, Any], **options: Any
) -> Generator["Page", None, None]:
    path = folder / "chart.html"
    text = page_html(
        title="chart",
        language="en",
        body='<main class="wide"><figure id="chart"></figure></main>',
        data={"kind": kind, "spec": spec},
        scripts=[part("tinkersmith.pages", "charts.js"), DRAW],
        styles=[],
    )
    path.write_text(text, encoding="utf-8")
    with open_page(path, **options) as page:
        yield page


LOSS = {
    "label": "Loss",
    "x": "step",
    "series": [
        {"name": "each step", "kind": "faint", "points": [[1, 4], [2, 2], [3, 3], [4, 1]]},
        {"name": "smoothed", "points": [[1, 4], [2, 3], [3, None], [4, 2]]},
        {"name": "<b>validation</b>", "kind": "dots", "points": [[2, 2.5], [4, 1.5]]},
    ],
    "marks": [{"x": 4, "label": "best"}],
}


def test_lines_are_drawn_with_their_gaps_marks_and_a_text_for_those_who_see_none(
    tmp_path: Path,
) -> None:
    with drawn(tmp_path, "lines", LOSS) as page:
        line = page.locator("path.line").first.get_attribute("d")
        assert line is not None
        assert line.count("M") == 2  # the gap at step 3
        assert page.locator("circle").count() >= 2
        assert page.locator("text", has_text="best").count() == 1
        label = page.locator("#chart svg[role=img]").get_attribute("aria-label")
        assert label is not None
        assert "smoothed: from 4 at 1 to 2 at 4, lowest 2 at 4" in label
        assert page.locator("#chart b").all_inner_texts() == ["2", "1.5"]  # the last values
        assert page.locator("#chart .keys").inner_text().count("<b>validation</b>") == 1


def test_values_are_read_out_by_keyboard_and_pointer(tmp_path: Path) -> None:
    with drawn(tmp_path, "lines", LOSS) as page:
        picture = page.locator("#chart svg[role=img]")
        picture.focus()
        page.keyboard.press("Home")
        assert page.locator("#chart .keys b").first.inner_text() == "4"
        page.keyboard.press("ArrowRight")
        assert page.locator("#chart .keys").inner_text().endswith("step 2")
        page.keyboard.press("Escape")
        box = picture.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 50)
        assert page.locator("#chart .keys").inner_text().endswith("step 4")


def test_a_chart_is_updated_and_keeps_its_place(tmp_path: Path) -> None:
    with drawn(tmp_path, "lines", {**LOSS, "series": []}) as page:
        assert page.locator("text", has_text="Nothing measured yet").count() == 1
        page.evaluate("spec => window.drawn.update(spec)", LOSS)
        page.locator("path.line").first.wait_for(state="attached")


def test_a_score_that_never_moved_has_a_scale_that_scores_can_have(tmp_path: Path) -> None:
    for value, shown in ((0, ["0 %", "50 %", "100 %"]), (1, ["90 %", "95 %", "100 %"])):
        spec = {"percent": True, "series": [{"name": "right", "points": [[1, value], [2, value]]}]}
        with drawn(tmp_path, "lines", spec) as page:
            scale = page.locator("#chart text", has_text="%").all_text_contents()
            assert set(shown) <= set(scale)
            assert all(0 <= float(text.removesuffix(" %")) <= 100 for text in scale)


def test_a_row_far_from_all_others_is_an_arrow_and_leaves_them_their_scale(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"name": f"row {n}", "value": 0.5 + n / 10} for n in range(3)]
    rows.append({"name": "shot up", "value": 2020.5, "low": 1900, "high": 2100, "far": True})
    with drawn(tmp_path, "intervals", {"label": "Loss", "rows": rows}) as page:
        assert page.locator("circle").count() == 3
        assert page.locator("text", has_text="→").count() == 1
        assert page.locator("text", has_text="2021").count() == 1
        places = [float(one.get_attribute("cx") or 0) for one in page.locator("circle").all()]
        assert places[2] - places[0] > 300


def test_bars_and_intervals_are_drawn_and_fit_a_phone(tmp_path: Path) -> None:
    lengths = {
        "label": "Lengths",
        "x": "tokens",
        "bins": [[0, 10, 5], [10, 20, 15], [20, 30, 0]],
        "marks": [{"x": 25, "label": "limit"}, {"x": 16384, "label": "MAX"}],
    }
    with drawn(tmp_path, "histogram", lengths, size=(390, 844)) as page:
        assert page.locator("rect.bar").count() == 3
        assert page.locator("text", has_text="limit").count() == 1
        assert page.locator("#chart .keys").inner_text() == "MAX →"  # too far to draw
        assert overflow(page) == 0
    rows = [
        {"name": "final answer", "value": 0.8, "low": 0.7, "high": 0.9},
        {
            "name": "a group with a long name, longer than fits",
            "value": 0.5,
            "low": 0.2,
            "high": 0.8,
        },
    ]
    with drawn(tmp_path, "intervals", {"label": "Scores", "rows": rows}, size=(390, 844)) as page:
        assert page.locator("circle").count() == 2
        assert overflow(page) == 0


def test_the_theme_can_be_switched(tmp_path: Path) -> None:
    with drawn(tmp_path, "lines", LOSS, dark=True) as page:
        background = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(background)
        page.locator("button.theme").click()
        assert page.evaluate(background) != before
