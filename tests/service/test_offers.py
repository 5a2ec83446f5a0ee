"""What a server offers is asked before anything is trained; our engine plays the cloud."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.tiny_models import make_tiny_model
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.service import connection
from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("offers")
    with running_engine(folder / "engine", make_tiny_model(folder / "model")) as engine:
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


def test_a_model_for_sampling_alone_is_not_trained(tmp_path: Path) -> None:
    settings = settings_from({"OUTPUT_DIR": str(tmp_path / "runs"), "BASE_MODEL": MODEL})
    with pytest.raises(UserError) as caught, open_service(settings) as service:
        service.sampled_only = frozenset({MODEL})
        service.create_training_client(settings)
    assert "sampling alone" in str(caught.value)
