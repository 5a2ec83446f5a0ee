"""Listings, times to live and downloads, through the SDK's RestClient and command line."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tinker
from safetensors.torch import load_file

from tests.support.clients import new_client, train
from tests.support.engine import KEY, MODEL, SDK, RunningEngine, random_datums, running_engine
from tests.support.processes import PATIENCE, eventually

pytestmark = pytest.mark.engine


def test_sessions_and_their_runs_and_samplers_are_listed(engine: RunningEngine) -> None:
    rest = engine.rest()
    before = rest.list_sessions(limit=1000).result().sessions
    service = tinker.ServiceClient(
        base_url=engine.url, api_key=KEY, user_metadata={"purpose": "listing"}
    )
    with service:
        client = new_client(service)
        service.create_sampling_client(base_model=MODEL).result()
        [session_id] = set(rest.list_sessions(limit=1000).result().sessions) - set(before)
        session = rest.get_session(session_id).result()
        assert session.training_run_ids == [client.model_id]
        assert session.user_metadata == {"purpose": "listing"}
        [sampler_id] = session.sampler_ids
        assert rest.get_sampler(sampler_id).result().base_model == MODEL
        assert rest.list_sessions(limit=1).result().sessions == [session_id]
        assert rest.list_sessions(limit=1, offset=1).result().sessions == before[:1]


def test_an_archive_is_refused_with_what_there_is_instead(
    engine: RunningEngine, service: tinker.ServiceClient
) -> None:
    path = new_client(service).save_state("kept").result().path
    run = path.split("/")[2]
    for name, status, about in (("kept", 400, "save_weights_external"), ("no", 404, "not exist")):
        url = f"{engine.url}/api/v1/training_runs/{run}/checkpoints/weights/{name}/archive"
        asked = urllib.request.Request(url, headers={"X-API-Key": KEY})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=PATIENCE)
        assert caught.value.code == status and about in caught.value.read().decode()


def test_a_run_shows_its_newest_checkpoints(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    client = new_client(service)
    for name in ("one", "two"):
        client.save_state(name).result()
    client.save_weights_for_sampler("three").result()
    run = rest.get_training_run(client.model_id).result()
    assert run.last_checkpoint is not None and run.last_sampler_checkpoint is not None
    assert run.last_checkpoint.checkpoint_id == "weights/two"
    assert run.last_sampler_checkpoint.checkpoint_id == "sampler_weights/three"
    assert run.last_checkpoint.size_bytes
    path = run.last_checkpoint.tinker_path
    page = rest.list_training_runs(limit=1).result()
    assert [listed.training_run_id for listed in page.training_runs] == [client.model_id]
    assert page.cursor.total_count >= 1
    by_path = rest.get_training_run_by_tinker_path(path).result()
    assert by_path.training_run_id == client.model_id


def test_a_checkpoint_past_its_time_to_live_is_gone_with_its_files(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    path = client.save_state("brief", ttl_seconds=1).result().path
    saved = client.save_state("saved", ttl_seconds=3600).result().path

    def listed() -> dict[str, object]:
        stored = rest.list_checkpoints(client.model_id).result().checkpoints
        return {checkpoint.tinker_path: checkpoint.expires_at for checkpoint in stored}

    assert listed()[saved] is not None
    rest.set_checkpoint_ttl_from_tinker_path(saved, None).result()
    assert eventually(lambda: path not in listed())
    assert listed() == {saved: None}
    with pytest.raises(tinker.NotFoundError, match="does not exist here"):
        service.create_training_client_from_state(path).result()
    run_folder = engine.folder / "checkpoints" / client.model_id.replace(":", "_")
    assert [folder.name for folder in (run_folder / "weights").iterdir()] == ["saved"]


def test_an_overwritten_checkpoint_holds_the_new_weights_and_one_folder(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    data = random_datums(2)
    client.save_state("same").result()
    train(client, data, rate=0.1)
    path = client.save_state("same", overwrite=True).result().path
    expected = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
    other = service.create_training_client_from_state(path).result()
    assert other.forward(data, "cross_entropy").result().metrics["loss:sum"] == expected
    run_folder = engine.folder / "checkpoints" / client.model_id.replace(":", "_")
    assert len(list((run_folder / "weights").iterdir())) == 1


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "x" * 129, "ü"])
def test_an_odd_checkpoint_name_is_refused(service: tinker.ServiceClient, name: str) -> None:
    client = new_client(service)
    for save in (client.save_state, client.save_weights_for_sampler, client.save_weights_external):
        with pytest.raises(tinker.RequestFailedError, match="must be 1 to 128 letters"):
            save(name).result()


def test_a_download_address_is_good_for_its_own_files_only(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    path = client.save_weights_external("mine").result().path
    state = client.save_state("secret").result().path
    answer = rest.get_external_weights_urls(path).result()
    url = answer.urls["adapter_config.json"]
    assert json.load(urllib.request.urlopen(url))["r"] == 4
    token = url.split("/files/")[1].split("/")[0]
    for wrong in (
        url.replace("adapter_config.json", "optimizer.safetensors"),
        url.replace("/external_weights/mine/", "/weights/secret/"),
        url.replace(token, token[:-1] + ("0" if token[-1] != "0" else "1")),
        url.replace(token, str(int(token.split("-")[0]) + 9) + "-" + token.split("-")[1]),
        url.replace("mine/adapter_config.json", "mine/../secret/adapter_config.json"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(wrong)
        assert caught.value.code == 404
    assert state.endswith("weights/secret")


def test_a_download_whose_files_someone_has_deleted_says_so(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    path = client.save_weights_external("lost").result().path
    url = rest.get_external_weights_urls(path).result().urls["adapter_config.json"]
    run_folder = engine.folder / "checkpoints" / client.model_id.replace(":", "_")
    for file in run_folder.rglob("adapter_config.json"):
        file.unlink()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url)
    assert caught.value.code == 410
    sentence = caught.value.read().decode()
    assert f"adapter_config.json of {path} is damaged: the file is gone" in sentence
    with pytest.raises(tinker.BadRequestError, match="the file is gone"):
        rest.get_external_weights_urls(path).result()


@pytest.mark.skipif(SDK < (0, 36), reason="tinker before 0.36 does not encrypt")
def test_an_encrypted_download_opens_with_its_key_alone(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    pyrage = pytest.importorskip("pyrage")
    client = new_client(service)
    identity, other = (pyrage.x25519.Identity.generate() for _ in range(2))
    future = client.save_weights_external(
        "x", age_encryption_recipients=[str(identity.to_public())]
    )
    urls = rest.get_external_weights_urls(future.result().path).result()
    names = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert sorted(urls.urls) == [f"{name}.age" for name in names]
    sealed = urllib.request.urlopen(urls.urls["adapter_config.json.age"]).read()
    assert json.loads(pyrage.decrypt(sealed, [identity]))["r"] == 4
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed, [other])
    with pytest.raises(tinker.RequestFailedError, match="'age1x' is not an age recipient"):
        client.save_weights_external("y", age_encryption_recipients=["age1x"]).result()


@pytest.mark.skipif(SDK < (0, 36), reason="tinker before 0.36 does not encrypt")
def test_without_pyrage_an_encrypted_download_is_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine runs where importing pyrage fails."""
    (tmp_path / "pyrage.py").write_text("raise ImportError")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with running_engine(tmp_path / "engine", tiny_model) as engine, engine.client() as service:
        client = new_client(service)
        with pytest.raises(tinker.RequestFailedError, match="needs the package pyrage"):
            client.save_weights_external("x", age_encryption_recipients=["age1x"]).result()


