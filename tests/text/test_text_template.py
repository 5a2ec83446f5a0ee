"""Conversations, thoughts and functions in the templates that are text with words around it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.text.jinja_template import chat_template_of
from tinkersmith.text.templates import TextTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

HERE = Source("data/train.json", 1)
END = "<|endoftext|>"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TALK = (
    *(Turn("system", "Be brief."), Turn("user", "one"), Turn("assistant", "1")),
    *(Turn("user", "two"), Turn("assistant", "2", thought="hm")),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TextTemplate:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    chosen = choose_template("instruction", load_tokenizer(folder), "m")
    assert isinstance(chosen, TextTemplate)
    return replace(chosen, begin="<s>")


def marked(template: TextTemplate, turns: tuple[Turn, ...], train_on: str = "all") -> str:
    sample = Sample(turns, HERE)
    (sequence,) = template.render_all(sample, train_on)
    return "".join(f"[{p.text}]" if p.trained else p.text for p in sequence.pieces)


def test_every_answer_is_trained_and_ends_with_the_end_token(template: TextTemplate) -> None:
    first = "<s>System: Be brief.\nInstruction: one\nResponse:\n"
    second = "\nInstruction: two\nResponse:\n"
    thought = "<think>\nhm\n</think>\n\n2"
    assert marked(template, TALK) == f"{first}[1{END}]{second}[{thought}{END}]"
    assert marked(template, TALK, "last") == f"{first}1{END}{second}[{thought}{END}]"
    everything = (
        f"<s>[System: Be brief.\nInstruction: one\nResponse:\n1{END}][{second}{thought}{END}]"
    )
    assert marked(template, TALK, "all_text") == everything
    stripped = replace(template, thinking="strip")
    assert marked(stripped, TALK) == f"{first}[1{END}]{second}[2{END}]"


def test_flags_of_messages_win(template: TextTemplate) -> None:
    turns = (replace(TALK[1], trained=True), replace(TALK[2], trained=False), *TALK[3:4])
    turns = (*turns, Turn("assistant", "2"))
    assert marked(template, turns) == (
        f"<s>[Instruction: one\nResponse:\n]1{END}\nInstruction: two\nResponse:\n[2{END}]"
    )
    assert marked(template, (*turns[:3], replace(turns[3], trained=False))) == (
        "<s>[Instruction: one\nResponse:\n]"
    )


def test_functions_their_calls_and_results_are_sentences(template: TextTemplate) -> None:
    turns = (
        *(Turn("user", "2 + 2?"), Turn("assistant", "I add.", tool_calls=(CALL, CALL))),
        *(Turn("tool", "4", tool_name="add"), Turn("assistant", "4")),
    )
    sample = Sample(turns, HERE, tools=({"type": "function", "function": {"name": "add"}},))
    (sequence,) = template.render_all(sample, "all")
    assert [piece.text for piece in sequence.pieces] == [
        '<s>You can call these functions:\n{"type": "function", "function": {"name": "add"}}\n'
        "Instruction: 2 + 2?\nResponse:\n",
        f'I add.\nCall add with {{"a": 2}}\nCall add with {{"a": 2}}{END}',
        "\nResult of add:\n4\n",
        f"4{END}",
    ]
    assert template.render_prompt(sample) == sequence.prompt
    assert chat_template_of(template) is not None


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("4", "4"),
        ("4 <think>", "4 <think>"),
        ("<think>\nhm\n</think>\n\n4", "4"),
        ("<think>\nhm and", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought(
    template: TextTemplate, generated: str, answer: str
) -> None:
    assert template.answer(generated) == answer


def test_a_system_text_that_no_question_follows_is_not_lost(template: TextTemplate) -> None:
    turns = (Turn("system", "Be brief."), Turn("assistant", "Hello"), *TALK[1:3])
    assert marked(template, turns).startswith(f"<s>Be brief.\n\n[Hello{END}]\nInstruction: one")
    turns = (Turn("user", "q"), Turn("system", "Be brief."), Turn("assistant", "Hello"))
    assert "Be brief.\n\n[Hello" in marked(template, turns)
