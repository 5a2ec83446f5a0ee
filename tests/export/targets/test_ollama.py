"""Ollama's Modelfile: its template writes the prompts of training."""

from pathlib import Path

import pytest

from tests.support.chat_families import FAMILIES, make_family_tokenizer
from tests.support.go_templates import has_go, write_by_go
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.export.targets.ollama import modelfile, ollama_template, stops_of
from tinkersmith.prompts.guards import unguarded
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

FORMATS = [
    "instruction",
    "alpaca",
    "Q: {instruction}\nA: ",
    "{system}\n{instruction} {input} =>",
    "a {{b}} \"' \\n {instruction}",
    "Q: {instruction}\n{input}",
    "{input}\n{instruction}:",
]
HERE = Source("chat.jsonl", 1)
SYSTEM, ASKED, SAID = (
    Turn("system", "Be brief."),
    Turn("user", 'How "many"?'),
    Turn("assistant", "4"),
)
WITH_INPUT = Turn("user", "Add.", input="{{ 3 }} + 4")
CHATS = [
    [ASKED],
    [SYSTEM, ASKED],
    [ASKED, SAID, Turn("user", "And\n\nnow?")],
    [SYSTEM, ASKED, SAID, ASKED, SAID, ASKED],
    [WITH_INPUT],
    [SYSTEM, WITH_INPUT, SAID, ASKED],
]


def bundled(setting: str) -> PromptTemplate:
    return choose_template(setting, load_tokenizer(BUNDLED_MODELS["tinkersmith/tiny-math"]), "x")


def trained_prompt(template: PromptTemplate, turns: list[Turn]) -> str:
    return unguarded(template.render_prompt(Sample((*turns, Turn("assistant", "x")), HERE)))


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    """A conversation for Ollama: an input is a message before the user's."""
    listed: list[dict[str, str]] = []
    for turn in turns:
        if turn.input:
            listed.append({"Role": "input", "Content": turn.input})
        listed.append({"Role": turn.role, "Content": turn.text})
    return listed


def test_the_modelfile_has_the_trained_prompt_its_end_and_sampling_without_limits():
    template = bundled("Q: {instruction}\n{input}\nA: ")
    text = modelfile("my-F16.gguf", template, stops_of(template), {"num_ctx": 1024, "top_k": 0})
    first, *_, last = text.splitlines()
    assert first == "FROM ./my-F16.gguf"
    assert "{{ if $input }}{{ if $system }}{{ $system }}\n\n{{ end }}Q: {{ $m.Content }}\n" in text
    assert 'PARAMETER stop "<|endoftext|>"\nPARAMETER num_ctx 1024\n' in text
    assert last == "PARAMETER top_k 0"


def test_a_chat_template_without_fixed_pieces_gets_no_template_of_ollama(tmp_path: Path):
    make_family_tokenizer(tmp_path, FAMILIES["gptoss"])
    template = choose_template("chat", load_tokenizer(tmp_path), "x")
    source = ollama_template(template)
    text = modelfile("m.gguf", template, stops_of(template), {})
    assert (source is None) == ("send it whole" in text)


@pytest.mark.long
@pytest.mark.skipif(not has_go(), reason="Go is not installed")
def test_ollama_writes_the_prompts_of_every_text_template(tmp_path: Path):
    templates = [bundled(setting) for setting in FORMATS]
    compare(templates, CHATS, tmp_path)


@pytest.mark.long
@pytest.mark.skipif(not has_go(), reason="Go is not installed")
@pytest.mark.parametrize("thinking", ["auto", "off"])
def test_ollama_writes_the_prompts_of_the_families_chat_templates(tmp_path: Path, thinking: str):
    templates: list[PromptTemplate] = []
    for name, family in FAMILIES.items():
        make_family_tokenizer(tmp_path / name, family)
        tokenizer = load_tokenizer(tmp_path / name)
        templates.append(choose_template("chat", tokenizer, "x", thinking=thinking))
    known = [template for template in templates if ollama_template(template) is not None]
    assert len(known) >= 6, len(known)
    compare(known, CHATS, tmp_path)


def compare(templates: list[PromptTemplate], chats: list[list[Turn]], folder: Path) -> None:
    pairs = [(template, chat) for template in templates for chat in chats]
    sources = {id(template): ollama_template(template) for template in templates}
    written = write_by_go(
        [(sources[id(template)] or "", messages(chat)) for template, chat in pairs], folder
    )
    for (template, chat), text in zip(pairs, written, strict=True):
        assert text == trained_prompt(template, chat), (template.name, chat)