@pytest.mark.skipif(SDK < (0, 36), reason="tinker before 0.36 downloads archives")
def test_the_tinker_command_lists_and_downloads(
    service: tinker.ServiceClient, rest: tinker.RestClient, engine: RunningEngine, tmp_path: Path
) -> None:
    client = new_client(service)
    train(client, random_datums(2))
    path = client.save_state("for-download").result().path

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("tinker"), *arguments],
            env={**os.environ, "TINKER_BASE_URL": engine.url, "TINKER_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        # CPython aborts a process whose daemon thread writes while the interpreter ends. The SDK's
        # event loop is such a thread; by then, the command has done its work.
        aborted_at_its_end = done.returncode == -signal.SIGABRT and (
            "at interpreter shutdown, possibly due to daemon threads" in done.stderr
        )
        assert done.returncode == 0 or aborted_at_its_end, done.stdout + done.stderr
        return done.stdout

    listed = json.loads(run("--format", "json", "checkpoint", "list", "--run-id", client.model_id))
    assert "for-download" in json.dumps(listed)
    run("checkpoint", "download", path, "--output", str(tmp_path))
    [file] = tmp_path.rglob("adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for tensor in load_file(file).values())
    left = rest.list_user_checkpoints(limit=500).result().checkpoints
    assert not [entry for entry in left if entry.tinker_path.endswith("external_weights/download")]
