"""The connection: which server is chosen, what a failing one leads to, and that nothing hangs."""

import concurrent.futures
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clocks import Lines, hurried_clock
from tests.support.engine import KEY, MODEL, RunningEngine, datum, running_engine
from tests.support.processes import PATIENCE, eventually, is_gone
from tests.support.stopwatch import Stopwatch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.progress import watched
from tinkersmith.service.connection import Service, open_service
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("started_engines")]

TINKER_NAMES = ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_CREDENTIAL_CMD", "TINKER_TELEMETRY")
PROXY_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a fresh machine: no key, no proxy, no stored login; set back after every test."""
    for name in (*TINKER_NAMES, *PROXY_NAMES):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def settings(output_dir: Path, model: Path | str, **names: object) -> Settings:
    return settings_from({"OUTPUT_DIR": str(output_dir), "BASE_MODEL": str(model), **names})


def children() -> set[int]:
    """The process ids of our own child processes."""
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    ).stdout
    return {int(line.split()[0]) for line in found.splitlines() if "tinkersmith.engine" in line}


@contextmanager
def opening(wanted: Settings) -> Iterator[tuple[Service, int]]:
    """A service, and the process id of the engine that was started for it."""
    before = children()
    with open_service(wanted) as service:
        (engine,) = children() - before
        yield service, engine


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    """The error's text, after what holds for all of them."""
    text = str(caught.value)
    assert text.endswith((".", ")")), text
    for leftover in ("Traceback", "self.request_id", "model_cls", "{'detail'", "\n"):
        assert leftover not in text, text
    return text


# ---- which server


def test_the_cloud_without_a_key_says_how_to_set_one(tmp_path: Path, model: Path) -> None:
    wanted = settings(tmp_path, "Qwen/Qwen3-8B", BACKEND="tinker")
    with pytest.raises(UserError) as caught, open_service(wanted):
        pass
    assert "export TINKER_API_KEY=" in sentence(caught)
    assert "local" in str(caught.value)
    assert not (tmp_path / ".engine").exists()


@pytest.mark.parametrize("backend", ["auto", "tinker"])
def test_a_key_that_cannot_be_one_is_named_but_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "secret-of-another-service")
    wanted = settings(tmp_path, "Qwen/Qwen3-8B", BACKEND=backend)
    with pytest.raises(UserError) as caught, open_service(wanted):
        pass
    assert "TINKER_API_KEY" in sentence(caught)
    assert "secret" not in str(caught.value)


