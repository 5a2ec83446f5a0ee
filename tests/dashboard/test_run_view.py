"""What a row and a shown run say of a folder, in every state that it can be in."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import run_of_settings
from tinkersmith.dashboard.run_view import (
    LOG_LINES,
    SentSoFar,
    ShownRun,
    finite,
    row_of,
    stamps_of,
)
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.lock import is_held


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 100 steps, of which 40 are done."""
    run = run_of_settings(tmp_path / "runs" / "mine", LORA_RANK=8)
    run.append("metrics.jsonl", [step_line(step) for step in range(1, 41)])
    return run


def step_line(step: int, **more: Any) -> dict[str, Any]:
    line = {"step": step, "epoch": 1, "loss": 4.0 / step, "learning_rate": 1e-3, "samples": 2}
    return {**line, "tokens": 50, "completion_tokens": 20, "seconds": 0.5, **more}


def row(run: RunFolder) -> dict[str, Any]:
    return row_of(run, stamps_of(run.path))


def lock(run: RunFolder, pid: int, host: str = "") -> None:
    holder = {"pid": pid, "host": host or socket.gethostname(), "doing": "training"}
    run.file("run.lock").write_text(json.dumps(holder))


def a_dead_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_run_that_a_process_works_on_is_running_and_says_what_is_left(run: RunFolder) -> None:
    lock(run, os.getpid())
    seen = row(run)
    assert (seen["state"], seen["step"], seen["total"], seen["loss"]) == ("running", 40, 100, 0.1)
    assert seen["left"] == pytest.approx(60 * 0.5)
    assert abs(seen["seen"] - time.time()) < 3600 and not seen["report"]


def test_a_run_whose_process_is_gone_was_interrupted(run: RunFolder) -> None:
    assert row(run)["state"] == "interrupted"
    lock(run, a_dead_process())
    assert not is_held(run)
    assert (row(run)["state"], row(run)["left"]) == ("interrupted", None)
    lock(run, a_dead_process(), host="another machine")
    assert is_held(run), "nobody can tell from here"


def test_the_end_of_a_run_shows_in_its_files(run: RunFolder) -> None:
    run.append("metrics.jsonl", [{"step": 41, "diverged": True, "last_sound_step": 20}])
    assert row(run)["state"] == "diverged"
    other = run_of_settings(run.path.parent / "other")
    other.file("samples.json").write_text("[]")
    other.append("metrics.jsonl", [step_line(60)])
    assert row(other)["state"] == "stopped early"
    other.append("metrics.jsonl", [step_line(100), {"step": 100, "epoch_loss": 0.5}])
    assert row(other)["state"] == "finished"


def test_best_and_report_are_found(run: RunFolder) -> None:
    assert row(run)["best"] is None
    best = {"checkpoint": "step-000020", "step": 20, "by": "final_answer", "value": 0.75}
    run.file("best.json").write_text(json.dumps(best))
    run.file("report.html").write_text("<p>")
    assert row(run)["best"] == {"by": "final_answer", "value": 0.75, "step": 20}
    assert row(run)["report"]
    run.file("best.json").write_text('{"by": 1}')
    assert row(run)["best"] is None


def test_a_damaged_run_is_listed_with_the_sentence_that_says_so(run: RunFolder) -> None:
    run.file("settings.json").write_text("{")
    seen = row(run)
    assert seen["state"] == "damaged" and "settings.json is damaged" in seen["problem"]


