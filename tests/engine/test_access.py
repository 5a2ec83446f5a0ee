"""Who may use an engine, and how it is reached: keys, TLS, the permissions of its files."""

import os
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.engine import KEY, MODEL, running_engine
from tests.support.http_server import self_signed
from tests.support.processes import PATIENCE
from tests.support.raw_client import batch, call, new_model, result

pytestmark = pytest.mark.engine

LONG_KEY = f"tml-{'k' * 28}"


@contextmanager
def started(folder: Path, *options: str, key: str | None = None) -> Iterator[dict[str, str]]:
    """An engine that was started by hand; gives what it told its user, and its ready line."""
    environment = {name: value for name, value in os.environ.items() if "ENGINE_KEY" not in name}
    command = [sys.executable, "-m", "tinkersmith.engine", "--port", "0", "--dir", str(folder)]
    process = subprocess.Popen(
        [*command, *options],
        env=environment if key is None else environment | {"TINKERSMITH_ENGINE_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        told = {"ready": process.stdout.readline(), "log": ""}
        for line in process.stderr:
            told["log"] += line
            name, _, value = line.strip().removeprefix("export ").partition("=")
            told[name] = value
            if name == "TINKER_API_KEY":
                break
        yield told | {"process": str(process.pid)}
    finally:
        process.kill()
        process.wait()


def status_with(url: str, key: str) -> int:
    request = urllib.request.Request(f"{url}/api/v1/checkpoints", headers={"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("given", [None, ""])
def test_without_a_key_one_is_made_and_shown_once_with_the_commands_to_use_it(
    tmp_path: Path, given: str | None
) -> None:
    with started(tmp_path, key=given) as told:
        key, url = told["TINKER_API_KEY"], told["TINKER_BASE_URL"]
        assert key.startswith("tml-") and len(key) >= 32
        assert status_with(url, key) == 200
        assert status_with(url, "") == status_with(url, KEY) == 401
        command = Path("/proc", told["process"], "cmdline")
        assert not command.exists() or key not in command.read_text()
    assert key not in told["ready"] and '"event": "ready"' in told["ready"]
    assert told["log"].count(key) == 1
    with started(tmp_path) as other:
        assert other["TINKER_API_KEY"] != key


def test_a_given_key_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "the key"
    file.write_text(f"{LONG_KEY}\n")
    file.chmod(0o644)
    with started(tmp_path / "a", key=LONG_KEY) as told:
        assert told["TINKER_API_KEY"] == '"$TINKERSMITH_ENGINE_KEY"'
        assert status_with(told["TINKER_BASE_URL"], LONG_KEY) == 200
        assert LONG_KEY not in told["log"] + told["ready"]
    with started(tmp_path / "b", "--key-file", str(file)) as told:
        assert told["TINKER_API_KEY"] == f"\"$(cat '{file}')\""
        assert status_with(told["TINKER_BASE_URL"], LONG_KEY) == 200
        assert LONG_KEY not in told["log"] + told["ready"]
        assert f"other users may read the key in {file}" in told["log"]


def test_beyond_loopback_a_key_is_made_as_well_and_plain_http_is_warned_of(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "0.0.0.0") as told:
        assert len(told["TINKER_API_KEY"]) >= 32
        assert "put a reverse proxy with TLS before the engine" in told["log"]
        assert status_with(told["TINKER_BASE_URL"], told["TINKER_API_KEY"]) == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


SDK_PROGRAM = """
import sys, tinker
url, key, model = sys.argv[1:]
with tinker.ServiceClient(base_url=url, api_key=key) as service:
    client = service.create_lora_training_client(base_model=model, rank=2)
    client = client.result() if hasattr(client, "result") else client
    print(client.save_state("over-tls").result().path)
"""


def test_the_sdk_trains_over_tls(
    tmp_path: Path, tiny_model: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with running_engine(tmp_path, tiny_model, *options) as running:
        url = running.url.replace("http://", "https://")
        trusting = {**os.environ, "SSL_CERT_FILE": str(cert)}
        program = [sys.executable, "-c", SDK_PROGRAM, url, KEY, MODEL]
        shown = subprocess.run(
            program, env=trusting, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert "/weights/over-tls" in shown.stdout, shown.stderr
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(
            f"{url}/api/v1/healthz", timeout=PATIENCE, context=context
        ) as answer:
            assert answer.status == 200
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{running.url}/api/v1/healthz", timeout=PATIENCE)


def test_a_key_of_another_certificate_or_with_a_passphrase_is_said(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    other, sealed = tmp_path / "other.pem", tmp_path / "sealed.pem"
    make = ["openssl", "genrsa", "-out", str(other), "2048"]
    subprocess.run(make, check=True, capture_output=True)
    seal = ["openssl", "rsa", "-aes256", "-passout", "pass:secret"]
    seal += ["-in", str(key), "-out", str(sealed)]
    subprocess.run(seal, check=True, capture_output=True)
    for file, sentence in ((other, "another certificate"), (sealed, "without a passphrase")):
        command = [sys.executable, "-m", "tinkersmith.engine", "--dir", str(tmp_path / "e")]
        command += ["--tls-cert", str(cert), "--tls-key", str(file)]
        refused = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert refused.returncode == 1 and sentence in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def wide(folder: Path) -> list[Path]:
    """What others have permissions for."""
    others = stat.S_IRWXG | stat.S_IRWXO
    return [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & others]


def test_what_the_engine_writes_is_its_users_alone(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "engine"
    before = os.umask(0o022)
    try:
        with running_engine(folder, tiny_model) as running:
            model_id = new_model(running)
            call(running, "/forward_backward", batch(model_id, 1, [1, 2, 3]))
            call(running, "/optim_step", {"model_id": model_id, "seq_id": 2, "adam_params": {}})
            for seq_id, route in enumerate(
                ("/save_weights", "/save_weights_for_sampler", "/save_weights_external"), 3
            ):
                body = {"model_id": model_id, "seq_id": seq_id, "path": "a"}
                _, future = call(running, route, body)
                assert "path" in result(running, future["request_id"])
            assert len(list(folder.rglob("*.safetensors"))) >= 3
            assert wide(folder) == []
    finally:
        os.umask(before)


def test_a_folder_of_an_earlier_version_is_tightened_and_that_is_said(
    tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "engine"
    with running_engine(folder, tiny_model) as running:
        model_id = new_model(running)
        _, future = call(running, "/save_weights", {"model_id": model_id, "seq_id": 1, "path": "a"})
        result(running, future["request_id"])
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with started(folder) as told:
        assert wide(folder) == []
    assert "was open to other users" in told["log"]
    with started(folder) as told:
        assert "open to other users" not in told["log"]


def test_a_folder_that_holds_other_files_keeps_its_own_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    mine = folder / "notes.txt"
    mine.write_text("mine")
    mine.chmod(0o644)
    with started(folder) as told:
        assert set(wide(folder)) == {folder, mine}
    assert "holds other files" in told["log"]