def test_local_is_this_machine_whatever_the_environment_says(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes only the key made for it, so an answer shows that no other was sent."""
    monkeypatch.setenv("TINKER_API_KEY", "tml-of-the-cloud")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    with open_service(settings(tmp_path, model, BACKEND="local")) as service:
        assert service.kind == "embedded"
        assert service.max_context == 512


def test_dead_proxies_do_not_matter_and_the_users_exceptions_are_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXY_NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    with open_service(settings(tmp_path, model)) as service:
        assert service.max_context == 512
    hosts = os.environ["NO_PROXY"].split(",")
    assert hosts[0] == "intranet.example"
    assert set(hosts) >= LOOPBACK
    assert set(os.environ["no_proxy"].split(",")) >= LOOPBACK


# ---- a folder as the base model


def test_a_folder_that_is_no_model_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing-here"), "./nothing-here", str(tmp_path)):
        with pytest.raises(UserError) as caught, open_service(settings(tmp_path / "runs", name)):
            pass
        assert name in sentence(caught)
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_cannot_be_one_is_a_sentence(tmp_path: Path, model: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    before = children()
    with pytest.raises(UserError) as caught, open_service(settings(tmp_path / "taken", model)):
        pass
    assert "OUTPUT_DIR" in sentence(caught)
    assert children() == before


# ---- the embedded engine at work


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Service]:
    """One service for the tests that do not harm it."""
    with open_service(settings(tmp_path_factory.mktemp("runs"), model)) as service:
        yield service


def test_the_service_knows_its_model(opened: Service, model: Path) -> None:
    assert (opened.kind, opened.base_model) == ("embedded", str(model.resolve()))
    assert opened.max_context == 512
    assert opened.tokenizer().vocab_size == 259
    assert opened.tokenizer().decode(opened.tokenizer().encode("2 + 2 是 4")) == "2 + 2 是 4"


def test_proxies_that_come_later_are_no_way_to_our_engine(
    opened: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXY_NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert opened.probe.reach() is None
    assert opened.is_our_engine()


def test_a_step_a_checkpoint_and_a_sample_go_through(opened: Service) -> None:
    import tinker

    client = opened.create_training_client(settings(Path("runs"), "x", LORA_RANK=4))
    done = client.forward_backward([datum([1, 2, 3, 4])], "cross_entropy")
    stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-3))
    assert opened.wait(done, "training").metrics["loss:sum"] > 0
    opened.wait(stepped, "training")
    saved = opened.wait(client.save_weights_for_sampler("x"), "saving")
    sampler = opened.create_sampling_client(saved.path)
    answer = opened.wait(
        sampler.sample(
            prompt=tinker.ModelInput.from_ints([1, 2]),
            num_samples=2,
            sampling_params=tinker.SamplingParams(max_tokens=3, stop=[]),
        ),
        "sampling",
    )
    assert [len(sequence.tokens) for sequence in answer.sequences] == [3, 3]


def test_what_the_engine_refuses_becomes_a_sentence(opened: Service) -> None:
    client = opened.create_training_client(settings(Path("runs"), "x", LORA_RANK=4))
    with pytest.raises(UserError) as caught:
        opened.wait(client.forward_backward([datum([1, 99999, 3])], "cross_entropy"), "training")
    assert "99999" in sentence(caught)


@pytest.mark.parametrize("path", ["tinker://abc:train:0/sampler_weights/nothing", "tinker://x"])
def test_a_path_that_does_not_exist_is_named(opened: Service, path: str) -> None:
    with pytest.raises(UserError) as caught:
        opened.create_sampling_client(path)
    assert path in sentence(caught)


def test_a_base_model_that_is_not_offered_leads_to_those_that_are(
    tmp_path: Path, model: Path
) -> None:
    wanted = settings(tmp_path, "tinkersmith/tiny-mth")
    with pytest.raises(UserError) as caught, open_service(wanted) as service:
        service.create_training_client(wanted)
    assert "tinkersmith/tiny-mth" in sentence(caught)
    assert "tinkersmith/tiny-math" in str(caught.value)


# ---- ends


def test_closing_ends_the_engine_and_the_next_one_finds_the_folder_free(
    tmp_path: Path, model: Path
) -> None:
    for _ in range(2):
        with opening(settings(tmp_path, model)) as (_, engine):
            watch = Stopwatch()
        assert is_gone(engine)
        assert watch.seconds() < 5


def test_an_error_inside_ends_the_engine_too(tmp_path: Path, model: Path) -> None:
    started = []
    with pytest.raises(ZeroDivisionError), opening(settings(tmp_path, model)) as (_, engine):
        started.append(engine)
        raise ZeroDivisionError
    assert is_gone(started[0])


@pytest.mark.long
def test_an_engine_killed_while_we_wait_is_reported_within_5_s(tmp_path: Path, model: Path) -> None:
    wanted = settings(tmp_path, model, LORA_RANK=4)
    with pytest.raises(UserError) as caught, opening(wanted) as (service, engine):
        client = service.create_training_client(wanted)
        work = client.forward_backward([datum([7] * 500)] * 300, "cross_entropy")
        os.kill(engine, signal.SIGKILL)
        watch = Stopwatch()
        try:
            service.wait(work, "training step 3")
        finally:
            assert watch.seconds() < 5
    assert watch.seconds() < 5 + 4  # 4: what closing may take
    text = sentence(caught)
    assert "SIGKILL" in text
    assert "training step 3" in text


# What follows needs the recipe as a process of its own, to be killed or left hanging.

RECIPE = """
import os, signal, subprocess, sys, time
from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from

wanted = settings_from({"OUTPUT_DIR": sys.argv[1], "BASE_MODEL": sys.argv[2], "LORA_RANK": 4})
with open_service(wanted) as service:
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    ).stdout
    engine = next(int(l.split()[0]) for l in listed.splitlines() if "tinkersmith.engine" in l)
    print(engine, flush=True)
