"""What a server offers is asked before anything is trained; our engine plays the cloud."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.hubs import silent_hub
from tests.support.small_run import records
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.export.export import export_model
from tinkersmith.models import hub
from tinkersmith.service import connection
from tinkersmith.service.connection import Service, open_service
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.train import train

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("offered"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("offers"), model_folder) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _cloud(engine: RunningEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", engine.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.chdir(tmp_path)


def test_the_command_lists_what_the_server_offers(
    capsys: pytest.CaptureFixture[str], engine: RunningEngine
) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"The server at {engine.url} offers:")
    assert "tinkersmith/tiny-math" in shown and "Qwen/Qwen3-8B" not in shown
    assert main(["models", "--all", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[MODEL]["offered"] and rows[MODEL]["trainable"] and rows[MODEL]["context"] == 512
    assert not rows["Qwen/Qwen3-8B"]["offered"]


def test_without_a_server_the_bundled_model_is_listed_with_its_context(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINKER_BASE_URL")
    monkeypatch.delenv("TINKER_API_KEY")
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["context"]) for row in rows] == [("tinkersmith/tiny-math", 1024)]


def test_a_setting_without_effect_on_the_list_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "--set", "LORA_RANK=4"]) == 1
    assert "LORA_RANK has no effect" in capsys.readouterr().err


def test_a_retired_name_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "Qwen/Qwen3-30B-A3B-Instruct-2507"
    settings = settings_from({"OUTPUT_DIR": str(tmp_path / "runs"), "BASE_MODEL": name})
    # A server that is no engine of ours, such as the cloud, has a complete list.
    monkeypatch.setattr(connection, "engine_answer", lambda url, key: None)
    with pytest.raises(UserError) as caught, open_service(settings) as service:
        service.create_training_client(settings)
    text = str(caught.value)
    assert f"does not offer {name} for training" in text
    assert "retired Qwen/Qwen3-30B-A3B-Instruct-2507 on 2026-06-12" in text
    assert "tinkersmith/tiny-math" in text  # what it does offer


def test_the_whole_job_ends_without_a_hub_where_a_tokenizer_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: Path
) -> None:
    # The cloud names its tokenizers as the hub does, and not by a folder of this machine.
    monkeypatch.setattr(Service, "_named_tokenizer", lambda self, client: "some-org/some-model")
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    (tmp_path / "train.json").write_text(json.dumps(records(10, 4)))
    names = {
        "DATA_FILES": [str(tmp_path / "train.json")],
        "BASE_MODEL": MODEL,
        "OUTPUT_DIR": str(tmp_path / "runs"),
        "BATCH_SIZE": 4,
        "NUM_EPOCHS": 1,
        "SAMPLING_MAX_TOKENS": 4,
        "EXPORT_AFTER_TRAINING": "no",
    }
    with silent_hub() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(UserError, match="TOKENIZER ="):
            train(settings_from(names))
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("my-model*"))
        settings = settings_from({**names, "TOKENIZER": str(model_folder)})
        trained = train(settings)
        trained.close()
        again = settings_from(names)  # evaluation and export find what the run was given
        results = evaluate(again, test_file=str(tmp_path / "train.json"), output_file="r.json")
        folder = export_model(again, "", str(tmp_path / "adapter"), False)
    assert results is not None and (folder / "adapter_config.json").is_file()


def test_a_model_for_sampling_alone_is_not_trained(tmp_path: Path) -> None:
    settings = settings_from({"OUTPUT_DIR": str(tmp_path / "runs"), "BASE_MODEL": MODEL})
    with pytest.raises(UserError) as caught, open_service(settings) as service:
        service.sampled_only = frozenset({MODEL})
        service.create_training_client(settings)
    assert "sampling alone" in str(caught.value)
