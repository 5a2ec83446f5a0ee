"""Several base models in one engine: loaded when used, the least lately used unloaded for room."""

import gc
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
import torch

from tests.support.clients import train
from tests.support.engine import MODEL, random_datums, running_engine
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.threads import ThreadChoice
from tinkersmith.engine.model import base_model
from tinkersmith.engine.runtime import base_models, fast_code
from tinkersmith.engine.runtime.base_models import BaseModels
from tinkersmith.engine.storage.catalogue import Catalogue

pytestmark = pytest.mark.engine

# An engine in whose memory there is room for one model at a time.
ROOM_FOR_ONE = """
import gc, sys
from tinkersmith.engine import __main__
from tinkersmith.engine.model import base_model
from tinkersmith.engine.runtime import base_models
def free_memory(device):
    gc.collect()
    return 0 if any(isinstance(one, base_model.BaseModel) for one in gc.get_objects()) else 10**9
base_models.free_memory = free_memory
sys.exit(__main__.main())
"""


@pytest.fixture(autouse=True)
def unchanged_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {name: make_tiny_model(tmp_path / name, seed=ord(name)) for name in "abc"}


def test_the_least_lately_used_model_is_unloaded_for_room_and_really_gone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = BaseModels(Catalogue(folders), threads=1)
    loaded = {name: weakref.ref(models.get(name).model) for name in "ab"}
    models.get("a")

    def room_for_two(device: object) -> int:
        gc.collect()
        return 0 if sum(one() is not None for one in loaded.values()) == 2 else 10**9

    monkeypatch.setattr(base_models, "free_memory", room_for_two)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        models.get("c")
    assert loaded["a"]() is not None and loaded["b"]() is None
    assert "unloaded b to make room for c; it is loaded again when used" in caplog.text


def test_a_model_for_which_there_is_no_room_is_refused_with_the_numbers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_models, "free_memory", lambda device: 20_000)
    models = BaseModels(Catalogue(folders), threads=1)
    with pytest.raises(Refused, match=r"a needs about 0\.00 GB of memory, and 0\.00 GB are free"):
        models.get("a")


def test_damaged_weights_are_named(folders: dict[str, Path]) -> None:
    (folders["a"] / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Refused, match=r"model\.safetensors is damaged"):
        BaseModels(Catalogue(folders), threads=1).get("a")


def test_clients_of_models_that_take_turns_in_memory_get_what_they_get_alone(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    def steps(service: tinker.ServiceClient, names: list[str]) -> dict[str, list[float]]:
        clients = {
            name: service.create_lora_training_client(name, rank=4, seed=1).result()
            for name in names
        }
        losses: dict[str, list[float]] = {name: [] for name in names}
        for step in range(3):
            for name, client in clients.items():
                losses[name].append(train(client, random_datums(3, seed=step)))
        return losses

    offered = ["--base-model", f"other={folders['b']}"]
    with running_engine(tmp_path / "alone", folders["a"], *offered) as engine:
        alone = {}
        for name in (MODEL, "other"):
            with engine.client() as service:
                alone |= steps(service, [name])
    assert alone[MODEL] != alone["other"]
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(
            *(tmp_path / "turns", folders["a"], *offered),
            stderr=stderr,
            program=("-c", ROOM_FOR_ONE),
        ) as engine,
        engine.client() as service,
    ):
        assert steps(service, [MODEL, "other"]) == alone
    assert log.read_text().count("unloaded") >= 5


# ---- threads


def test_the_option_wins_over_the_variable_and_the_variable_over_the_engines_choice(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert BaseModels(Catalogue(folders), threads=2).threads_for("a") == 2
    assert BaseModels(Catalogue(folders)).threads_for("a") == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    models = BaseModels(Catalogue(folders))
    models.threads = ThreadChoice(models.threads.requested, 8, 8, lambda: 0.0)
    assert models.threads_for("a") == 4  # a small model takes half of the cores


def test_loading_a_model_leaves_the_number_of_threads_as_it_was(folders: dict[str, Path]) -> None:
    torch.set_num_threads(3)
    BaseModels(Catalogue(folders), threads=1).get("a")
    assert torch.get_num_threads() == 3


# ---- checks at loading


def test_checks_that_passed_are_not_run_again_at_the_next_start(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_models, "cache_folder", lambda: tmp_path / "cache")
    first = BaseModels(Catalogue(folders), threads=1).get("a")
    assert list((tmp_path / "cache" / "checks").glob("*.json"))

    def unexpected(*arguments: object) -> float:
        raise AssertionError("the check ran again")

    monkeypatch.setattr(base_model, "_compare_with_plain", unexpected)
    monkeypatch.setattr(fast_code, "gradient_difference", unexpected)
    again = BaseModels(Catalogue(folders), threads=1).get("a")
    assert again.max_context == first.max_context
    with pytest.raises(Refused, match="the check ran again"):
        BaseModels(Catalogue(folders), threads=1).get("b")
