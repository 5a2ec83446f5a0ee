"""Many clients in little memory: idle ones go to disk and come back unseen."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.sampling import answers
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.threads import READ_USE_EVERY, ThreadChoice
from tinkersmith.engine.messages import (
    AdamParams,
    Answering,
    BatchRequest,
    Datum,
    LoraConfig,
    SampleRequest,
    SampleResult,
)
from tinkersmith.engine.runtime import base_models
from tinkersmith.engine.runtime.clients import ADAPTER_MEMORY, Models
from tinkersmith.engine.runtime.spill import SpillFolder
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store


def make(folder: Path, model: Path, adapter_memory: int) -> Models:
    return Models(
        Store(folder), Catalogue({"tiny": model}), threads=1, adapter_memory=adapter_memory
    )


def batch(name: str, tokens: list[int]) -> BatchRequest:
    values = np.asarray(tokens)
    inputs = {"target_tokens": values[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
    return BatchRequest(name, 1, [Datum(values[:-1], inputs)], "cross_entropy", {}, False)


def run(models: Models, steps: list[tuple[str, str, int]]) -> list[object]:
    """What each step gives: the loss, the gradient's norm, or sampled tokens."""
    results: list[object] = []
    for action, name, number in steps:
        if action == "create":
            models.create(name, "tiny", LoraConfig(rank=4, seed=number))
        elif action == "batch":
            tokens = [number, 1 + number, 7, 8, 9, 3 + number]
            results.append(models.batch(batch(name, tokens), 0).metrics["loss:sum"])
        elif action == "step":
            results.append(models.optim_step(name, AdamParams(learning_rate=1e-2))["grad_norm"])
        elif action == "snapshot":
            models.add_snapshot(f"{name}:sampler:{number}", name)
        else:
            request = SampleRequest([5, 6], max_tokens=5, temperature=0, stop=[])
            [answer] = answers(models, f"{name}:sampler:{number}", [request])
            assert isinstance(answer, SampleResult)
            results.append(answer.sequences[0].tokens)
    return results


def test_clients_that_take_turns_on_disk_compute_what_they_would_in_memory(
    tmp_path: Path, tiny_model: Path
) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    steps = [("create", name, number) for number, name in enumerate(names)]
    taken = dict.fromkeys(names, 0)
    for number in range(40):
        name = rng.choice(names)
        # Other clients come between a batch and its step: gradients must come back too.
        steps.append(("batch", name, number))
        steps.append(("batch", other := rng.choice(names), number + 1))
        steps.append(("step", name, 0))
        if other != name:
            steps.append(("step", other, 0))
        if rng.random() < 0.3:
            steps.append(("snapshot", name, taken[name]))
            taken[name] += 1
        if any(taken.values()):
            chosen = rng.choice([one for one in names if taken[one]])
            steps.append(("sample", chosen, rng.randrange(taken[chosen])))
    ample = make(tmp_path / "ample", tiny_model, ADAPTER_MEMORY)
    scarce = make(tmp_path / "scarce", tiny_model, 1)
    expected = run(ample, steps)
    assert run(scarce, steps) == expected, f"seed {seed}"
    on_disk = list(scarce.spilled.folder.glob("*.safetensors"))
    assert len(on_disk) == len(names) + sum(taken.values()) - 1
    for name in names:
        scarce.free(name)
        for number in range(taken[name]):
            scarce.free_sampler(f"{name}:sampler:{number}")
    assert not list(scarce.spilled.folder.glob("*.safetensors"))
    with pytest.raises(Refused, match="has ended"):
        scarce.get("a")


def test_the_spill_folders_of_dead_engines_are_swept_and_those_of_live_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkersmith.engine.runtime.spill._NEWBORN", 0.0)
    dead, alive = SpillFolder(tmp_path), SpillFolder(tmp_path)
    dead._lock.close()  # as the system does when a process ends
    new = SpillFolder(tmp_path)
    assert not dead.folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {alive.folder.name, new.folder.name}


# ---- threads


