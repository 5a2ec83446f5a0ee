"""The engine as a child process: when it is started, when it is not, and that none is left over."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tests.support.processes import eventually, is_gone
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.errors import UserError
from tinkersmith.service.connection import open_service
from tinkersmith.service.embedded import start_engine
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("started_engines")]


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cloud(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def test_an_engine_that_was_started_names_its_url_and_ends_when_stopped(
    tmp_path: Path, model: Path
) -> None:
    engine = start_engine(tmp_path, [str(model)])
    try:
        engine.wait_until_ready()
        assert engine.url.startswith("http://127.0.0.1:")
        assert engine.death() is None
    finally:
        engine.stop()
    assert engine.process.returncode == 0
    assert "exit code 0" in str(engine.death())


def test_an_engine_that_cannot_serve_is_ended_and_its_reason_is_told(tmp_path: Path) -> None:
    engine = start_engine(tmp_path, ["no/such/folder"])
    with pytest.raises(UserError) as caught:
        engine.wait_until_ready()
    assert "The engine did not start: no/such/folder is not a model folder" in str(caught.value)
    assert str(engine.log) in str(caught.value)
    assert engine.process.poll() is not None


def test_an_engine_that_is_killed_before_it_serves_is_told_with_the_likely_cause(
    tmp_path: Path, model: Path
) -> None:
    engine = start_engine(tmp_path, [str(model)])
    engine.process.send_signal(signal.SIGKILL)
    with pytest.raises(UserError) as caught:
        engine.wait_until_ready()
    assert "The engine did not start: it ended at once, killed by SIGKILL, often for lack of" in (
        str(caught.value)
    )


def test_a_log_that_cannot_be_read_does_not_hide_how_the_engine_ended(
    tmp_path: Path, model: Path
) -> None:
    engine = start_engine(tmp_path, [str(model)])
    engine.process.send_signal(signal.SIGKILL)
    engine.log.unlink()
    engine.log.mkdir()
    with pytest.raises(UserError, match=r"killed by SIGKILL.*its log .* cannot be read: Is a dir"):
        engine.wait_until_ready()


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("#!/bin/sh\necho one >&2; echo two >&2; exit 3\n", "exit code 3. The end of its log"),
        ("#!/bin/sh\necho hello\n", "instead of its port"),
        ("#!/bin/sh\nexec sleep 1000\n", "it named no port within 1 s"),
    ],
)
def test_a_program_that_is_no_engine_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    file = tmp_path / "python"
    file.write_text(program)
    file.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(file))
    if "within 1 s" in sentence:
        monkeypatch.setattr("tinkersmith.service.embedded.START_PATIENCE", 1.0)
    engine = start_engine(tmp_path / "runs", [])
    with pytest.raises(UserError, match="The engine did not start: ") as caught:
        engine.wait_until_ready()
    assert sentence in str(caught.value)
    assert "exit code 3" not in sentence or str(caught.value).endswith("one / two")


@pytest.mark.parametrize("program", ["", "/no/such/python"])
def test_a_python_that_is_gone_is_named_and_no_folder_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr("sys.executable", program)
    with pytest.raises(UserError, match="The engine could not be started with ") as caught:
        start_engine(tmp_path, [])
    assert "OUTPUT_DIR" not in str(caught.value)
    assert program in str(caught.value)
    assert list((tmp_path / ".engine").glob("*.log")) == []


def test_the_engines_folder_does_not_grow_with_every_start(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STARTS sets how many; 15 show that more than the ten newest logs do not stay."""
    folder = tmp_path / ".engine"
    first = start_engine(tmp_path, [str(model)])  # runs all the time
    try:
        first.wait_until_ready()
        file = tmp_path / "python"
        file.write_text("#!/bin/sh\necho no >&2; exit 1\n")
        file.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(file))
        sizes: list[int] = []
        for _ in range(int(os.environ.get("STARTS", "15"))):
            with pytest.raises(UserError):
                start_engine(tmp_path, []).wait_until_ready()
            sizes.append(len(list(folder.iterdir())))
        assert first.log.is_file()
        assert len(list(folder.glob("engine-*.log"))) <= 11
        assert sizes[-1] == sizes[11]
    finally:
        first.stop()


def test_the_engine_is_not_given_the_users_credentials(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-of-the-cloud")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = start_engine(tmp_path, [str(model)])
    try:
        engine.wait_until_ready()
        given = Path(f"/proc/{engine.process.pid}/environ").read_bytes().split(b"\0")
    finally:
        engine.stop()
    assert not any(b"tml-of-the-cloud" in variable for variable in given)
    assert b"OMP_NUM_THREADS=1" in given


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{not json", "is not JSON"),
        ('[{"instruction": "", "output": ""}]', "nothing to train on"),
    ],
)
def test_a_mistake_in_the_data_is_told_before_an_engine_starts(
    tmp_path: Path, content: str, sentence: str
) -> None:
    data = tmp_path / "train.json"
    data.write_text(content)
    with pytest.raises(UserError) as caught:
        train(data_files=[str(data)], output_dir=str(tmp_path / "runs"), backend="local")
    assert str(data) in str(caught.value) or sentence in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_that_shows_after_the_engines_start_leaves_no_engine(
    tmp_path: Path, model: Path
) -> None:
    settings = settings_from(
        {"OUTPUT_DIR": str(tmp_path), "BASE_MODEL": str(model), "BACKEND": "local"}
    )
    pids: list[int] = []
    with pytest.raises(UserError, match="my own mistake"), open_service(settings) as service:
        engine = service.probe.engine
        assert engine is not None
        pids.append(engine.process.pid)
        os.kill(pids[0], 0)  # it runs
        raise UserError("my own mistake")
    assert eventually(lambda: is_gone(pids[0]))
