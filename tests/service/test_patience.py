"""A server by URL that fails, stalls, goes away or is restarted: runs end with the same losses.

The long form is `python -m benchmarks.reliability.faults`: all kinds of faults, in two shares.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.clocks import Lines
from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.fault_proxy import fault_proxy
from tests.support.processes import eventually
from tests.support.restarts import ServerOnPort
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.progress import watched
from tinkersmith.runs.folder import RunFolder, all_runs
from tinkersmith.service import connection, reconnection
from tinkersmith.service.connection import ServerGone, Service, open_service
from tinkersmith.service.stored import run_ids
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.loop import Loop

pytestmark = pytest.mark.engine

BUNDLED = "tinkersmith/tiny-math"  # its tokenizer is on this machine


@pytest.fixture(autouse=True)
def with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("server"), model) as running:
        yield running


def settings(folder: Path, **names: Any) -> Settings:
    data = write(folder / "data.json", records(16, seed=1))
    test = write(folder / "test.json", records(4, seed=2))
    return settings_from(
        {
            "DATA_FILES": [str(data)],
            "VALIDATION_FILES": [str(test)],
            "BASE_MODEL": MODEL,
            "BACKEND": "tinker",
            "OUTPUT_DIR": str(folder / "runs"),
            "BATCH_SIZE": 4,
            "NUM_EPOCHS": 2,
            "LORA_RANK": 4,
            "SAVE_EVERY": 2,
            "KEEP_LAST": 1,
            "SAMPLING_MAX_TOKENS": 4,
            **names,
        }
    )


def losses(run: RunFolder) -> list[float]:
    lines = run.lines("metrics.jsonl")
    return [line.get("loss", line.get("validation_loss", -1.0)) for line in lines]


@pytest.fixture(scope="module")
def expected(
    server: RunningEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_BASE_URL", server.url)
        patch.setenv("TINKER_API_KEY", KEY)
        patch.setenv("TINKER_TELEMETRY", "0")
        with train(settings(tmp_path_factory.mktemp("unbroken"))) as trained:
            yield losses(trained.run)


@pytest.mark.parametrize(
    "kind",
    ["503", "reset in mid-body", "stall", "duplicate", "lost answer"],
)
def test_a_share_of_requests_that_fail_changes_no_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: RunningEngine,
    expected: list[float],
    kind: str,
) -> None:
    with fault_proxy(server.url, kind, 0.1, stall=2.0, seed=1) as proxy:
        monkeypatch.setenv("TINKER_BASE_URL", proxy.url)
        with train(settings(tmp_path)) as trained:
            assert losses(trained.run) == expected
    assert sum(proxy.broken.values()) > 2
    states = [saved for saved in trained.run.checkpoints() if not saved.state_deleted]
    assert len(states) < len(trained.run.checkpoints())


@contextmanager
def after_steps(steps: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when so many steps of the run are noted; the run waits for it."""
    real, noted = RunFolder.append, 0

    def append(run: RunFolder, name: str, lines: Iterable[Any]) -> None:
        nonlocal noted
        given = list(lines)
        real(run, name, given)
        if name == "metrics.jsonl" and noted < steps:
            noted += len(given)
            if noted >= steps:
                act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", append)
        yield


def test_a_server_that_is_restarted_is_waited_for_and_the_run_goes_on_by_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    expected: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ServerOnPort(tmp_path / "engine", model) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("TINKER_BASE_URL", server.url)

        def start_when_missed() -> None:
            (run,) = all_runs(tmp_path / "runs")
            log = run.file("train.log")
            assert eventually(lambda: "has not answered since" in log.read_text())
            server.start()

        def go_away() -> None:
            server.kill()
            starting.append(pool.submit(start_when_missed))

        starting: list[Future[None]] = []
        with after_steps(3, go_away), train(settings(tmp_path)) as trained:
            assert losses(trained.run) == expected
        starting[0].result()
    lines = capsys.readouterr().out.splitlines()
    assert sum("has not answered since" in line and "for 10 minutes" in line for line in lines) == 1
    assert sum("Going on from step 2." in line for line in lines) == 1


