"""What a run will cost is said before it starts, and a budget is kept; our engine is the cloud."""

import datetime as dt
import json
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.http_server import http_server
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.forecast import costs, layers, memory
from tinkersmith.forecast.billing import billed_since, used_lines
from tinkersmith.forecast.budget import cut_to_budget
from tinkersmith.forecast.costs import Rates, least_cost, most_cost, steps_within
from tinkersmith.forecast.duration import Pace, shown_duration
from tinkersmith.forecast.lines import Forecast, forecast_lines
from tinkersmith.forecast.memory import memory_lines, memory_need
from tinkersmith.forecast.workload import Workload
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.service import connection, stand_in
from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from
from tinkersmith.text import tokenizer as tokenizer_module
from tinkersmith.text.tokenizer import load_tokenizer
from tinkersmith.training.train import train

PRICE = {"prefill": 100.0, "sample": 200.0, "train": 1000.0}
RATES = Rates(100.0, 200.0, 1000.0, False, "by TOKEN_PRICE")
WORK = Workload(
    samples=8,
    steps_per_epoch=4,
    step_tokens=[10, 20, 30, 40, 10, 20, 30, 40],
    validation_tokens=7,
    prompt_tokens=3,
    answer_tokens=50,
    final_answer_tokens=5,
    eval_every=3,
)


def test_the_cost_is_that_of_every_token_that_is_sent() -> None:
    # Steps 3, 4 and 5 end with a measurement: EVAL_EVERY, the epoch, and the end.
    assert WORK.measurements(5) == 3
    least = least_cost(WORK, RATES, 5) or 0.0
    assert least == pytest.approx((110 * 1000 + 3 * 10 * 100) / 1e6)
    assert most_cost(WORK, RATES, 5) == pytest.approx(least + (3 * 50 + 5) * 200 / 1e6)


def test_a_budget_buys_the_most_steps_that_it_pays_for() -> None:
    for steps in range(1, 9):
        cost = most_cost(WORK, RATES, steps)
        assert cost is not None
        assert steps_within(WORK, RATES, cost, 8) == steps
        assert steps_within(WORK, RATES, cost - 1e-9, 8) < steps


def test_a_cut_is_said_and_a_budget_below_one_step_is_refused() -> None:
    settings = settings_from({"BUDGET_USD": 0.1, "TOKEN_PRICE": PRICE})
    steps, (line,) = cut_to_budget(settings, WORK, RATES, None, 8, 0, 0.0)
    assert 0 < steps < 8 and f"{steps} of 8 steps" in line and "BUDGET_USD = 0.1" in line
    with pytest.raises(UserError, match="one step with its measurements costs"):
        cut_to_budget(settings, WORK, RATES, None, 8, 0, 0.0999)
    minutes = settings_from({"BUDGET_MINUTES": 1.0})
    steps, (line,) = cut_to_budget(minutes, WORK, None, Pace(10.0, 10, 1), 8, 0, 0.0)
    assert steps == 2 and "BUDGET_MINUTES = 1" in line  # 30 tokens and 0.4 of 10, a second each


def test_prices_of_the_table_are_a_range_with_its_date() -> None:
    settings = settings_from({"LORA_RANK": 32})
    name = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
    rates = costs.rates_of(settings, name, is_cloud=True)
    assert rates is not None and rates.discounted
    text = "\n".join(forecast_lines(Forecast(settings, name, "cloud", WORK, 8, 0, rates, None)))
    for words in ("if the discount ends", "2026-09-01", "a month", "merged: yes", "100 tokens an"):
        assert words in text, words
    assert costs.rates_of(settings, name, is_cloud=False) is None
    unknown = Forecast(settings, "somebody/else", "cloud", WORK, 8, 0, None, None)
    text = "\n".join(forecast_lines(unknown))
    assert "TOKEN_PRICE" in text and "not tested for somebody/else" in text