"""


def recipe(output_dir: Path, model: Path, then: str) -> tuple[subprocess.Popen, int]:
    """Start a recipe that opens a service and goes on with `then`; its engine's process id."""
    code = RECIPE + "".join(f"    {line}\n" for line in then.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(output_dir), str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = next_result(process)
    assert line, process.communicate()[1]
    return process, int(line)


def next_result(process: subprocess.Popen) -> str:
    """The next line that the recipe prints itself, without those that say what takes long."""
    assert process.stdout is not None
    return next((line.strip() for line in process.stdout if not line.startswith("  Still ")), "")


WAIT_LONG = """
from tests.support.engine import datum
client = service.create_training_client(wanted)
work = [client.forward_backward([datum([7] * 500)] * 300, "cross_entropy") for _ in range(3)]
print("waiting", flush=True)
service.wait(work[-1], "training")
"""


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL]
)
def test_when_the_recipe_is_stopped_in_mid_work_its_engine_goes_too(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    process, engine = recipe(tmp_path, model, WAIT_LONG)
    try:
        assert next_result(process) == "waiting"
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
        # Its work takes longer than that.
        assert eventually(lambda: is_gone(engine)), "the engine outlived the recipe"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("service.create_training_client(wanted)", id="creating the LoRA"),
        pytest.param(
            "service.create_sampling_client(None)", id="opening the model", marks=pytest.mark.long
        ),
    ],
)
def test_an_engine_that_died_before_the_first_call_is_reported_within_5_s(
    tmp_path: Path, model: Path, then: str
) -> None:
    process, _ = recipe(tmp_path, model, f"os.kill(engine, signal.SIGKILL)\n{then}")
    try:
        _, said = process.communicate(timeout=PATIENCE)  # the SDK alone would try for longer
    except subprocess.TimeoutExpired:
        pytest.fail("it still hangs")
    finally:
        process.kill()
    assert "UserError" in said or "ServerGone" in said, said
    assert "SIGKILL" in said


# ---- a server at a URL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("server"), model) as running:
        yield running


def test_auto_takes_the_server_at_tinker_base_url_and_starts_none(
    tmp_path: Path, server: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    monkeypatch.setenv("TINKER_BASE_URL", f"{server.url}/")
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with open_service(settings(tmp_path, MODEL)) as service:
        assert (service.kind, service.base_model, service.max_context) == ("url", MODEL, 512)
        assert children() == before


def test_a_model_that_the_server_does_not_offer_is_answered_with_its_list_nearest_first(
    tmp_path: Path, server: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    wanted = settings(tmp_path, "tinny")
    with pytest.raises(UserError) as caught, open_service(wanted) as service:
        service.create_training_client(wanted)
    text = sentence(caught)
    assert "tinny" in text
    assert text.index(f"{MODEL},") < text.index("tinkersmith/tiny-math")


def test_a_wrong_key_is_a_sentence(
    tmp_path: Path, server: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    wanted = settings(tmp_path, MODEL)
    with pytest.raises(UserError) as caught, open_service(wanted) as service:
        service.create_training_client(wanted)
    assert "TINKER_API_KEY" in str(caught.value)
    assert "tml-wrong" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_server_that_is_not_there_is_named_within_5_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    import tinker  # noqa: F401 - which takes seconds of its own

    watch = Stopwatch()
    with pytest.raises(UserError) as caught, open_service(settings(tmp_path, MODEL)):
        pass
    assert watch.seconds() < 5
    assert url in sentence(caught)


def test_without_patience_a_server_that_goes_away_is_reported_within_5_s(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_engine(tmp_path / "server", model) as running:
        monkeypatch.setenv("TINKER_BASE_URL", running.url)
        monkeypatch.setenv("TINKER_API_KEY", KEY)
        wanted = settings(tmp_path, MODEL, LORA_RANK=4, SERVER_PATIENCE=0)
        with pytest.raises(UserError) as caught, open_service(wanted) as service:
            client = service.create_training_client(wanted)
            work = client.forward_backward([datum([7] * 500)] * 300, "cross_entropy")
            running.process.kill()
            watch = Stopwatch()
            try:
                service.wait(work, "training")
            finally:
                assert watch.seconds() < 5
        assert running.url in str(caught.value)


# ---- nothing is silent


def test_the_start_of_the_engine_and_a_late_answer_are_said_to_be_under_way(
    tmp_path: Path, model: Path
) -> None:
    said = Lines()
    answer: concurrent.futures.Future[int] = concurrent.futures.Future()

    def say(text: str) -> None:
        said.say(text)
        if "measuring" in text:
            answer.set_result(7)

    with (
        watched(say, clock=hurried_clock(), look_every=0.01) as progress,
        open_service(settings(tmp_path, model), progress=progress) as service,
    ):
        assert service.wait(answer, "measuring the validation loss") == 7
    assert any("  Still starting the engine (" in text for text in said.texts)
    assert any("  Still measuring the validation loss (" in text for text in said.texts)


def test_a_request_that_fails_is_said_by_who_waits_for_it_and_not_by_the_sdk(
    opened: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupted command closes the connection under hundreds of requests."""
    import tinker

    sampler = opened.create_sampling_client(None)
    prompt = tinker.ModelInput.from_ints([10**6])
    pending = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=1))
    with pytest.raises(Exception, match=r"vocabulary|token"):
        pending.result()
    assert [line.message for line in caplog.records if "Request failed" in line.message] == []
