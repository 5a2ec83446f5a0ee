"""The command line that starts vLLM, by a program of that name."""

import json
from pathlib import Path

import pytest

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.cli.main import main

[(BUNDLED, FOLDER)] = BUNDLED_MODELS.items()


def adapter(folder: Path, template: str = "{{ messages }}", **config: object) -> Path:
    folder.mkdir()
    values = {"base_model_name_or_path": str(FOLDER), "r": 16, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def program(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text('#!/bin/sh\necho "$@"\necho "key=$VLLM_API_KEY"\nexit 7\n')
    file.chmod(0o755)


@pytest.fixture(autouse=True)
def _empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + ":/usr/bin:/bin")


def test_vllm_gets_base_adapters_template_rank_and_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "vllm")
    program(tmp_path / "bin", "nvidia-smi")
    first = adapter(tmp_path / "first")
    second = adapter(tmp_path / "second", r=8, rank_pattern={"q_proj": 20})
    monkeypatch.setenv("TINKERSMITH_SERVE_KEY", "a-key-of-mine")
    assert main(["serve", str(first), f"support={second}", "--vllm", "--port", "8123"]) == 7
    started, arguments, key = capfd.readouterr().out.splitlines()
    expected = (
        f"serve {FOLDER} --served-model-name {BUNDLED} --host 127.0.0.1 --port 8123 --enable-lora "
        f"--max-lora-rank 32 --lora-modules first={first} support={second} "
        f"--chat-template {first}/chat_template.jinja"
    )
    assert arguments == expected
    assert started == f"Starting: vllm {expected}"
    assert key == "key=a-key-of-mine"


def test_what_is_missing_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(adapter(tmp_path / "first"))
    assert main(["serve", folder, "--vllm"]) == 1
    assert "vLLM is not installed" in capsys.readouterr().err
    program(tmp_path / "bin", "vllm")
    assert main(["serve", folder, "--vllm"]) == 1
    assert "needs a GPU" in capsys.readouterr().err
    other = str(adapter(tmp_path / "other", "{{ 1 }}"))
    assert main(["serve", folder, other, "--vllm"]) == 1
    assert "different prompt templates" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--max-requests", "9"), ("--allow-host", "a.example")])
def test_an_option_that_vllm_cannot_follow_is_refused(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(adapter(tmp_path / "first"))
    assert main(["serve", folder, "--vllm", *option]) == 1
    assert f"{option[0]} has no effect with --vllm" in capsys.readouterr().err


def test_a_model_that_is_named_twice_has_both_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin", "vllm")
    program(tmp_path / "bin", "nvidia-smi")
    assert main(["serve", f"one={BUNDLED}", f"other={BUNDLED}", "--vllm"]) == 7
    assert "--served-model-name one other --host" in capfd.readouterr().out
