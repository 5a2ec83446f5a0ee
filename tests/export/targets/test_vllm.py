"""The command for vLLM, and what an export's README says of it."""

import json
import shlex
from pathlib import Path

import pytest

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.export.targets.vllm import vllm_section, vllm_serve
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    config = {"r": 12, "rank_pattern": {"lm_head": 20}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("")
    return tmp_path


def instruction() -> PromptTemplate:
    tokenizer = load_tokenizer(BUNDLED_MODELS["tinkersmith/tiny-math"])
    return choose_template("instruction", tokenizer, "x")


def test_an_adapter_is_served_with_its_rank_and_its_chat_template(adapter: Path):
    command = shlex.split(vllm_serve(adapter, "out/a b", "mine", "org/base") or "")
    assert command == [
        *("vllm", "serve", "org/base", "--enable-lora", "--max-lora-rank", "32"),
        *("--lora-modules", "mine=out/a b"),
        *("--chat-template", "out/a b/chat_template.jinja"),
    ]


def test_a_merged_model_needs_only_its_folder(tmp_path: Path):
    assert vllm_serve(tmp_path, "out", "mine", None) == "vllm serve out --served-model-name mine"


def test_an_adapter_without_a_chat_template_names_none_and_says_what_to_send(adapter: Path):
    (adapter / "chat_template.jinja").unlink()
    assert "--chat-template" not in (vllm_serve(adapter, adapter, "mine", "org/base") or "")
    text = "\n".join(vllm_section(adapter, "mine", "org/base", instruction(), ""))
    assert "send the prompt whole" in text and "curl" not in text


def test_a_rank_that_vllm_does_not_take_gives_no_command(adapter: Path):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    assert vllm_serve(adapter, adapter, "mine", "org/base") is None
    text = "\n".join(vllm_section(adapter, "mine", "org/base", instruction(), ""))
    assert "takes no adapter of this rank" in text and "```" not in text


def test_the_readme_has_a_command_and_requests_with_an_input(adapter: Path):
    text = "\n".join(vllm_section(adapter, "mine", "org/base", instruction(), ""))
    assert "--lora-modules mine=. --chat-template chat_template.jinja" in text
    assert '"content": "Solve the equation.\\nInput: 2x + 3 = 11"' in text
    assert "from openai import OpenAI" in text
    refused = vllm_section(adapter, "mine", "org/base", instruction(), "vLLM 0.32 takes no LoRA")
    assert "vLLM 0.32 takes no LoRA. `--merged` exports one." in "\n".join(refused)
