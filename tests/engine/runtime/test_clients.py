"""Many clients in little memory: idle ones go to disk and come back unseen."""

import random
from pathlib import Path

import numpy as np
import pytest

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams, BatchRequest, Datum, LoraConfig, SampleRequest
from tinkersmith.engine.runtime.clients import ADAPTER_MEMORY, Models
from tinkersmith.engine.runtime.spill import SpillFolder
from tinkersmith.engine.storage.catalogue import Catalogue
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
            [answer] = models.sample(f"{name}:sampler:{number}", [request])
            assert not isinstance(answer, Refused)
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
