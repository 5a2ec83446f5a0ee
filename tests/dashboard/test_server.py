"""The dashboard as a process: who may see it, how it ends, and a real training seen through it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.browser import PHONE, open_page, overflow
from tests.support.processes import PATIENCE
from tests.support.run_folders import run_of_settings
from tinkersmith.guards.hosts import listen
from tinkersmith.runs.folder import RunFolder


@dataclass
class RunningDashboard:
    process: "subprocess.Popen[str]"
    url: str  # with the key

    @property
    def base(self) -> str:
        return self.url.partition("?")[0]

    @property
    def key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.url.rpartition('=')[2]}"}


@contextmanager
def running_dashboard(
    folder: Path, *options: str, **environment: str
) -> Generator[RunningDashboard, None, None]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tinkersmith", "dashboard", "--port", "0"),
            *("--set", f"OUTPUT_DIR={folder}", *options),
        ],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )
    try:
        assert process.stdout is not None
        said = ""
        while not (match := re.search(r"http://\S+", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield RunningDashboard(process, match[0])
    finally:
        process.kill()
        process.wait()


def messages(dashboard: RunningDashboard, *runs: str) -> Iterator[dict[str, Any]]:
    query = "&".join(f"run={name}" for name in runs)
    with httpx.stream(
        "GET", f"{dashboard.base}events?{query}", headers=dashboard.key, timeout=PATIENCE
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def a_run(path: Path, steps: int, **settings: object) -> RunFolder:
    run = run_of_settings(path, **settings)
    run.append("metrics.jsonl", (step_line(step) for step in range(1, steps + 1)))
    run.file("train.log").write_text(f"the log of {path.name}\n")
    return run


def step_line(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "loss": 3 / step, "completion_tokens": 9, "seconds": 0.1}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs that differ in one setting; the second has a report and an answer."""
    folder = tmp_path / "runs"
    a_run(folder / "first", 30, LORA_RANK=8, SEED=1)
    second = a_run(folder / "second", 60, LORA_RANK=32, SEED=1)
    second.file("report.html").write_text("<!DOCTYPE html><title>r</title><p id=p>A report.</p>")
    shown = {"step": 20, "epoch": 1, "source": "a.json, record 1", "prompt": "What is <b>1</b>?"}
    answer = {"expected": "one", "answers": ["<script>throw 1</script>"], "scores": {"x": 0.5}}
    second.append("shown_answers.jsonl", [shown | answer])
    os.utime(folder / "first" / "settings.json", (time.time() - 9000, time.time() - 9000))
    return folder


def test_nobody_sees_it_without_the_key_or_from_another_site(runs: Path) -> None:
    with running_dashboard(runs) as dashboard:
        for path in ("", "events", "report/second", "nothing"):
            url = dashboard.base + path
            assert httpx.get(url).status_code == 401
            assert httpx.get(url, params={"key": "wrong"}).status_code == 401
            foreign = {**dashboard.key, "host": "evil.example"}
            assert httpx.get(url, headers=foreign).status_code == 403
            origin = {**dashboard.key, "origin": "https://evil.example"}
            assert httpx.get(url, headers=origin).status_code == 403
        assert httpx.get(f"{dashboard.base}report/second?{dashboard.url}").status_code == 401
        assert httpx.get(f"{dashboard.base}nothing", headers=dashboard.key).status_code == 404
        assert httpx.post(dashboard.base, headers=dashboard.key).status_code == 405
        for name in ("first", "..%2fsecond", "%2e%2e%2fruns%2fsecond", "no run"):
            gone = httpx.get(f"{dashboard.base}report/{name}", headers=dashboard.key)
            assert gone.status_code == 404, name
        with httpx.Client() as browser:
            page = browser.get(dashboard.url)
            assert page.status_code == 200
            (cookie,) = page.headers.get_list("set-cookie")
            assert "HttpOnly" in cookie and "SameSite=strict" in cookie
            assert page.headers["referrer-policy"] == "no-referrer"
            assert browser.get(dashboard.base).status_code == 200
            report = browser.get(f"{dashboard.base}report/second")
            assert "A report." in report.text
            assert report.headers["content-security-policy"].startswith("sandbox")


def test_ctrl_c_ends_it_in_order_while_a_page_is_open(runs: Path) -> None:
    with running_dashboard(runs) as dashboard:
        stream = messages(dashboard, "first")
        assert {row["name"] for row in next(stream)["rows"]} == {"first", "second"}
        dashboard.process.send_signal(signal.SIGINT)
        assert list(stream) == []
        output, _ = dashboard.process.communicate(timeout=PATIENCE)
        assert dashboard.process.returncode == 0
        assert "Traceback" not in output and "Error" not in output