@pytest.mark.long
def test_an_evaluation_goes_on_with_a_server_that_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    test_file = str(write(tmp_path / "many.json", records(40, seed=9)))

    def answers(name: str, url: str) -> list[str]:
        monkeypatch.setenv("TINKER_BASE_URL", url)
        wanted = settings(tmp_path, BASE_MODEL=BUNDLED, SAMPLING_MAX_TOKENS=60)
        output_file = tmp_path / f"{name}.json"
        result = evaluate(wanted, test_file=test_file, output_file=output_file, say=said.say)
        return [record.produced for record in result.trained.records]

    said = Lines()
    with ServerOnPort(tmp_path / "engine", model) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.url)
        with train(settings(tmp_path, BASE_MODEL=BUNDLED)):
            pass
        expected = answers("unbroken", server.url)
        with fault_proxy(server.url, "reset", 0.0) as proxy:

            def restart() -> None:
                eventually(lambda: proxy.requests["POST asample"] >= 30)
                server.restart()

            thread = threading.Thread(target=restart)
            thread.start()
            assert answers("broken", proxy.url) == expected
            thread.join()
    assert sum("Asking again:" in text for text in said.texts) == 1


def test_a_server_that_dies_at_every_attempt_ends_the_run_within_its_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RunningEngine
) -> None:
    """Each attempt creates its client, and the server forgets it before the first step."""
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    now, attempts = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    for module in (connection, reconnection):
        monkeypatch.setattr(module, "time", clock)

    def forgotten(loop: Loop) -> None:
        attempts.append(round(now[0]))
        raise ServerGone("The server lost a request.", forgot=True)

    monkeypatch.setattr(Loop, "run", forgotten)
    with pytest.raises(UserError, match=r"^The server lost a request\. Continue with: "):
        train(settings(tmp_path, SERVER_PATIENCE=8))
    assert attempts == [0, 0, 2, 6, 14]  # pauses of 2, 4 and 8 s


def test_an_old_state_that_cannot_be_deleted_is_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: RunningEngine,
    expected: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", server.url)

    def refused(service: Service, path: str) -> None:
        raise UserError(f"The server refused deleting {path}: not yours.")

    monkeypatch.setattr(Service, "delete_checkpoint", refused)
    with train(settings(tmp_path, CHECKPOINT_TTL_DAYS=2)) as trained:
        assert losses(trained.run) == expected
        with open_service(settings(tmp_path)) as service:
            ids = run_ids(trained.run)
            listed = service.ask(lambda: service.rest.list_checkpoints(ids[0]), "listing")
    printed = capsys.readouterr().out
    assert printed.count("Warning: the old state step-000002 stays: ") == 1
    assert "; deleted 2 days after each save" in printed
    assert not any(saved.state_deleted for saved in trained.run.checkpoints())
    lives = {(saved.expires_at - saved.time).days for saved in listed.checkpoints}
    assert lives == {2}


@pytest.mark.long
def test_a_server_that_stays_away_ends_the_run_when_the_patience_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    with ServerOnPort(tmp_path / "engine", model) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.url)
        wanted = settings(tmp_path, SERVER_PATIENCE=7)
        with after_steps(3, server.kill), pytest.raises(UserError) as caught:
            train(wanted)
    assert "for longer than SERVER_PATIENCE = 7 seconds" in str(caught.value)
    assert "Continue with: " in str(caught.value)


def test_a_server_that_is_busy_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RunningEngine
) -> None:
    said = Lines()
    with fault_proxy(server.url, "503", 1.0) as proxy, watched(said.say) as progress:
        monkeypatch.setenv("TINKER_BASE_URL", proxy.url)
        at_once = settings(tmp_path, SERVER_PATIENCE=0)
        with pytest.raises(UserError, match="HTTP 503"), open_service(at_once, progress=progress):
            pass
        assert not any("trying again" in text for text in said.texts)

        def recover() -> None:
            said.wait_for("trying again for 10 minutes")
            proxy.share = 0.0

        thread = threading.Thread(target=recover)
        thread.start()
        with open_service(settings(tmp_path), progress=progress) as service:
            assert service.max_context == 512
        thread.join()
    assert sum("trying again" in text for text in said.texts) == 1