@pytest.mark.parametrize("value", [None, True, "1", [], float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert finite(value) is None


def look(view: ShownRun) -> None:
    view.look(stamps_of(view.run.path))


def redrawn(page: dict[str, list[Any]], news: dict[str, Any]) -> None:
    """Do what page.js does with the curves of a message."""
    for name, change in news.get("curves", {}).items():
        old = page.get(name, [])
        kept = [] if change["from"] is None else [p for p in old if p[0] < change["from"]]
        page[name] = kept + change["points"]
        if not page[name]:
            del page[name]


def test_a_page_that_gets_only_news_shows_what_a_page_that_begins_now_shows(run: RunFolder) -> None:
    view, sent, page = ShownRun(run), SentSoFar(), dict[str, list[Any]]()
    sizes: list[int] = []
    for step in range(41, 3000, 20):
        lines = [step_line(step + i, grad_norm=1.0 / (step + i)) for i in range(20)]
        run.append("metrics.jsonl", [*lines, {"step": step + 19, "validation_loss": 0.3}])
        look(view)
        news = view.news(sent)
        redrawn(page, news)
        sizes.append(sum(len(change["points"]) for change in news["curves"].values()))
    look(view)
    redrawn(page, view.news(sent))
    whole: dict[str, list[Any]] = {}
    redrawn(whole, view.news(SentSoFar()))
    assert page == whole
    assert set(whole) == {"loss", "learning_rate", "grad_norm", "validation_loss"}
    assert sorted(sizes)[len(sizes) // 2] < 200, "an update is small"
    assert view.news(sent) == {}


def test_a_resumed_run_is_drawn_anew(run: RunFolder) -> None:
    run.append("metrics.jsonl", [{"step": 40, "validation_loss": 0.3}])
    view, sent, page = ShownRun(run), SentSoFar(), dict[str, list[Any]]()
    look(view)
    redrawn(page, view.news(sent))
    assert page["loss"][-1][0] == 40 and "validation_loss" in page
    run.rewrite("metrics.jsonl", [step_line(step) for step in range(1, 11)])
    run.append("metrics.jsonl", [step_line(11, loss=7.0)])
    look(view)
    redrawn(page, view.news(sent))
    assert page["loss"][-1] == [11.0, 7.0] and len(page["loss"]) == 11
    assert "validation_loss" not in page


def test_damaged_lines_are_counted_and_the_others_are_drawn(run: RunFolder) -> None:
    with run.file("metrics.jsonl").open("a") as file:
        file.write('{"loss": 1}\nnonsense\n{"step": 41, "loss": NaN}\n{"step": 42, "loss": 0.5}\n')
    view = ShownRun(run)
    look(view)
    news = view.news(SentSoFar())
    assert news["details"]["damaged_lines"] == 2
    assert news["curves"]["loss"]["points"][-2:] == [[41, None], [42, 0.5]]


def test_the_log_comes_in_pieces_and_begins_anew_with_the_file(run: RunFolder) -> None:
    log = run.file("train.log")
    log.write_text("".join(f"line {number}\n" for number in range(1000)) + "half")
    view, sent = ShownRun(run), SentSoFar()
    look(view)
    news = view.news(sent)["log"]
    assert news["lines"] == [f"line {number}" for number in range(1000 - LOG_LINES, 1000)]
    with log.open("a") as file:
        file.write(" a line\n\x1b\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    look(view)
    assert view.news(sent)["log"] == {"restarted": False, "lines": ["half a line"]}
    log.write_text("anew\n")
    look(view)
    assert view.news(sent)["log"] == {"restarted": True, "lines": ["anew"]}


def test_answers_of_measurements_and_of_the_end_are_shown_with_settings(run: RunFolder) -> None:
    shown = {"step": 20, "epoch": 1, "source": "a.json, record 1", "prompt": "1 + 1"}
    more = {"expected": "2", "answers": ["3"], "scores": {"final_answer": 0.0}}
    run.append("shown_answers.jsonl", [{**shown, **more}])
    run.file("samples.json").write_text(json.dumps([{"prompt": "1 + 1", "answers": ["2"]}, 7]))
    view = ShownRun(run)
    look(view)
    details = view.news(SentSoFar())["details"]
    first, last = details["answers"]
    assert (first["step"], first["answers"], first["scores"]) == (20, ["3"], {"final_answer": 0.0})
    assert last["final"] and last["answers"] == ["2"]
    assert details["problems"] == [
        f"1 entry that is no sample is left out of {run.file('samples.json')}."
    ]
    assert details["settings"] == {"LORA_RANK": "8"}


def test_files_of_another_kind_stop_nothing(run: RunFolder) -> None:
    for name in ("train.log", "shown_answers.jsonl", "samples.json", "best.json"):
        run.file(name).mkdir()
    view = ShownRun(run)
    look(view)
    news = view.news(SentSoFar())
    assert len(news["curves"]["loss"]["points"]) == 40
    assert row(run)["state"] == "interrupted"
    problems = news["details"]["problems"]
    assert len(problems) == 4 and all("it is a folder" in sentence for sentence in problems)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("samples.json", "[" * 100_000, "it is not JSON"),
        ("samples.json", "{}", "it is no list of samples"),
        ("best.json", '{"value": 1', "it is not JSON at line 1"),
        ("best.json", '{"value": "1"}', "it names no measurement"),
        ("checkpoints.jsonl", "\0\0\n", "no line at its end is a JSON object"),
        ("shown_answers.jsonl", '{"step": 1}\n{"st\n', "1 damaged line is left out"),
    ],
)
def test_a_damaged_file_is_one_sentence_on_the_page(
    run: RunFolder, name: str, content: str, words: str
) -> None:
    run.file(name).write_text(content)
    view = ShownRun(run)
    look(view)
    (sentence,) = view.news(SentSoFar())["details"]["problems"]
    assert str(run.file(name)) in sentence and words in sentence
    assert row(run)["problem"] == ""


@pytest.mark.parametrize("content", ["[1]\n3\n", None])
def test_a_run_without_readable_metrics_says_so_in_its_row(
    run: RunFolder, content: str | None
) -> None:
    run.file("metrics.jsonl").unlink()
    if content is None:
        run.file("metrics.jsonl").mkdir()
    else:
        run.file("metrics.jsonl").write_text(content)
    assert row(run)["state"] == "damaged"
    assert str(run.file("metrics.jsonl")) in row(run)["problem"]


def test_curves_that_end_before_the_last_checkpoint_are_said_once_nobody_works_there(
    run: RunFolder,
) -> None:
    def problems() -> list[str]:
        view = ShownRun(run)
        view.look(stamps_of(run.path))
        return view.details["problems"]

    run.append("checkpoints.jsonl", [{"step": 40, "name": "step-000040"}])
    assert problems() == []
    run.append("checkpoints.jsonl", [{"step": 60, "name": "step-000060"}])
    (said,) = problems()
    assert said.endswith("metrics.jsonl ends at step 40, and the last checkpoint is of step 60.")
    lock(run, os.getpid())
    assert problems() == []


def test_a_run_that_lost_its_settings_is_listed_as_damaged(run: RunFolder) -> None:
    run.append("requests.jsonl", [{"step": 1}])
    run.file("settings.json").unlink()
    seen = row(run)
    assert seen["state"] == "damaged" and "has lost its settings.json" in seen["problem"]
