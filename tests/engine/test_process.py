"""The engine as a process: start, early answers, an end in mid work, kills, full disks."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import tinker

from tests.support.engine import (
    KEY,
    MODEL,
    SDK,
    RunningEngine,
    get_json,
    random_datums,
    running_engine,
)
from tests.support.processes import PATIENCE
from tests.support.raw_client import batch, call, new_model, result

pytestmark = pytest.mark.engine

ENDS_WITHIN = 60.0  # seconds, far less than the work that `keep_busy` gives it

# An engine whose thread imports torch for ever; it fails where the server imports torch.
TORCH_NEVER_COMES = """
import importlib.abc, sys, threading, time
class Waits(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch" and threading.current_thread() is threading.main_thread():
            sys.exit("the server imports torch")
        if name == "torch":
            time.sleep(10**6)
sys.meta_path.insert(0, Waits())
from tinkersmith.engine.__main__ import main
sys.exit(main())
"""


def start(*options: str, key: str | None = KEY) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if "ENGINE_KEY" not in name}
    if key:
        environment["TINKERSMITH_ENGINE_KEY"] = key
    return subprocess.run(
        [sys.executable, "-m", "tinkersmith.engine", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def keep_busy(running: RunningEngine) -> None:
    """Give the engine minutes of work, and wait for it in a long poll."""
    model_id = new_model(running)
    for seq_id in range(1, 4):
        body = batch(model_id, seq_id, [7] * 500, copies=1500)
        _, future = call(running, "/forward_backward", body)

    def wait() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            call(running, "/retrieve_future", future)

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.5)


def test_the_help_is_shown() -> None:
    shown = start("--help")
    assert shown.returncode == 0
    for option in ("--port", "--host", "--dir", "--base-model", "--exit-with-stdin"):
        assert option in shown.stdout


@pytest.mark.skipif(SDK < (0, 38), reason="older SDKs import torch themselves")
def test_it_is_ready_and_healthy_before_torch_is_there(tmp_path: Path, tiny_model: Path) -> None:
    program = ("-c", TORCH_NEVER_COMES)
    with (
        running_engine(tmp_path, tiny_model, program=program) as running,
        urllib.request.urlopen(f"{running.url}/api/v1/healthz", timeout=PATIENCE) as answer,
    ):
        assert json.load(answer) == {"status": "ok"}  # asked without a key


@pytest.mark.parametrize(
    ("option", "threads"), [("0", 3), pytest.param("2", 2, marks=pytest.mark.long)]
)
def test_it_computes_with_the_requested_threads_which_sleep_while_they_wait(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, option: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")  # OpenMP reports how it was set when it is loaded
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(tmp_path, tiny_model, "--threads", option, stderr=stderr) as running,
        running.client() as service,
    ):
        service.create_lora_training_client(base_model=MODEL, rank=2, seed=3).result()
    text = log.read_text()
    assert f"CPU threads: {threads}" in text
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in text


@pytest.mark.parametrize(
    "ending", ["stdin", signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_it_ends_at_once_in_the_middle_of_a_computation(
    tmp_path: Path, tiny_model: Path, ending: str | signal.Signals
) -> None:
    said = tmp_path / "stderr.txt"
    with said.open("wb") as stderr, running_engine(tmp_path, tiny_model, stderr=stderr) as running:
        keep_busy(running)
        assert get_json(running, "/api/v1/healthz") == {"status": "ok"}
        if isinstance(ending, signal.Signals):
            # The first one is for the recipe, which still needs the engine to save.
            running.process.send_signal(ending)
            time.sleep(1.5)
            assert get_json(running, "/api/v1/healthz") == {"status": "ok"}
            running.process.send_signal(ending)
        else:
            assert running.process.stdin is not None
            running.process.stdin.close()
        assert running.process.wait(timeout=ENDS_WITHIN) == 0
    assert "Traceback" not in said.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--base-model", "no/such/folder"], "no/such/folder is not a model folder"),
        (["--port", "99999"], "--port is 99999"),
        (["--threads", "-2"], "--threads is -2"),
        (["--dir", "/dev/null/engine"], "cannot keep checkpoints in /dev/null/engine"),
        (["--host", "no host"], "--host is 'no host'"),
        (["--allow-host", "http://a.b"], "without scheme, port and final dot"),
        (["--key-file", "/no/such/file"], "--key-file /no/such/file cannot be read"),
        (["--tls-cert", "/cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-key", "/key.pem"], "--tls-cert and --tls-key belong together"),
        (
            ["--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"],
            "--tls-cert /no/cert.pem cannot be read: No such file or directory",
        ),
        (["--tls-cert", __file__, "--tls-key", __file__], "in PEM format"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(
    tmp_path: Path, options: list[str], sentence: str
) -> None:
    key = None if {"--key-file", "--host"} & set(options) else KEY
    refused = start("--port", "0", "--dir", str(tmp_path), *options, key=key)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert sentence in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = start("--port", port, "--dir", str(tmp_path))
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr


def test_two_engines_share_a_folder_and_see_each_others_checkpoints(
    tmp_path: Path, tiny_model: Path
) -> None:
    with (
        running_engine(tmp_path, tiny_model) as one,
        running_engine(tmp_path, tiny_model) as two,
        one.client() as first,
        two.client() as second,
    ):
        clients = [
            service.create_lora_training_client(base_model=MODEL, rank=2, seed=3).result()
            for service in (first, second)
        ]
        futures = [client.save_state(f"s{n}") for n in range(5) for client in clients]
        paths = {future.result().path for future in futures}
        for running in (one, two):
            listed = running.rest().list_user_checkpoints().result().checkpoints
            assert {checkpoint.tinker_path for checkpoint in listed} == paths
        other = second.create_training_client_from_state(futures[0].result().path).result()
        assert other.forward(random_datums(1), "cross_entropy").result().metrics["loss:sum"] > 0


def test_a_kill_in_the_middle_of_saving_leaves_whole_checkpoints_only(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model) as running:
        model_id = new_model(running, rank=64)
        for seq_id in range(1, 300):
            body = {"model_id": model_id, "seq_id": seq_id, "overwrite": True}
            name = "kept" if seq_id % 2 else f"s{seq_id}"
            _, future = call(running, "/save_weights", {**body, "path": name})
            if seq_id == 1:
                first = result(running, future["request_id"])["path"]
        time.sleep(0.2)
        running.process.kill()
    with running_engine(tmp_path, tiny_model) as running, running.client() as service:
        listed = running.rest().list_user_checkpoints(limit=500).result().checkpoints
        paths = [checkpoint.tinker_path for checkpoint in listed]
        assert first in paths
        for path in {first, *paths[:3], *paths[-3:]}:
            service.create_training_client_from_state_with_optimizer(path).result()


def test_a_full_disk_fails_the_save_with_a_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model) as running, running.client() as service:
        client = service.create_lora_training_client(base_model=MODEL, rank=128).result()
        small = 64 * 1024  # no file may grow beyond this: for the writer that is a full disk
        before = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (small, -1))
        failed = client.save_state("full")
        with pytest.raises(tinker.RequestFailedError, match="could not use its disk") as caught:
            failed.result()
        assert str(caught.value.category).lower().endswith("server")
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, before)
        assert running.rest().list_user_checkpoints().result().checkpoints == []
        leftovers = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
        assert leftovers == []
        client.save_state("full").result()