def test_memory_is_that_of_the_files_and_a_lack_is_warned_of(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    need = memory_need(folder, settings_from({}), 100)
    assert need is not None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert 0 < size - need.weights < 10_000  # float32, as the file has it after its header
    # Of 2 layers: q, k, v, o with 4 and 2 heads of 16, gate, up and down with 64 for 32 numbers.
    attention = (32 + 64) + 2 * (32 + 32) + (64 + 32)
    assert need.adapter == 16 * 16 * 2 * (attention + 3 * (32 + 64))
    output_layer = memory_need(folder, settings_from({"TRAIN_UNEMBED": "yes"}), 100)
    assert output_layer is not None
    assert output_layer.adapter == need.adapter + 16 * 16 * (259 + 32)
    together = memory_need(folder, settings_from({}), 100, step_tokens=1000)
    assert together is not None and together.activations == 10 * need.activations > 0
    lines = memory_lines(type(need)(2**40, need.adapter, need.activations, 0, 2**30))
    assert "1,024.0 GiB of weights" in lines[0] and lines[1].startswith("Warning")
    assert memory_need(tmp_path, settings_from({}), 100) is None


def test_attention_is_kept_only_where_half_of_the_free_memory_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    attention = list[int]()
    for free in (64 * 2**30, 2**29):
        monkeypatch.setattr(memory, "free_system_memory", lambda free=free: free)
        need = memory_need(folder, settings_from({}), 4000)
        assert need is not None
        attention.append(need.attention)
        shown = "for attention, which is taken" in memory_lines(need)[0]
        assert shown == bool(need.attention)
    assert attention == [4 * 2 * 4 * 4000 * (2000 + 192), 0]


def test_layers_that_do_not_fit_are_forecast_as_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    needs = list[memory.MemoryNeed]()
    for free in (64 * 2**30, 0):
        monkeypatch.setattr(memory, "free_system_memory", lambda free=free: free)
        need = memory_need(folder, settings_from({}), 4000)
        assert need is not None
        assert need.twice == ("computed twice" in memory_lines(need)[0]) == (free == 0)
        needs.append(need)
    passing = 4 * 4000 * layers.passing(memory._config(folder))
    all_layers, one_layer = (need.activations - passing for need in needs)
    assert all_layers == 2 * one_layer > 0


# ---- against a server


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("priced"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("cloud"), model_folder) as engine:
        yield engine


@pytest.fixture
def names(
    engine: RunningEngine, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    monkeypatch.setenv("TINKER_BASE_URL", engine.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.chdir(tmp_path)
    records = [{"instruction": f"Add {n}.", "output": "1 " * (n % 7 + 1)} for n in range(24)]
    (tmp_path / "train.json").write_text(json.dumps(records))
    return {
        "DATA_FILES": ["train.json"],
        "BASE_MODEL": MODEL,
        "TOKENIZER": str(model_folder),
        "BATCH_SIZE": 4,
        "NUM_EPOCHS": 2,
        "SAMPLING_MAX_TOKENS": 4,
        "EXPORT_AFTER_TRAINING": "no",
        "TOKEN_PRICE": PRICE,
    }


def _tokens(run: Any) -> list[int]:
    return [line["tokens"] for line in run.metrics() if "tokens" in line]


@pytest.mark.engine
def test_a_dry_run_says_everything_and_trains_nothing(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Path]()

    def load(folder: Path) -> TextTokenizer:
        read.append(folder)
        return load_tokenizer(folder)

    monkeypatch.setattr(tokenizer_module, "load_tokenizer", load)
    options = [f"--set={name}={value}" for name, value in names.items()]
    assert main(["train", "--dry-run", *options]) == 0
    shown = capsys.readouterr().out
    for title in ("Model", "Work", "Price", "Storage", "Thinking", "Export", "Time"):
        assert f"  {title} " in shown, title
    assert "24 samples" in shown and "12 steps" in shown and "by TOKEN_PRICE" in shown
    assert read == [Path(names["TOKENIZER"])]  # once, before the server is asked
    assert not Path("runs").exists()
    assert main(["train", "--dry-run", "--resume", "x"]) == 1


@pytest.mark.engine
def test_predicted_tokens_are_those_that_are_counted(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with train(settings_from(names)) as trained:
        total = sum(_tokens(trained.run))
    shown = capsys.readouterr().out
    assert f"{total:,} tokens to train on" in shown
    assert f"Used     {total:,} of {total:,} predicted tokens" in shown
    assert "Billed   the server does not say" in shown


@pytest.mark.engine
def test_a_run_is_cut_to_its_budget_and_never_costs_more(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    budget = 0.8
    with train(settings_from({**names, "BUDGET_USD": budget})) as trained:
        tokens = _tokens(trained.run)
    assert 0 < len(tokens) < 12
    assert f"cuts the plan to {len(tokens)} of 12 steps" in capsys.readouterr().out
    assert sum(tokens) * PRICE["train"] / 1e6 <= budget
    assert trained.run.fact("total_steps") == len(tokens)
    assert trained.run.checkpoints()[-1].step == len(tokens)
    assert trained.run.metrics()[0]["learning_rate"] > trained.run.metrics()[-2]["learning_rate"]


@pytest.mark.engine
def test_a_run_whose_time_is_up_stops_saved_and_goes_on_without_the_limit(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinkersmith.training import plan

    # The measured steps were fast, and the run is slow: an hour a step, by its clock.
    monkeypatch.setattr(plan, "measured_pace", lambda *args, most: Pace(0.001, 1000, 1))
    from tinkersmith.training.loop import Loop

    real = Loop._elapsed
    monkeypatch.setattr(Loop, "_elapsed", lambda self: real(self) + 3600 * self._done)
    with train(settings_from({**names, "BUDGET_MINUTES": 240.0})) as trained:
        done = trained.run.checkpoints()[-1].step
    shown = capsys.readouterr().out
    assert 1 <= done < 12
    assert "would pass BUDGET_MINUTES = 240" in shown and "BUDGET_MINUTES=0" in shown
    monkeypatch.setattr(Loop, "_elapsed", real)
    with train(resume=str(trained.run.path), resume_with={"BUDGET_MINUTES": 0.0}) as resumed:
        assert resumed.run.checkpoints()[-1].step == 12
        assert len(_tokens(resumed.run)) == 12


@pytest.mark.engine
def test_the_steps_that_measure_the_time_are_paid_by_the_budget(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"BUDGET_USD": 0.8, "BUDGET_MINUTES": 60.0}
    with train(settings_from({**names, **limits})) as trained:
        tokens = _tokens(trained.run)
    measured = trained.run.fact("measured_tokens")
    assert measured >= sum(tokens[:3]) and 0 < len(tokens) < 12
    assert (sum(tokens) + measured) * PRICE["train"] / 1e6 <= 0.8
    assert f"cuts the plan to {len(tokens)} of 12 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"3 steps are trained to measure .* BUDGET_MINUTES at 0"):
        train(settings_from({**names, **limits, "BUDGET_USD": sum(tokens[:3]) / 1e3}))


def test_questions_that_are_read_again_may_be_cached() -> None:
    cheaper = replace(RATES, cached=20.0)
    # Three measurements in five steps; each reads 7 tokens to validate and 3 of questions.
    full, least = least_cost(WORK, RATES, 5), least_cost(WORK, cheaper, 5)
    assert full is not None and least is not None
    assert full - least == pytest.approx(2 * 3 * (100.0 - 20.0) / 1e6)
    assert most_cost(WORK, cheaper, 5) == most_cost(WORK, RATES, 5)
    rates = costs.rates_of(settings_from({}), "Qwen/Qwen3-8B", is_cloud=True)
    assert rates is not None and rates.cached == pytest.approx(0.039)


def test_a_price_that_is_one_amount_names_no_second_one() -> None:
    settings = settings_from({"TOKEN_PRICE": PRICE})
    alike = replace(WORK, answer_tokens=0, final_answer_tokens=1, step_tokens=[10_000] * 8)
    for work, second in ((alike, False), (WORK, True)):
        forecast = Forecast(settings, "some/model", "cloud", work, 8, 0, RATES, None)
        [line] = [line for line in forecast_lines(forecast) if line.startswith("Price")]
        assert ("the second" in line) == (" to " in line) == second, line


def test_short_times_keep_their_digits() -> None:
    assert [shown_duration(t) for t in (0.0123, 0.5, 3.4, 300)] == [
        "0.012 s",
        "0.5 s",
        "3 s",
        "5 minutes",
    ]


@pytest.mark.parametrize("way", ["train", "--dry-run", "--rehearse"])
def test_a_budget_without_prices_is_refused_before_a_server_is_asked_or_started(
    way: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "start_engine", fails)
    monkeypatch.setattr(stand_in, "start_engine", fails)
    options = ["--set=BUDGET_USD=1.0", "--set=BACKEND=local", f"--set=BASE_MODEL={model_folder}"]
    assert main(["train", *options, *([] if way == "train" else [way])]) == 1
    assert f"prices of {model_folder} are not known" in capsys.readouterr().err
    assert not Path("runs").exists()


def _usage(session: str, kind: str, tokens: int, usd: float | None, model: str) -> dict[str, Any]:
    """An event of a bill, as the cloud sends it."""
    info = {"type": kind, "token_count": tokens, "cached": False}
    hours = {"bucket_start": "2026-07-13T00:00:00Z", "bucket_end": "2026-07-13T01:00:00Z"}
    return {
        **hours,
        "base_model": model,
        "session_id": session,
        "estimated_cost_usd": usd,
        "event_info": info,
    }


@pytest.mark.parametrize("run", ["mine-1", "unknown"])
@pytest.mark.engine
def test_what_the_server_bills_stands_beside_what_was_predicted(
    names: dict[str, Any], run: str
) -> None:
    bill = {
        "data": [
            _usage("a", "training", 100, 0.1, MODEL),
            _usage("a", "sampling_prefill", 20, None, MODEL),
            _usage("b", "sampling_sample", 3, 0.02, MODEL),
            _usage("c", "training", 5000, 9.0, MODEL),
            _usage("d", "training", 999, 9.0, "another/model"),
        ],
        "sessions": {
            "a": {"user_metadata": {"tinkersmith.run": "mine-1"}},
            "b": {"user_metadata": {"tinkersmith.run": "mine-1"}},
            "c": {"user_metadata": {"tinkersmith.run": "another-1"}},
            "d": {},
        },
    }

    class Billing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # what the SDK asks at its start
            self.answer(b"{}")

        def do_GET(self) -> None:
            asked = urllib.parse.urlsplit(self.path)
            assert asked.path == "/api/v1/billing/usage/events", asked
            assert self.headers["X-API-Key"] == KEY
            start, end = (
                dt.datetime.fromisoformat(urllib.parse.parse_qs(asked.query)[name][0])
                for name in ("starting_on", "ending_before")
            )
            assert (start.minute, end.minute) == (0, 0) and start < end
            self.answer(json.dumps(bill).encode())

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    now = dt.datetime.now().astimezone()
    with open_service(settings_from(names)) as service, http_server(Billing) as url:
        service.probe.stop()
        service.probe.url = url
        billed = billed_since(service, run, now - dt.timedelta(hours=2), now)
    assert billed is not None
    trained, usd = (100, 0.12) if run == "mine-1" else (5100, 9.12)
    assert billed.usd == pytest.approx(usd)
    assert (billed.trained, billed.read, billed.sampled) == (trained, 20, 3)
    used, line = used_lines(110, 100, RATES, billed)
    assert "100 of 110 predicted" in used and "0.10 USD" in used
    assert f"{trained:,} tokens trained on, 20 read and 3 sampled, {usd} USD" in line
    assert ("whatever else ran on this model" in line) == (run == "unknown")


@pytest.mark.engine
def test_a_run_does_not_wait_long_for_a_bill(names: dict[str, Any]) -> None:
    now = dt.datetime.now().astimezone()
    with open_service(settings_from(names)) as service, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        service.probe.stop()
        service.probe.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Without a limit it would wait as long as the socket is open: for ever.
        assert billed_since(service, "mine-1", now, now, patience=0.5) is None
