"""Upload of an exported adapter, and search of checkpoints: the routes of tinker 0.39 and 0.40.

No such SDK is to be had: the requests are those that its documentation describes.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import save_file

from tests.support.clients import PROMPT, new_client, train
from tests.support.engine import MODEL, SDK, RunningEngine, random_datums, running_engine
from tests.support.processes import PATIENCE
from tests.support.raw_client import call
from tinkersmith.engine.storage.folders import parse_path

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(SDK < (0, 38), reason="older SDKs download archives"),
]
CONFIG = {"rank": 4, "seed": None, "train_unembed": True, "train_mlp": True, "train_attn": True}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("other"), tiny_model) as engine:
        yield engine


def logprobs(sampler: tinker.SamplingClient) -> np.ndarray:
    return np.array(sampler.compute_logprobs(PROMPT).result()[1:])


def put(url: str, content: bytes) -> None:
    request = urllib.request.Request(url, content, method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.status == 200


def start(engine: RunningEngine, **headers: str) -> dict[str, Any]:
    body = {"base_model": MODEL, "lora_config": CONFIG, "destination_project_id": None}
    status, answer = call(engine, "/external_weights_upload_start", body, **headers)
    assert status == 200, answer
    return answer


def test_an_exported_adapter_is_uploaded_to_another_engine_sampled_and_trained_on(
    engine: RunningEngine, other: RunningEngine
) -> None:
    with engine.client() as service, other.client() as elsewhere:
        client = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        train(client, random_datums(4), rate=0.05)
        expected = logprobs(client.save_weights_and_get_sampling_client().result())
        export = client.save_weights_external("export").result().path
        rest = tinker.RestClient(base_url=engine.url, api_key="tml-local")
        urls = rest.get_external_weights_urls(export).result().urls
        upload = start(other)
        assert set(upload["urls"]) == {"adapter_config.json", "adapter_model.safetensors"}
        finish = {"upload_id": upload["upload_id"]}
        status, answer = call(other, "/external_weights_upload_finish", finish)
        assert status == 400 and "has no adapter_config.json and no adapter_model" in str(answer)
        for name, address in upload["urls"].items():
            put(address, urllib.request.urlopen(urls[name]).read())
        status, answer = call(other, "/external_weights_upload_finish", finish)
        assert status == 200, answer
        path = answer["tinker_path"]
        assert parse_path(path).name == "uploaded"
        assert not list((other.folder / "uploads").iterdir())
        resumed = elsewhere.create_training_client_from_state(path).result()
        found = logprobs(resumed.save_weights_and_get_sampling_client().result())
        np.testing.assert_allclose(found, expected, atol=1e-5)
        found = logprobs(elsewhere.create_sampling_client(model_path=path).result())
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert train(resumed, random_datums(4)) > 0
        status, answer = call(other, "/external_weights_upload_finish", finish)
        assert status == 404 and "unknown, or is finished" in str(answer)


def put_adapter(upload: dict[str, Any], folder: Path) -> None:
    for name, address in upload["urls"].items():
        put(address, (folder / name).read_bytes())


def test_an_adapter_of_another_rank_and_strength_is_uploaded_as_peft_computes_it(
    other: RunningEngine, tmp_path: Path
) -> None:
    folder = peft_adapter(tmp_path / "small", rank=2, alpha=16)
    upload = start(other)
    put_adapter(upload, folder)
    finish = {"upload_id": upload["upload_id"]}
    status, answer = call(other, "/external_weights_upload_finish", finish)
    assert status == 200, answer
    with other.client() as elsewhere:
        path = answer["tinker_path"]
        sampler = elsewhere.create_sampling_client(model_path=path).result()
        # The same product B A at twice the rank and strength is the same adapter.
        twice = start(other)
        put_adapter(twice, peft_adapter(tmp_path / "twice", rank=4, alpha=32, repeated=2))
        finish = {"upload_id": twice["upload_id"]}
        status, answer = call(other, "/external_weights_upload_finish", finish)
        assert status == 200, answer
        same = elsewhere.create_sampling_client(model_path=answer["tinker_path"]).result()
        base = elsewhere.create_sampling_client(base_model=MODEL).result()
        np.testing.assert_allclose(logprobs(sampler), logprobs(same), atol=1e-5)
        assert np.abs(logprobs(sampler) - logprobs(base)).max() > 0.01
        resumed = elsewhere.create_training_client_from_state(path).result()
        assert train(resumed, random_datums(4)) > 0


def peft_adapter(folder: Path, rank: int, alpha: int, repeated: int = 1) -> Path:
    """A folder with one layer's LoRA, whose product is that of rank / repeated times repeated."""
    path = "base_model.model.model.layers.0.self_attn.o_proj"
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = 64, 32  # of the tiny model
    a = torch.randn(rank // repeated, inputs, generator=generator) * 0.3
    b = torch.randn(outputs, rank // repeated, generator=generator) * 0.3
    tensors = {
        f"{path}.lora_A.weight": a.repeat(repeated, 1),
        f"{path}.lora_B.weight": b.repeat(1, repeated) / repeated,
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": rank, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_files_that_do_not_fit_are_refused_with_the_reason(
    other: RunningEngine, tmp_path: Path
) -> None:
    upload = start(other, x_sdk_version="0.40.0")
    addresses = {name: entry["url"] for name, entry in upload["urls"].items()}
    assert all(entry["headers"] == {} for entry in upload["urls"].values())
    finish = {"upload_id": upload["upload_id"]}
    put(addresses["adapter_model.safetensors"], b"no weights")
    for config, sentence in (
        (b"{", "adapter_config.json is damaged"),
        (b'{"r": 4}', "adapter_config.json has lora_alpha = None; it must be a number above 0"),
        (b'{"r": 4, "lora_alpha": 32}', "adapter_model.safetensors is damaged"),
    ):
        put(addresses["adapter_config.json"], config)
        status, answer = call(other, "/external_weights_upload_finish", finish)
        assert status == 400 and sentence in str(answer), answer
        assert str(other.folder) not in str(answer)
    for name, content in addresses.items():
        put(content, (peft_adapter(tmp_path / name, rank=8, alpha=32) / name).read_bytes())
    status, answer = call(other, "/external_weights_upload_finish", finish)
    assert status == 400, answer
    assert "the adapter in the upload has rank 8, and this training client or upload has 4" in str(
        answer
    )
    with pytest.raises(urllib.error.HTTPError, match="404"):
        put(addresses["adapter_config.json"].replace("adapter_config.json", "other.json"), b"{}")


def test_checkpoints_are_searched_by_kind_labels_and_base_model_page_by_page(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_engine(tmp_path / "engine", tiny_model) as engine, engine.client() as service:
        client = new_client(service)
        paths = [client.save_state(f"state-{number}").result().path for number in range(3)]
        sampler = client.save_weights_for_sampler("sampler").result().path

        def search(**query: Any) -> tuple[list[str], Any]:
            status, answer = call(engine, "/checkpoints/search", query)
            assert status == 200, answer
            assert all(entry["base_model"] == MODEL for entry in answer["checkpoints"])
            return [entry["tinker_path"] for entry in answer["checkpoints"]], answer["next_cursor"]

        newest_first = [sampler, *reversed(paths)]
        assert search() == (newest_first, None)
        assert search(checkpoint_type="sampler", owner={"type": "own"}) == ([sampler], None)
        assert search(base_models=[]) == ([], None)
        assert search(base_models=[MODEL], user_metadata={"a": "b"}) == ([], None)
        page, cursor = search(limit=3)
        assert page == newest_first[:3]
        assert search(limit=3, cursor=cursor) == (newest_first[3:], None)
        status, answer = call(engine, "/checkpoints/search", {"checkpoint_type": "odd"})
        assert status == 400 and "must be one of training, sampler, external" in str(answer)
