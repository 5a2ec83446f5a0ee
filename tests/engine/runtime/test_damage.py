"""Damaged checkpoints are seen and told, and one that diverged is not saved."""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.reliability.damage import (
    DATABASE_CASES,
    FILE_CASES,
    FIRST,
    LAST,
    MODEL,
    OTHER,
    RUN,
    WEIGHTS,
    DamageCase,
    damaged_copy,
    make_folder_of_checkpoints,
    open_models,
    try_database_case,
    try_file_case,
)
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.runtime.clients import Models, fingerprint_of
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.store import Store

CONFIG = LoraConfig(rank=2, seed=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "engine"
    make_folder_of_checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def models(original: Path) -> Models:
    return open_models(original)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(original, tmp_path / "engine")
    yield tmp_path / "engine"


def test_the_table_has_every_kind_of_damage() -> None:
    assert len(FILE_CASES) + len(DATABASE_CASES) >= 36


@pytest.mark.parametrize("case", FILE_CASES, ids=lambda case: case.name)
def test_damage_of_a_file_is_told_with_file_and_checkpoint(
    original: Path, models: Models, case: DamageCase
) -> None:
    with damaged_copy(original, case, random.Random(case.name)) as copy:
        outcome = try_file_case(models, copy, case)
    assert outcome.told_rightly, outcome.sentence


@pytest.mark.parametrize("case", DATABASE_CASES, ids=lambda case: case.name)
def test_damage_of_the_database_costs_no_checkpoint(
    original: Path, models: Models, case: DamageCase
) -> None:
    with damaged_copy(original, case, random.Random(case.name)) as copy:
        outcome = try_database_case(models, copy, case)
    assert outcome.told_rightly, outcome.sentence


def test_a_sampling_client_is_not_made_from_damaged_weights(models: Models, folder: Path) -> None:
    models.store = Store(folder)
    file = models.store.weights_folder(models.store.checkpoint(LAST)) / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match=rf"{WEIGHTS} of {LAST} is damaged: its sha256"):
        models.add_sampler("sampler", MODEL, LAST)
    models.add_sampler("sampler", MODEL, FIRST)
    models.free_sampler("sampler")


def test_a_diverged_training_is_not_saved_over_a_good_checkpoint(
    models: Models, folder: Path
) -> None:
    models.store = Store(folder)
    models.create_from(RUN, MODEL, CONFIG, LAST, True)
    before = models.store.checkpoint(LAST)
    next(iter(models.training[RUN].adapter.weights.values())).data.view(-1)[3] = float("nan")
    with pytest.raises(Refused, match=r"was not saved: .*lora_A.* numbers that are not finite"):
        models.save(RUN, LAST, optimizer=True, overwrite=True)
    assert models.store.checkpoint(LAST) == before
    models.free(RUN)
    models.create_from(RUN, MODEL, CONFIG, LAST, True)
    models.free(RUN)


def test_weights_of_an_older_version_that_are_no_safetensors_are_told_with_their_checkpoint(
    models: Models, folder: Path
) -> None:
    models.store = Store(folder)
    weights = models.store.weights_folder(models.store.checkpoint(LAST))
    (weights / "manifest.json").unlink()
    (weights / WEIGHTS).write_bytes(b"x" * 1000)
    with pytest.raises(Refused, match=rf"{WEIGHTS} of {LAST} is damaged: it is not a whole"):
        models.create_from("new", MODEL, CONFIG, LAST, True)


def test_checkpoints_of_an_older_version_are_resumed_after_the_database_was_lost(
    models: Models, folder: Path
) -> None:
    models.store = Store(folder)
    part = LoraConfig(rank=3, seed=1, train_mlp=False, train_unembed=False)
    models.create(RUN, MODEL, part)
    attention = TinkerPath(RUN.replace(":0", ":1"), "weights", "attention")
    models.save(RUN, attention, optimizer=True)()
    models.free(RUN)
    models.store.close()
    for weights in folder.rglob(WEIGHTS):
        save_file(load_file(weights), weights)  # without the note that a manifest belongs to it
        weights.with_name("manifest.json").unlink()
    (folder / "engine.sqlite").unlink()
    models.store = store = Store(folder)
    assert {entry.path for entry in store.checkpoints()} == {FIRST, LAST, OTHER, attention}
    for path in (FIRST, LAST, OTHER, attention):
        models.create_from(
            "again", store.run(path.run_id).base_model, lora(store, path), path, True
        )
        models.free("again")
    flags = lora(store, attention)
    assert (flags.rank, flags.train_attn, flags.train_mlp, flags.train_unembed) == (
        *(3, True, False, False),
    )


def lora(store: Store, path: TinkerPath) -> LoraConfig:
    return store.run(path.run_id).lora


def test_a_checkpoint_is_not_used_with_another_base_model_unless_the_user_insists(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    shutil.copytree(BUNDLED_MODELS[MODEL], base)
    [weights] = base.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    for allowed in (False, True):
        changed = Models(
            Store(folder),
            Catalogue({MODEL: base}),
            dtype="float32",
            threads=1,
            allow_changed_base=allowed,
        )
        if allowed:
            changed.create_from("new", MODEL, CONFIG, LAST, True)
            assert "is used with other weights" in caplog.text
            continue
        with pytest.raises(Refused, match=re.escape(f"not those that {LAST} was trained on")):
            changed.create_from("new", MODEL, CONFIG, LAST, True)
        with pytest.raises(Refused, match="--allow-changed-base"):
            changed.add_sampler("sampler", MODEL, LAST)


def test_a_fingerprint_is_computed_anew_when_the_base_model_changes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BUNDLED_MODELS[MODEL], base)
    before = fingerprint_of(base)
    [weights] = base.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert fingerprint_of(base) != before


def test_a_manifest_says_what_a_checkpoint_was_saved_with(models: Models, folder: Path) -> None:
    models.store = Store(folder)
    manifest = models.store.checked(TinkerPath(RUN, "weights", "last")).manifest
    assert manifest is not None
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {WEIGHTS, "optimizer.safetensors", "adapter_config.json"}
    assert (manifest["run_id"], manifest["segment"], manifest["name"]) == (RUN, "weights", "last")
    assert (manifest["base_model"], manifest["rank"], manifest["dtype"]) == (MODEL, 2, "float32")
    assert manifest["base_fingerprint"] == fingerprint_of(BUNDLED_MODELS[MODEL])
    assert {"tinkersmith", "torch"} <= set(manifest["versions"]) and manifest["device"] == "cpu"