def test_a_taken_port_and_a_short_key_are_one_sentence(runs: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for options, key, sentence in (
            (["--port", port], "", f"Error: cannot listen on 127.0.0.1:{port}: "),
            (["--host", "0.0.0.0"], "short", "Error: the key in TINKERSMITH_DASHBOARD_KEY has 5 "),
            (["--allow-host", "http://x"], "", "Error: --allow-host is 'http://x'"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "tinkersmith", "dashboard", *options],
                capture_output=True,
                text=True,
                env={**os.environ, "TINKERSMITH_DASHBOARD_KEY": key},
            )
            assert done.returncode == 1 and done.stderr.startswith(sentence)
            assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.engine
def test_a_real_training_is_seen_while_it_goes_on(tmp_path: Path) -> None:
    """The bundled model and the engine that the recipe starts; the curve is that of the file."""
    folder = tmp_path / "runs"
    data = [{"instruction": f"What is {n} + {n}?", "output": f"Answer: {2 * n}"} for n in range(32)]
    (tmp_path / "train.json").write_text(json.dumps(data))
    (tmp_path / "ask.json").write_text(json.dumps(data[:5]))
    settings = {
        "DATA_FILES": [str(tmp_path / "train.json")],
        "EVAL_FILES": [str(tmp_path / "ask.json")],
        "OUTPUT_DIR": str(folder),
        "EVAL_EVERY": 8,
        "NUM_EPOCHS": 2,
        "BATCH_SIZE": 2,
        "SAMPLING_MAX_TOKENS": 8,
        "EXPORT_AFTER_TRAINING": "no",
        "BACKEND": "local",
    }
    sets = [part for name, value in settings.items() for part in ("--set", _set(name, value))]
    with running_dashboard(folder) as dashboard:
        training = subprocess.Popen(
            [sys.executable, "-m", "tinkersmith", "train", *sets],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        try:
            name = next(row["name"] for news in messages(dashboard) for row in news.get("rows", []))
            states: list[str] = []
            points: dict[float, float] = {}
            pieces, busy, answers = 0, 0, 0
            for news in messages(dashboard, name):
                states += [row["state"] for row in news.get("rows", [])]
                busy += any(engine["queue"] for engine in news.get("engines", []))
                seen = news.get("shown", {}).get(name, {})
                answers = len(seen.get("details", {}).get("answers", [])) or answers
                if loss := seen.get("curves", {}).get("loss"):
                    pieces += 1
                    points |= dict(loss["points"])
                if states[-1:] == ["finished"]:
                    break
            assert training.wait(120) == 0
        finally:
            training.kill()
            training.wait()
    steps = [line for line in RunFolder(folder / name).metrics() if "loss" in line]
    assert len(steps) == 32
    assert points == {line["step"]: pytest.approx(line["loss"], rel=1e-5) for line in steps}
    assert states[0] in ("running", "interrupted") and "running" in states
    assert pieces >= 2, "the curve did not move while training went on"
    assert busy >= 1, "the engine was never seen at work"
    assert answers == 4 * 5 + 1
    assert not list((folder / ".engine").glob("status-*.json"))


def _set(name: str, value: object) -> str:
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"


@pytest.mark.slow
def test_the_page_overlays_runs_and_follows_their_files(runs: Path) -> None:
    with running_dashboard(runs) as dashboard, open_page(dashboard.url) as page:
        page.wait_for_selector("#charts path.line")
        assert "key=" not in page.url
        assert page.locator("#chosen .chip").all_inner_texts()[0].startswith("second")
        assert page.locator("#rows tr").count() == 2
        # What a model wrote is text, never markup.
        assert "<script>throw 1</script>" in page.locator("#answers").inner_text()
        assert "the log of second" in page.locator("#lines").inner_text()
        page.get_by_role("checkbox", name="first").check()
        page.wait_for_selector("#chosen .chip >> nth=1")
        # A function to wait for would be evaluated in the page, whose policy forbids that.
        page.locator("#charts [data-chart=loss] path.line").nth(1).wait_for(state="attached")
        differing = page.locator("#settings > table")
        differing.wait_for()
        assert differing.locator("tbody th").all_inner_texts() == ["LORA_RANK"]
        assert differing.locator("tbody td").all_inner_texts() == ["32", "8"]
        lost = RunFolder(runs / "lost")
        lost.path.mkdir()
        lost.append("requests.jsonl", [{"step": 1}])
        page.get_by_role("checkbox", name="lost").check()
        page.locator("#chosen .chip").nth(2).wait_for()
        page.locator("#focus").get_by_role("button", name="lost").click()
        page.locator("#lines", has_text="has lost its settings.json").wait_for(state="attached")
        names = differing.locator("tbody th").all_inner_texts()
        assert names == ["LORA_RANK"], "a run without settings differs in none"
        page.get_by_role("button", name="Remove lost").click()
        page.locator("#chosen .chip").nth(2).wait_for(state="detached")
        RunFolder(runs / "first").append("metrics.jsonl", [step_line(31) | {"loss": 0.125}])
        row = page.locator("#rows tr", has_text="first")
        row.get_by_text("0.125").wait_for()
        chart = page.locator("#charts [data-chart=loss] svg[role=img]")
        chart.focus()
        page.keyboard.press("Home")
        assert "1" in page.locator("#charts [data-chart=loss] .keys").inner_text()
        page.get_by_label("log scale").check()
        page.get_by_label("Filter by name or model").fill("sec")
        page.locator("#rows tr").nth(1).wait_for(state="detached")
        page.get_by_label("Filter by name or model").fill("")
        page.get_by_role("button", name="Remove first").click()
        page.locator("#chosen .chip").nth(1).wait_for(state="detached")
        assert page.url.endswith("#second")
        with page.context.expect_page() as opened:
            page.get_by_role("link", name="Report").click()
        assert opened.value.locator("#p").inner_text() == "A report."
        page.reload()
        page.wait_for_selector("#charts path.line")


@pytest.mark.slow
def test_the_page_fits_a_phone_speaks_chinese_and_says_when_the_dashboard_is_gone(
    runs: Path,
) -> None:
    gone = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE")
    with (
        running_dashboard(runs, LC_ALL="zh_CN.UTF-8") as dashboard,
        open_page(dashboard.url, size=PHONE, dark=True, expected_errors=gone) as page,
    ):
        page.wait_for_selector("#charts path.line")
        assert overflow(page) == 0
        assert page.locator("html").get_attribute("lang") == "zh-CN"
        assert "训练" in page.locator("#runs-title").inner_text()
        dashboard.process.send_signal(signal.SIGTERM)
        page.locator("#notice").wait_for()
        assert "面板没有响应" in page.locator("#notice").inner_text()
