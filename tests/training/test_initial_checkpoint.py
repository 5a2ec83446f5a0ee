"""A run that starts from trained weights: of a run, of a state's path, of an exported adapter."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.environment import without_cloud
from tests.support.sample_files import write, yes_or_no
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.runs.folder import RunFolder, open_run
from tinkersmith.runs.pruning import note_deleted_state
from tinkersmith.service.connection import open_service
from tinkersmith.service.initial import initial_weights
from tinkersmith.service.stored import run_ids
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.dry_run import dry_run
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.train import train

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]

SAMPLES = 8


@dataclass(frozen=True)
class First:
    """A run of one epoch whose data is its validation data, too."""

    folder: Path
    run: RunFolder
    adapter: Path
    loss: float  # of the last weights, a mean per completion token


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[First]:
    with pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = tmp_path_factory.mktemp("initial")
        write(folder / "train.json", yes_or_no(SAMPLES, seed=1))
        make_tiny_model(folder / "model")
        validation = [str(folder / "train.json")]
        with train(settings(folder, BATCH_SIZE=2, VALIDATION_FILES=validation)) as trained:
            run, path = trained.run, trained.sampler_path
        losses = [line["validation_loss"] for line in run.metrics() if "validation_loss" in line]
        adapter = export_model(settings(folder), path, folder / "adapter", say=lambda _: None)
        yield First(folder, run, adapter, losses[-1])


def settings(folder: Path, **more: object) -> Any:
    """Settings of a run whose first step has all samples."""
    return settings_from(
        {
            "DATA_FILES": [str(folder / "train.json")],
            "BASE_MODEL": str(folder / "model"),
            "OUTPUT_DIR": str(folder / "runs"),
            "LORA_RANK": 4,
            "LEARNING_RATE": 0.01,
            "BATCH_SIZE": SAMPLES,
            "NUM_EPOCHS": 2,
            "PROMPT_TEMPLATE": "instruction",
            "SAMPLING_MAX_TOKENS": 2,
            "EXPORT_AFTER_TRAINING": "no",
            "BACKEND": "local",
            **more,
        }
    )


def losses_of(wanted: Any) -> list[float]:
    with train(wanted) as trained:
        return [line["loss"] for line in trained.run.metrics() if "loss" in line]


def test_the_first_loss_is_that_of_the_weights_that_a_run_ended_with(first: First) -> None:
    new = losses_of(settings(first.folder))
    assert abs(new[0] - first.loss) > 0.1
    by_name = losses_of(settings(first.folder, INITIAL_CHECKPOINT=first.run.name))
    assert by_name[0] == pytest.approx(first.loss, abs=1e-5)
    state = first.run.checkpoints()[-1].state_path
    with_optimizer = losses_of(
        settings(first.folder, INITIAL_CHECKPOINT=state, INITIAL_OPTIMIZER=True)
    )
    assert with_optimizer[0] == by_name[0]
    assert with_optimizer[1] != by_name[1]  # the averages of the optimizer decide its step


def test_an_exported_adapter_is_gone_on_from_also_at_a_higher_rank(
    first: First, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = settings(first.folder, INITIAL_CHECKPOINT=str(first.adapter), LORA_RANK=6)
    losses = losses_of(wanted)
    assert losses[0] == pytest.approx(first.loss, abs=1e-4)
    assert losses[1] != losses[0]
    assert f"Starting from the exported adapter in {first.adapter}." in capsys.readouterr().out


def test_the_optimizer_is_that_of_the_settings(first: First) -> None:
    adamw = losses_of(settings(first.folder))
    decayed = losses_of(settings(first.folder, WEIGHT_DECAY=1.0, LEARNING_RATE=1.0, SEED=1))
    plain = losses_of(settings(first.folder, LEARNING_RATE=1.0, SEED=1))
    dimuon = losses_of(settings(first.folder, OPTIMIZER="dimuon"))
    assert adamw[0] == dimuon[0]
    assert adamw[1] != dimuon[1]
    assert plain[0] == decayed[0]
    assert plain[1] != decayed[1]


def test_the_run_keeps_the_path_of_the_state_that_it_began_with(first: First) -> None:
    with train(settings(first.folder, INITIAL_CHECKPOINT=first.run.name)) as trained:
        kept = trained.run.settings().initial_checkpoint
    assert kept == first.run.checkpoints()[-1].state_path


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"INITIAL_CHECKPOINT": "nothing"}, "which is no run, no tinker:// path and no folder"),
        ({"INITIAL_CHECKPOINT": "tinker://a/weights/b"}, "tinker://a/weights/b does not exist"),
        ({"INITIAL_CHECKPOINT": "tinker://a/b"}, "no path of a state. It looks like tinker://RUN/"),
        ({"LORA_RANK": 8}, "has rank 4, and LORA_RANK is 8"),
        (
            {"OPTIMIZER": "dimuon", "INITIAL_OPTIMIZER": True},
            'trained with OPTIMIZER = "adamw", not',
        ),
        ({"TRAIN_MLP": False}, "was trained with TRAIN_MLP = True"),
        ({"TRAIN_UNEMBED": "yes"}, 'was trained with TRAIN_UNEMBED = "no"'),
        ({"BASE_MODEL": "tinkersmith/tiny-math"}, "and BASE_MODEL is tinkersmith/tiny-math"),
    ],
)
def test_what_does_not_fit_the_trained_weights_is_one_sentence(
    first: First, changed: dict[str, object], sentence: str
) -> None:
    named: dict[str, object] = {"INITIAL_CHECKPOINT": first.run.name, **changed}
    with pytest.raises(UserError) as refusal:
        losses_of(settings(first.folder, **named))
    assert sentence in str(refusal.value)


def test_a_run_goes_on_although_the_state_that_it_began_with_was_deleted(first: First) -> None:
    with train(settings(first.folder)) as trained:
        earlier = trained.run
    wanted = settings(first.folder, INITIAL_CHECKPOINT=earlier.name, SAVE_EVERY=1, KEEP_LAST=0)
    with train(wanted) as trained:
        later = trained.run
    losses = [line["loss"] for line in later.metrics() if "loss" in line]
    note_deleted_state(earlier, later.settings().initial_checkpoint)
    with train(wanted, resume=later.name, from_checkpoint="step-000001") as resumed:
        again = [line["loss"] for line in resumed.run.metrics() if "loss" in line]
    assert again == losses


def test_an_exported_adapter_has_no_optimizer_and_a_rank_that_must_have_room(first: First) -> None:
    with pytest.raises(UserError, match="holds no optimizer"):
        losses_of(
            settings(first.folder, INITIAL_CHECKPOINT=str(first.adapter), INITIAL_OPTIMIZER=True)
        )
    with pytest.raises(UserError, match=r"of rank 4, and LORA_RANK is 2\. Set LORA_RANK = 4"):
        losses_of(settings(first.folder, INITIAL_CHECKPOINT=str(first.adapter), LORA_RANK=2))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"TRAIN_MLP": False}, r"weights for MLPs, .*\. Set TRAIN_MLP = True\."),
        ({"TRAIN_ATTN": False}, r"weights for attention, .*\. Set TRAIN_ATTN = True\."),
    ],
)
def test_an_exported_adapter_has_no_weights_that_the_settings_do_not_train(
    first: First, more: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        initial_weights(settings(first.folder, INITIAL_CHECKPOINT=str(first.adapter), **more))


def test_an_adapter_of_the_output_layer_asks_for_a_lora_of_it(first: First, tmp_path: Path) -> None:
    folder = shutil.copytree(first.adapter, tmp_path / "of the output layer")
    weights = folder / "adapter_model.safetensors"
    name = "base_model.model.lm_head.lora_A.weight"
    save_file({**load_file(weights), name: torch.zeros(4, 32)}, weights)
    with pytest.raises(UserError, match=r'for the output layer, .*\. Set TRAIN_UNEMBED = "yes"\.'):
        initial_weights(settings(first.folder, INITIAL_CHECKPOINT=str(folder)))
    wanted = {"INITIAL_CHECKPOINT": str(folder), "TRAIN_UNEMBED": "yes"}
    assert initial_weights(settings(first.folder, **wanted)) is not None


def test_a_damaged_adapter_is_told_before_anything_starts(first: First, tmp_path: Path) -> None:
    folder = shutil.copytree(first.adapter, tmp_path / "damaged")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    wanted = settings(first.folder, INITIAL_CHECKPOINT=str(folder))
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged: .*Export the "):
        initial_weights(wanted)
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors cannot be read: No such file"):
        initial_weights(wanted)


def test_a_full_model_is_no_checkpoint_but_a_base_model(first: First) -> None:
    with pytest.raises(UserError, match=r"a full model and no adapter.* name it as BASE_MODEL"):
        train(settings(first.folder, INITIAL_CHECKPOINT=str(first.folder / "model")))


def test_the_higher_ranks_of_joined_projections_do_not_ask_for_a_higher_rank(
    first: First, tmp_path: Path
) -> None:
    """Such a projection has the ranks of its parts one after the other."""
    folder = shutil.copytree(first.adapter, tmp_path / "joined")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["rank_pattern"] = {"linear_attn.in_proj_qkv": 3 * config["r"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    losses = losses_of(settings(first.folder, INITIAL_CHECKPOINT=str(folder), NUM_EPOCHS=1))
    assert losses[0] == pytest.approx(first.loss, abs=1e-4)


def test_a_dry_run_takes_the_same_weights_and_refuses_the_same(
    first: First, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (str(first.adapter), first.run.name):
        dry_run(settings(first.folder, INITIAL_CHECKPOINT=name), Interruption())
        assert "Starting from" in capsys.readouterr().out
    with pytest.raises(UserError, match="has rank 4, and LORA_RANK is 8"):
        wanted = settings(first.folder, INITIAL_CHECKPOINT=first.run.name, LORA_RANK=8)
        dry_run(wanted, Interruption())
    of_another = {"INITIAL_CHECKPOINT": str(first.adapter), "BASE_MODEL": "tinkersmith/tiny-math"}
    with pytest.raises(UserError, match="this base model needs"):
        dry_run(settings(first.folder, **of_another), Interruption())


def test_a_lora_without_layers_is_refused_before_anything_starts(first: First) -> None:
    nothing = {"TRAIN_ATTN": False, "TRAIN_MLP": False, "BASE_MODEL": "tinkersmith/tiny-math"}
    for start in (train, lambda wanted: dry_run(wanted, Interruption())):
        with pytest.raises(UserError) as told:
            start(settings(first.folder, **nothing))
        assert "so nothing would train. The output layer of tinkersmith/tiny-math" in str(
            told.value
        )
        assert 'TRAIN_UNEMBED = "yes" trains it. Or set TRAIN_ATTN' in str(told.value)


def test_the_name_is_looked_up_once_at_a_start(
    first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def opened(name: str, output_dir: str) -> RunFolder:
        looked_up.append(name)
        return open_run(name, output_dir)

    monkeypatch.setattr("tinkersmith.service.initial.open_run", opened)
    losses_of(settings(first.folder, INITIAL_CHECKPOINT=first.run.name))
    assert looked_up == [first.run.name]


def test_the_server_knows_sessions_clients_and_checkpoints_by_the_runs_name(first: First) -> None:
    run, digest = first.run, first.run.facts()["data_digest"]
    with open_service(settings(first.folder)) as service:
        path = run.checkpoints()[-1].state_path
        client = service.rest.get_training_run_by_tinker_path(path).result()
        stored = service.rest.list_checkpoints(run_ids(run)[0]).result().checkpoints
        sessions = [
            service.rest.get_session(name).result()
            for name in service.rest.list_sessions().result().sessions
        ]
    assert client.user_metadata is not None
    assert client.user_metadata["tinkersmith.run"] == run.name
    settings_digest = client.user_metadata["tinkersmith.settings"]
    marks = {"tinkersmith.run": run.name, "tinkersmith.settings": settings_digest}
    assert stored and all(
        point.user_metadata == {**marks, "tinkersmith.data": digest} for point in stored
    )
    assert [
        each.user_metadata for each in sessions if client.training_run_id in each.training_run_ids
    ] == [marks]


def test_a_server_elsewhere_takes_no_exported_adapter(
    first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-none")
    with pytest.raises(UserError, match="which only training on this machine can start from"):
        losses_of(settings(first.folder, INITIAL_CHECKPOINT=str(first.adapter), BACKEND="tinker"))
