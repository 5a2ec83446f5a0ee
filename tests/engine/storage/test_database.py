"""A database that another process holds, that is no database, or that has no space left."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.engine import MODEL, RunningEngine, running_engine
from tests.support.processes import PATIENCE
from tests.support.raw_client import batch, call, new_model, result
from tests.support.stopwatch import Stopwatch
from tinkersmith.engine.errors import StorageFailure
from tinkersmith.engine.storage import database
from tinkersmith.engine.storage.store import Store

# An engine that waits 4 seconds for a lock, where others wait 20; no test waits longer for it.
IMPATIENT = """
import sys
from tinkersmith.engine.storage import database
database.LOCK_PATIENCE = 4.0
from tinkersmith.engine.__main__ import main
sys.exit(main())
"""
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(folder: Path, *statements: str) -> Iterator[None]:
    """Another process holds the database's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder / "engine.sqlite", *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.stdin.close()
        process.wait()


def seconds_of_healthz(engine: RunningEngine) -> float:
    watch = Stopwatch(engine)
    with urllib.request.urlopen(f"{engine.url}/api/v1/healthz", timeout=PATIENCE) as answer:
        answer.read()
    return watch.seconds()


@pytest.mark.engine
def test_while_another_process_holds_the_lock_others_are_served_and_waiting_requests_get_a_sentence(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model, program=("-c", IMPATIENT)) as engine:
        saving, training = new_model(engine), new_model(engine)
        _, first = call(engine, "/save_weights", {"model_id": saving, "seq_id": 1, "path": "a"})
        path = result(engine, first["request_id"])["path"]
        with held(tmp_path, "BEGIN EXCLUSIVE"), ThreadPoolExecutor(8) as pool:
            body = {"tags": [], "sdk_version": "0.38.0"}
            waiting = [pool.submit(call, engine, "/create_session", body) for _ in range(4)]
            save = {"model_id": saving, "seq_id": 2, "path": "b"}
            _, saved = call(engine, "/save_weights", save)
            slowest = 0.0
            for seq_id in range(1, 6):
                slowest = max(slowest, seconds_of_healthz(engine))
                _, future = call(engine, "/forward_backward", batch(training, seq_id, [1, 2, 3]))
                assert isinstance(result(engine, future["request_id"]), bytes)
                status, listed = call(engine, "/checkpoints")
                assert status == 200 and listed["checkpoints"][0]["tinker_path"] == path
            # A loop that waits for the lock answers after 4 s; on a quiet machine this takes ms.
            assert slowest < 3.0
            for request in waiting:
                status, answer = request.result()
                assert status == 400
                assert "database is locked" in answer["detail"]
                assert str(tmp_path) in answer["detail"]
            answer = result(engine, saved["request_id"])
            assert "database is locked" in answer["error"], answer
        again = {"model_id": saving, "seq_id": 3, "path": "b"}
        _, saved = call(engine, "/save_weights", again)
        assert result(engine, saved["request_id"])["path"].endswith("/b")
        folders = sorted(folder.name for folder in tmp_path.glob("checkpoints/*/weights/*"))
        assert folders == ["a", "b"]


def test_many_writes_that_wait_for_one_lock_wait_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than there are threads: those that wait for a thread have waited already."""
    monkeypatch.setattr(database, "LOCK_PATIENCE", 1.0)
    store = Store(tmp_path)

    async def write_all() -> list[object]:
        writes = [
            store.write(partial(store.add_session, f"session{number}", {}, None))
            for number in range(400)
        ]
        return await asyncio.gather(*writes, return_exceptions=True)

    with held(tmp_path, "BEGIN EXCLUSIVE"):
        start = time.monotonic()
        answers = asyncio.run(write_all())
        seconds = time.monotonic() - start
    assert all("database is locked" in str(answer) for answer in answers)
    assert seconds < 25.0  # 400 writes in 8 threads, one after another: 50
    monkeypatch.setattr(database, "LOCK_PATIENCE", PATIENCE)
    assert asyncio.run(write_all()) == [None] * 400
    assert len(store.sessions()) == 400
    store.close()


@pytest.mark.engine
def test_a_client_that_is_created_twice_while_the_database_is_slow_is_one_client(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model) as engine:
        session = new_model(engine).partition(":")[0]
        body = {"session_id": session, "model_seq_id": 1, "base_model": MODEL}
        body["lora_config"] = {"rank": 2, "seed": 5}
        with ThreadPoolExecutor(4) as pool:
            with held(tmp_path, "BEGIN EXCLUSIVE"):
                sent = [pool.submit(call, engine, "/create_model", body) for _ in range(4)]
                time.sleep(1)
            answers = [request.result() for request in sent]
        assert all(answer == answers[0] and answer[0] == 200 for answer in answers)
        model_id = result(engine, answers[0][1]["request_id"])["model_id"]
        _, future = call(engine, "/forward_backward", batch(model_id, 1, [1, 2, 3]))
        assert isinstance(result(engine, future["request_id"]), bytes)
        _, runs = call(engine, f"/sessions/{session}")
        assert sorted(runs["training_run_ids"]) == [f"{session}:train:{n}" for n in (0, 1)]


def start(folder: Path) -> str:
    """What an engine says that cannot start."""
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "--port", "0", "--dir", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_an_engine_that_finds_the_database_locked_says_so(tmp_path: Path) -> None:
    Store(tmp_path).close()
    for statements in (
        ["BEGIN EXCLUSIVE"],
        ["PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"],
    ):
        with held(tmp_path, *statements):
            said = start(tmp_path)
        assert said.startswith("Error: database is locked") and str(tmp_path) in said


def test_a_database_without_space_is_told_as_a_full_disk_and_changes_nothing(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    connection = store._database._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFailure) as caught:
        for number in range(1000):
            store.add_session(f"s{number}", {"text": "x" * 4000}, None)
    assert f"the disk of {tmp_path} is full" in str(caught.value)
    assert "Free some space" in str(caught.value)
    connection.execute("PRAGMA max_page_count = 1000000")
    store.add_session("after", {}, None)
    assert store.session("after").id == "after"


def test_locked_damaged_and_full_are_three_sentences_that_name_the_folder(tmp_path: Path) -> None:
    sentences: set[str] = set()
    for code in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
    ):
        error = sqlite3.OperationalError("reason")
        error.sqlite_errorcode = code
        sentence = database.database_sentence(error, tmp_path)
        assert str(tmp_path) in sentence and "nothing was changed" in sentence
        sentences.add(sentence)
    assert len(sentences) == 6


def test_reads_wait_for_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_PATIENCE", PATIENCE)
    store = Store(tmp_path)
    store.add_session("a", {}, None)
    with held(tmp_path, "BEGIN EXCLUSIVE"):
        writer = threading.Thread(target=lambda: store.add_session("b", {}, None))
        writer.start()
        for _ in range(100):
            assert store.session("a").id == "a"
        assert writer.is_alive(), "no read waited as long as it"
    writer.join()
    assert store.session("b").id == "b"
