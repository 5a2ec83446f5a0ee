"""The README.md of an export shows the prompts as they were trained."""

from pathlib import Path

import pytest

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.export.model_card import model_card
from tinkersmith.prompts.guards import unguarded
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

WITH = repr("Instruction: {instruction}\nInput: {input}\nResponse:\n")
WITHOUT = repr("Instruction: {instruction}\nResponse:\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_tokenizer(tmp_path)
    return tmp_path


def card(folder: Path, *inputs: bool, template: str = "instruction") -> str:
    chosen = choose_template(template, load_tokenizer(folder), "x")
    return model_card("mine", "tinker://a/weights/b", "base", None, chosen, True, frozenset(inputs))


@pytest.mark.parametrize(
    ("inputs", "shown", "hidden"),
    [
        ((True,), [WITH], [WITHOUT]),
        ((False,), [WITHOUT], [WITH]),
        ((True, False), [WITH, WITHOUT], []),
        ((), [WITH, WITHOUT], []),  # the data files have gone
    ],
)
def test_the_forms_of_trained_prompts_are_shown_and_no_others(
    folder: Path, inputs: tuple[bool, ...], shown: list[str], hidden: list[str]
) -> None:
    text = card(folder, *inputs)
    assert all(form in text for form in shown)
    assert not any(form in text for form in hidden)


@pytest.mark.parametrize("template", ["instruction", "alpaca", "chat", "Q: {instruction}\nA: "])
@pytest.mark.parametrize("with_input", [True, False])
def test_the_code_writes_the_prompt_of_training(
    folder: Path, template: str, with_input: bool
) -> None:
    text = card(folder, with_input, template=template)
    code = text.partition("```python\n")[2].partition("```")[0]
    lines = [line for line in code.splitlines() if line.startswith("prompt = ")]
    names: dict[str, str] = {}
    exec("\n".join(lines), names)
    chosen: PromptTemplate = choose_template(template, load_tokenizer(folder), "x")
    given = "What it is about" if with_input else ""
    sample = alpaca_sample("Your question", given, "", Source("", 1))
    assert names["prompt"] == unguarded(chosen.render_prompt(sample))
