"""Requests that need no base model or no tokenizer, and the memory of clients that ended."""

import urllib.request
from pathlib import Path

import pytest
import tinker

from tests.support.clients import new_client, train
from tests.support.engine import MODEL, SDK, datum, random_datums, running_engine
from tests.support.processes import eventually
from tests.support.programs import WITHOUT_MEMORY
from tests.support.raw_client import new_model
from tests.support.tiny_models import make_tiny_model

pytestmark = pytest.mark.engine

# Adapters go to disk at once, and a client is dead after twice the SDK's ten seconds of silence.

IMPATIENT = WITHOUT_MEMORY.replace(
    "sys.exit",
    "from tinkersmith.engine.scheduling import sessions\n"
    "sessions.SESSION_SILENCE = 20\n"
    "sessions.Sessions.sweep.__defaults__ = (0.2,)\n"
    "sys.exit",
)


@pytest.mark.skipif(SDK < (0, 38), reason="older SDKs download archives")
def test_checkpoints_are_listed_and_downloaded_without_their_base_model(
    tmp_path: Path, tiny_model: Path
) -> None:
    def download(rest: tinker.RestClient, path: str) -> dict[str, bytes]:
        urls = rest.get_external_weights_urls(path).result().urls
        return {name: urllib.request.urlopen(url).read() for name, url in urls.items()}

    with running_engine(tmp_path / "engine", tiny_model) as engine:
        client = new_client(engine.client())
        train(client, random_datums(4))
        state = client.save_state("state").result().path
        export = client.save_weights_external("export").result().path
        expected = download(engine.rest(), export)
        engine.process.kill()
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(tmp_path / "engine", tiny_model, stderr=stderr) as engine,
    ):
        rest = engine.rest()
        assert rest.get_weights_info_by_tinker_path(state).result().base_model == MODEL
        assert len(rest.list_user_checkpoints().result().checkpoints) == 2
        assert download(rest, export) == expected
    assert f"loaded {MODEL}" not in log.read_text()


def test_a_stop_text_is_refused_where_there_is_no_tokenizer_and_a_stop_token_is_not(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    with running_engine(tmp_path / "engine", model) as engine, engine.client() as service:
        sampler = service.create_sampling_client(base_model=MODEL).result()
        prompt = tinker.ModelInput.from_ints([72, 101])
        for stop, good in (("x", False), (["x"], False), ([5], True), ([], True)):
            params = tinker.SamplingParams(max_tokens=3, temperature=0.0, stop=stop)
            if good:
                assert sampler.sample(prompt, 1, params).result().sequences
                continue
            with pytest.raises(tinker.TinkerError, match=r"has no tokenizer\.json"):
                sampler.sample(prompt, 1, params).result()


@pytest.mark.long
def test_the_adapters_of_ended_and_of_silent_clients_are_freed_on_disk_too_and_others_stay(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path, tiny_model, program=("-c", IMPATIENT)) as engine:
        living = engine.client()
        client = new_client(living)
        sampler = client.save_weights_and_get_sampling_client().result()
        expected = train(client, [datum([1, 2, 3])])

        def on_disk() -> set[str]:
            return {file.name.split("_")[0] for file in tmp_path.glob("idle/*/*.safetensors")}

        with engine.client() as ending:
            others = [new_client(ending, seed=seed) for seed in range(3)]
            assert all(train(other, [datum([1, 2, 3])]) for other in others)
            train(client, [datum([1, 2, 3])])
            ended = others[0].model_id.split(":")[0]
            assert ended in on_disk()
        assert eventually(lambda: ended not in on_disk())
        silent = new_model(engine).split(":")[0]  # has no heart that beats
        train(client, [datum([1, 2, 3])])
        assert silent in on_disk()
        assert eventually(lambda: silent not in on_disk())
        assert train(client, [datum([1, 2, 3])]) < expected
        assert sampler.compute_logprobs(tinker.ModelInput.from_ints([1, 2, 3])).result()
