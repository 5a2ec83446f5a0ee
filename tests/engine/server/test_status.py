"""What an engine says of itself: /metrics and its status file, before, during and after work."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

from tests.support.engine import KEY, MODEL, RunningEngine, random_datums, running_engine
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE, eventually
from tinkersmith.engine.server.status import metrics_text
from tinkersmith.engine_status import (
    SILENCE,
    engine_statuses,
    is_alive,
    remove_stale,
    status_file,
)

_SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def metrics_of(engine: RunningEngine) -> dict[str, float]:
    """The samples of /metrics, by name and labels as they stand there."""
    answer = httpx.get(f"{engine.url}/metrics", headers={"x-api-key": KEY}, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text)


def parsed(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    typed: set[str] = set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("gauge", "counter") and name not in typed
            assert name.endswith("_total") == (kind == "counter")
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = _SAMPLE.fullmatch(line)
            assert match and match[1] in typed, line
            key = match[1] if match[2] is None else f"{match[1]}{{{match[2]}}}"
            assert key not in values
            values[key] = float(match[3])
    return values


def wait_for(look: Callable[[], Any]) -> Any:
    assert eventually(lambda: bool(look())), "it did not come"
    return look()


@pytest.mark.engine
def test_metrics_and_the_status_file_count_what_the_sdk_had_done(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model) as engine:
        before = metrics_of(engine)
        assert before['tinkersmith_clients{kind="training"}'] == 0
        datums = random_datums(3)
        client = engine.client().create_lora_training_client(MODEL, rank=4, seed=0)
        client.forward(datums[:1], "cross_entropy").result()
        client.forward_backward(datums, "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
        sampler = client.save_weights_and_get_sampling_client()
        params = tinker.SamplingParams(max_tokens=7, temperature=0.0, stop=[])
        prompt = tinker.ModelInput.from_ints([5, 6, 7])
        sampler.sample(prompt, num_samples=2, sampling_params=params).result()
        with pytest.raises(tinker.TinkerError):
            client.forward(random_datums(1, vocabulary=10**6), "cross_entropy").result()
        after = metrics_of(engine)
        assert after["tinkersmith_engine_ready"] == 1
        assert after["tinkersmith_sessions"] == 1
        assert after['tinkersmith_clients{kind="training"}'] == 1
        trained = sum(datum.model_input.length for datum in datums)
        assert after['tinkersmith_tokens_total{kind="trained"}'] == trained
        assert after['tinkersmith_tokens_total{kind="forward"}'] == datums[0].model_input.length
        assert after['tinkersmith_tokens_total{kind="prompt"}'] == 3
        assert after['tinkersmith_tokens_total{kind="sampled"}'] == 2 * 7
        assert after['tinkersmith_jobs_total{job="optim_step",outcome="done"}'] == 1
        assert after['tinkersmith_jobs_total{job="forward_backward",outcome="done"}'] == 2
        assert after['tinkersmith_jobs_total{job="forward_backward",outcome="failed"}'] == 1
        assert after['tinkersmith_jobs_total{job="sample",outcome="done"}'] == 1
        assert after["tinkersmith_adapter_memory_bytes"] > 0
        weights = sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))
        base = after[f'tinkersmith_base_model_memory_bytes{{base_model="{MODEL}"}}']
        assert 0.9 * weights <= base <= 3 * weights
        assert after["process_resident_memory_bytes"] > base
        assert after["tinkersmith_clients_with_jobs"] == 0

        def caught_up() -> dict[str, Any] | None:
            statuses = engine_statuses(tmp_path)
            done = [status for status in statuses if status["tokens"].get("sampled") == 14]
            return done[0] if done else None

        status = wait_for(caught_up)
        assert status["pid"] == engine.process.pid
        assert status["tokens"]["trained"] == trained
        assert status["memory"]["base_models"] == {MODEL: base}
        assert KEY not in status_file(tmp_path, engine.process.pid).read_text()
        assert parsed(metrics_text(status)).keys() == after.keys()


@pytest.mark.engine
def test_metrics_need_the_key_and_a_host_that_is_ours(engine: RunningEngine) -> None:
    url = f"{engine.url}/metrics"
    assert httpx.get(url).status_code == 401
    foreign = {"x-api-key": KEY, "host": "evil.example"}
    assert httpx.get(url, headers=foreign).status_code == 403
    bearer = {"authorization": f"Bearer {KEY}"}
    assert httpx.get(url, headers=bearer).status_code == 200
    assert httpx.post(url, headers=bearer).status_code == 405


@pytest.mark.engine
def test_the_status_file_goes_with_its_engine_and_is_known_as_stale_after_a_kill(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model) as first:
        file = status_file(tmp_path, first.process.pid)
        wait_for(file.is_file)
        assert first.process.stdin is not None
        first.process.stdin.close()
        first.process.wait(PATIENCE)
        assert not file.exists()
    with running_engine(tmp_path, tiny_model) as second:
        killed = status_file(tmp_path, second.process.pid)
        wait_for(killed.is_file)
        second.process.send_signal(signal.SIGKILL)
        second.process.wait(PATIENCE)
    assert killed.is_file()
    assert engine_statuses(tmp_path) == []
    with running_engine(tmp_path, tiny_model) as third:
        file = status_file(tmp_path, third.process.pid)
        wait_for(file.is_file)
        assert not killed.exists()
        assert [status["pid"] for status in engine_statuses(tmp_path)] == [third.process.pid]


def test_a_status_of_another_machine_lives_as_long_as_it_is_renewed(tmp_path: Path) -> None:
    now = time.time()
    assert is_alive({"host": "elsewhere", "pid": 1, "updated": now})
    assert not is_alive({"host": "elsewhere", "pid": 1, "updated": now - SILENCE - 1})
    assert not is_alive({})


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"pid": 7}', '{"pid": "8", "updated": "now"}'),
        *('{"pid": 8, "updated": NaN}', f'{{"pid": 8, "updated": 1{"0" * 400}}}'),
    ],
)
def test_a_file_that_no_engine_wrote_is_neither_read_nor_removed(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "status-8.json"
    file.write_text(content)
    assert engine_statuses(tmp_path) == []
    remove_stale(tmp_path)
    assert file.exists() or json.loads(content)["pid"] == 8


def test_labels_are_escaped_as_prometheus_wants_them() -> None:
    status: dict[str, Any] = {
        "engine": '1"\\\n',
        "ready": False,
        "started": 1.5,
        "sessions": 0,
        "clients": {},
        "queue": [
            {"client": "a", "waiting": {"forward": 2}, "running": {"sample": 1}, "sequences": 4},
            {"client": "b", "waiting": {"forward": 1}, "running": {}, "sequences": 0},
        ],
        "requests": {},
        "tokens": {},
        "memory": {
            "process": 1,
            "adapters": 0,
            "spilled_clients": 0,
            "base_models": {},
            "gpu": {"name": "GPU", "total": 4, "free": 3, "reserved": 2, "allocated": 1},
        },
    }
    values = parsed(metrics_text(status))
    assert values['tinkersmith_engine_info{version="1\\"\\\\\\n"}'] == 1
    assert values['tinkersmith_jobs_waiting{job="forward"}'] == 3
    assert values["tinkersmith_sequences_sampling"] == 4
    assert values['tinkersmith_gpu_memory_bytes{state="free"}'] == 3
    assert not any("name" in key for key in values if "gpu" in key)


@pytest.mark.parametrize("page", ["engine.md", "engine.zh-CN.md"])
def test_every_metric_is_documented(page: str) -> None:
    source = (ROOT / "src/tinkersmith/engine/server/status.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"((?:tinkersmith|process)_\w+)"', source))
    assert len(names) > 10
    documented = (ROOT / "docs/reference" / page).read_text(encoding="utf-8")
    assert {name for name in names if f"`{name}" not in documented} == set()