@pytest.fixture
def unchanged_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_a_machine(folder: Path, model: Path, load: float) -> Models:
    """The clients of an engine on 16 cores, which the load of others keeps busy."""
    models = Models(Store(folder), Catalogue({"tiny": model}))
    models.bases.threads = ThreadChoice(0, 16, 16, lambda: load, all_cpu_time=lambda: None)
    return models


@pytest.mark.usefixtures("unchanged_threads")
def test_a_resumed_client_keeps_its_threads_on_a_busy_machine(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    store = tmp_path / "store"
    models = on_a_machine(store, tiny_model, load=0)
    models.create("a", "tiny", LoraConfig(rank=8, seed=1))
    run(models, [("batch", "a", 1), ("step", "a", 0)])
    assert torch.get_num_threads() == 8  # a small model: half of the cores
    path = TinkerPath("a", "weights", "one")
    models.save("a", path, optimizer=True)()
    expected = run(models, [("batch", "a", 2), ("step", "a", 0), ("batch", "a", 3)])

    busy = on_a_machine(store, tiny_model, load=14)
    busy.create_from("b", "tiny", LoraConfig(rank=8, seed=1), path, with_optimizer=True)
    assert run(busy, [("batch", "b", 2), ("step", "b", 0), ("batch", "b", 3)]) == expected
    assert torch.get_num_threads() == 8
    busy.create("c", "tiny", LoraConfig(rank=8, seed=1))
    run(busy, [("batch", "c", 1)])
    assert torch.get_num_threads() == 2
    busy.create_from("d", "tiny", LoraConfig(rank=8, seed=1), path, with_optimizer=False)
    run(busy, [("batch", "d", 1)])
    assert torch.get_num_threads() == 2  # a new run from old weights
    run(busy, [("batch", "b", 4)])
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("unchanged_threads")
def test_answers_that_are_being_sampled_take_the_threads_that_become_free(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    models = on_a_machine(tmp_path, tiny_model, load=16)
    now = 0.0
    models.bases.threads = ThreadChoice(
        0, 16, 16, lambda: 16.0, lambda: now, lambda: 0.0, all_cpu_time=lambda: 0.0
    )
    models.add_sampler("base", "tiny", None)
    weights_id = models.weights_of("base")
    models.join(weights_id, SampleRequest([5, 6], max_tokens=8, stop=[]), "base")
    batch_id = models.batch_of(weights_id)
    models.sample_step(batch_id)
    assert torch.get_num_threads() == 1
    now += READ_USE_EVERY
    models.sample_step(batch_id)
    assert torch.get_num_threads() == 8


# ---- weights that several sampling clients have


def test_sampling_clients_of_the_same_weights_share_them_until_the_last_has_ended(
    tmp_path: Path, tiny_model: Path
) -> None:
    models = make(tmp_path, tiny_model, ADAPTER_MEMORY)
    run(models, [("create", "a", 1), ("batch", "a", 1), ("step", "a", 0)])
    path = TinkerPath("a", "sampler_weights", "one")
    models.store.add_run(StoredRun("a", "s", "tiny", LoraConfig(rank=4, seed=1), None, 0.0))
    models.save("a", path, optimizer=False)()
    models.add_snapshot("before:1", "a")
    models.add_snapshot("before:2", "a")
    run(models, [("batch", "a", 2), ("step", "a", 0)])
    models.add_snapshot("after", "a")
    for name, source in (("saved:1", path), ("saved:2", path), ("base:1", None), ("base:2", None)):
        models.add_sampler(name, "tiny", source)
    weights = {name: models.weights_of(name) for name in models.sampling}
    for one, other in (("before:1", "before:2"), ("saved:1", "saved:2"), ("base:1", "base:2")):
        assert weights[one] == weights[other]
    assert len(set(weights.values())) == 4
    request = SampleRequest([5, 6], max_tokens=8, temperature=0, stop=[])
    [expected] = answers(models, "saved:1", [request])
    models.save("a", path, optimizer=False, overwrite=True)()  # other weights under this path
    models.add_sampler("overwritten", "tiny", path)
    assert models.weights_of("overwritten") not in weights.values()
    joined = models.join(weights["saved:2"], request, "saved:2")
    for name in weights:
        models.free_sampler(name)  # what is being answered is answered
    batch_id = models.batch_of(weights["saved:2"])
    while models.sample_step(batch_id) != [joined]:
        pass
    assert isinstance(expected, SampleResult)
    assert joined.result.sequences[0].tokens == expected.sequences[0].tokens
    assert set(models.weights) == {models.weights_of("overwritten")}
    with pytest.raises(Refused, match="has ended"):
        models.weights_of("saved:1")


def test_weights_that_end_or_wait_on_disk_while_others_share_their_batch_are_answered(
    tmp_path: Path, tiny_model: Path
) -> None:
    models = make(tmp_path, tiny_model, 1)  # room for one at a time
    samplers = []
    for number in range(4):
        run(models, [("create", f"{number}", 1), ("batch", f"{number}", number)])
        run(models, [("step", f"{number}", 0)])
        models.add_snapshot(f"s{number}", f"{number}")
        samplers.append(f"s{number}")
    request = SampleRequest([5, 6], max_tokens=30, temperature=0, stop=[])
    expected = [answers(models, sampler, [request])[0] for sampler in samplers]
    ids = [models.weights_of(sampler) for sampler in samplers]
    assert len(set(ids)) == 4 and len({models.batch_of(one) for one in ids}) == 1
    batch_id = models.batch_of(ids[0])
    joined = [models.join(ids[0], request, samplers[0])]
    for number in range(1, 4):  # one joins while those before it decode
        for _ in range(3):
            assert models.sample_step(batch_id) == []
        joined.append(models.join(ids[number], request, samplers[number]))
        run(models, [("batch", "0", number), ("step", "0", 0)])  # what is idle goes to disk
        models.free_sampler(samplers[number - 1])
    finished: list[Answering] = []
    while len(finished) < 4:
        finished += models.sample_step(batch_id)
    for one, alone in zip(joined, expected, strict=True):
        assert isinstance(alone, SampleResult)
        assert one.result.sequences[0].tokens == alone.sequences[0].tokens
    assert set(models.weights) == {ids[3]} and not models.can_sample(batch_id)


def test_a_base_model_is_unloaded_when_what_is_sampled_from_it_is_answered(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue({"tiny": tiny_model, "other": tiny_model})
    models = Models(Store(tmp_path), catalogue, threads=1)
    models.add_sampler("s", "tiny", None)
    request = SampleRequest([5, 6], max_tokens=20, temperature=0, stop=[])
    [expected] = answers(models, "s", [request])
    weights_id = models.weights_of("s")
    batch_id = models.batch_of(weights_id)
    joined = models.join(weights_id, request, "s")
    assert models.sample_step(batch_id) == []
    room = iter([0])  # none until a model is unloaded
    monkeypatch.setattr(base_models, "free_memory", lambda device: next(room, 2**40))
    models.add_sampler("t", "other", None)
    assert list(models.bases.dtypes()) == ["other"]
    assert models.can_sample(batch_id) and models.sample_step(batch_id) == [joined]
    assert isinstance(expected, SampleResult)
    assert joined.result.sequences[0].tokens == expected.sequences[0].tokens
    assert not models.can_sample(batch_id)


def test_weights_that_are_sampled_from_are_not_spilled(tmp_path: Path, tiny_model: Path) -> None:
    models = make(tmp_path, tiny_model, 1)  # room for one at a time
    run(models, [("create", "a", 1), ("batch", "a", 1), ("step", "a", 0)])
    models.add_snapshot("s", "a")
    request = SampleRequest([5, 6], max_tokens=20, temperature=0, stop=[])
    [expected] = answers(models, "s", [request])
    weights_id = models.weights_of("s")
    batch_id = models.batch_of(weights_id)
    joined = models.join(weights_id, request, "s")
    for number in range(1000):
        if models.sample_step(batch_id):
            break
        run(models, [("batch", "a", number), ("step", "a", 0)])
        # It joins between the steps of others, and its prompt is read with the same adapter.
        if number == 3:
            late = models.join(weights_id, request, "s")
    while models.can_sample(batch_id):
        models.sample_step(batch_id)
    assert isinstance(expected, SampleResult)
    for answering in (joined, late):
        assert answering.result.sequences[0].tokens == expected.sequences[0].tokens
