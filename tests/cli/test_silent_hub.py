"""Every command beside a hub that accepts connections and never answers."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.environment import without_cloud
from tests.support.hubs import silent_hub
from tests.support.run_folders import checkpoint
from tests.support.small_run import records
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.cli.main import main
from tinkersmith.models import hub
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer

MODEL = "some-org/some-model"
DATA = "hf:some-org/some-data"
STATE = "tinker://run/sampler_weights/step-000001"
ON_MODEL = ["--set", f"BASE_MODEL={MODEL}"]
HELD_OUT = ["--set", "VALIDATION_RATIO=0.2"]
# The commands that need files which only the hub has: each ends with a sentence about the hub.
NEEDS_HUB = {
    "train": ["train", *ON_MODEL],
    "train --dry-run": ["train", "--dry-run", *ON_MODEL],
    "train --rehearse": ["train", "--rehearse", *ON_MODEL],
    "train --resume": ["train", "--resume", "a-run"],
    "train, data": ["train", "--set", f"DATA_FILES={DATA}"],
    "sweep": ["sweep", "--grid", "LORA_RANK=8,16", *ON_MODEL, *HELD_OUT],
    "improve": ["improve", "a-run", "--set", "EVAL_FILES=test.json"],
    "preview": ["preview", *ON_MODEL],
    "check, data": ["check", DATA],
    "stats, data": ["stats", DATA],
    "convert, data": ["convert", DATA, "--out", "converted.jsonl"],
    "split, data": ["split", "--inputs", DATA],
    "evaluate, path": [
        *("evaluate", "--model-path", STATE, "--base-model", MODEL, "--test-data", "test.json")
    ],
    "evaluate, run": ["evaluate", "--test-data", "test.json"],
    "export, path": ["export", "--model-path", STATE, "--base-model", MODEL],
    "export, run": ["export"],
    "export, merged": ["export", "--merged"],
    "serve, path": ["serve", STATE, "--base-model", MODEL, "--port", "0"],
    "serve, run": ["serve", "a-run", "--port", "0"],
    "serve, adapter": ["serve", "an-adapter", "--port", "0"],
    "chat, run": ["chat", "a-run"],
    "chat, adapter": ["chat", "an-adapter"],
}
# The commands that go on without: what they print.
GOES_ON = {
    "check": (["check", *ON_MODEL], f"{MODEL} is not on this machine, so characters are counted"),
    "stats": (["stats", "train.json", "--base-model", MODEL], "so characters are counted"),
    "settings": (["settings", *ON_MODEL], MODEL),
    "models": (["models", "--all", "--set", "BACKEND=local"], "tinkersmith/tiny-math"),
    "report": (["report", "a-run"], "report.html"),
    "preview, tokenizer": (["preview", *ON_MODEL, "--set", "TOKENIZER=tokenizer"], "trained"),
    "preview, bundled": (["preview"], "trained"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run on a model of the hub, and an adapter of one."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("train.json", "test.json"):
        (folder / name).write_text(json.dumps(records(10 if name[1] == "r" else 40, 10)))
    (folder / "config.py").write_text('DATA_FILES = ["train.json"]\nBACKEND = "local"\n')
    make_tiny_tokenizer(folder / "tokenizer")
    run = RunFolder(folder / "runs" / "a-run")
    run.path.mkdir(parents=True)
    settings = settings_from(
        {"BASE_MODEL": MODEL, "DATA_FILES": [str(folder / "train.json")], "BACKEND": "local"}
    )
    template = choose_template("instruction", load_tokenizer(folder / "tokenizer"), MODEL)
    facts = {"base_model": MODEL, "backend": "embedded", "total_steps": 2}
    run.write_facts(settings, template, **facts)
    run.add_checkpoint(checkpoint(1))
    adapter = folder / "an-adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": MODEL, "r": 8, "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def _beside_a_silent_hub(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    without_cloud(monkeypatch)
    monkeypatch.chdir(shutil.copytree(project, tmp_path / "project"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with silent_hub() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield


@pytest.mark.parametrize("name", NEEDS_HUB)
def test_a_command_that_needs_the_hub_says_so_in_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(NEEDS_HUB[name]) == 1
    assert not list(Path().rglob(".engine/*")), "an engine was started"
    errors = capsys.readouterr().err
    assert re.search(r"The hub at http://127\.0\.0\.1:\d+ does not answer \(nothing arr", errors)
    assert "HF_ENDPOINT" in errors and "disk" not in errors and "Traceback" not in errors
    assert not list(Path("runs").glob("my-model*"))


@pytest.mark.parametrize("name", GOES_ON)
def test_a_command_that_does_not_need_the_hub_does_not_ask_it(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*arguments: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "_within", asked)
    command, printed = GOES_ON[name]
    assert main(command) == 0
    assert printed in capsys.readouterr().out


def test_the_table_has_every_command() -> None:
    from tinkersmith.cli.entry_point import COMMANDS

    named = {command[0] for command in NEEDS_HUB.values()}
    named |= {command[0] for command, _ in GOES_ON.values()}
    # These read no model: their files are results, run folders, checkpoints, or the program's own.
    named |= {"init", "compare", "dashboard", "runs"}
    # The engine asks the hub when a client names a model: see test_catalogue.py.
    assert named | {"engine"} == set(COMMANDS)
