"""tinker-cookbook's weights functions on our checkpoints, checked with transformers and peft.

`make test` installs the cookbook (tests/cookbook.txt); without it these tests are skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.clients import new_client, train
from tests.support.engine import KEY, RunningEngine, random_datums, running_engine
from tests.support.families import make

pytestmark = pytest.mark.cookbook

weights = pytest.importorskip(
    "tinker_cookbook.weights", reason="tinker-cookbook is not installed: see `make test`"
)
TOKENS = list(range(10, 60))


class Trained(NamedTuple):
    client: tinker.TrainingClient
    state: str
    logprobs: np.ndarray  # of TOKENS[1:], as the engine computes them with this adapter


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not tied: there is no place in a tied model's files for a merged output layer.
    return make(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("engine"), base) as running:
        yield running


@pytest.fixture(scope="module")
def trained(engine: RunningEngine) -> Iterator[Trained]:
    with engine.client() as service:
        yield _train(service)


def _train(service: tinker.ServiceClient) -> Trained:
    client = new_client(service)
    for _ in range(3):
        train(client, random_datums(4))
    sampler = client.save_weights_and_get_sampling_client().result()
    found = sampler.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result()
    state = client.save_state("trained").result().path
    return Trained(client, state, np.array(found[1:], dtype=np.float64))


@pytest.fixture(scope="module")
def adapter(
    engine: RunningEngine, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cookbook's download of a training state: exported, encrypted, fetched, decrypted."""
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_API_KEY", KEY)
        weights.download(tinker_path=trained.state, output_dir=str(folder), base_url=engine.url)
    return folder


def test_a_downloaded_state_is_the_stored_adapter_and_leaves_nothing_behind(
    engine: RunningEngine, trained: Trained, adapter: Path
) -> None:
    assert sorted(file.name for file in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    [stored] = engine.folder.glob("checkpoints/*/weights/trained/adapter_model.safetensors")
    expected, found = load_file(stored), load_file(adapter / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    listed = engine.rest().list_user_checkpoints(limit=1000).result().checkpoints
    assert not [one for one in listed if one.tinker_path.endswith("/external_weights/download")]


def test_an_external_export_is_downloaded_as_it_is(
    engine: RunningEngine,
    trained: Trained,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    path = trained.client.save_weights_external("plain").result().path
    weights.download(tinker_path=path, output_dir=str(tmp_path), base_url=engine.url)
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (adapter / name).read_bytes()


def test_the_merged_model_computes_what_the_engine_computed(
    trained: Trained, adapter: Path, base: Path, tmp_path: Path
) -> None:
    weights.build_hf_model(
        base_model=str(base),
        adapter_path=str(adapter),
        output_path=str(tmp_path / "merged"),
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    np.testing.assert_allclose(_logprobs(merged), trained.logprobs, atol=1e-4)


def test_the_served_adapter_computes_what_the_engine_computed(
    trained: Trained, adapter: Path, base: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    weights.build_lora_adapter(
        base_model=str(base),
        adapter_path=str(adapter),
        output_path=str(tmp_path / "served"),
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untrained = _logprobs(model)
    served = peft.PeftModel.from_pretrained(model, tmp_path / "served")
    np.testing.assert_allclose(_logprobs(served), trained.logprobs, atol=1e-4)
    assert np.abs(untrained - trained.logprobs).max() > 0.01


def _logprobs(model: Any) -> np.ndarray:
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0, :-1]  # (T - 1, V)
    chosen = logits.double().log_softmax(-1).gather(1, tokens[0, 1:, None])
    return chosen[:, 0].numpy()
