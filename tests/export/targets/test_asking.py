"""Requests to copy give the prompt of training."""

import json
import shlex

import pytest

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.export.targets.asking import (
    EXAMPLE,
    about_inputs,
    curl_lines,
    python_lines,
    request_body,
    text_before_input,
)
from tinkersmith.prompts.sandbox import render_chat
from tinkersmith.text.jinja_template import chat_template_of
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import load_tokenizer

SETTINGS = ["instruction", "alpaca", "chat", "Q: {instruction}\nA: ", "{input}\n{instruction}:"]


def bundled(setting: str) -> PromptTemplate:
    return choose_template(setting, load_tokenizer(BUNDLED_MODELS["tinkersmith/tiny-math"]), "x")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_request_to_copy_gives_the_trained_prompt_by_the_exported_template(setting: str):
    template = bundled(setting)
    body = json.loads(shlex.split(" ".join(curl_lines(template, "mine", "http://h")))[-1])
    assert body == request_body(template, "mine")
    source = chat_template_of(template)
    assert source is not None
    named = getattr(template, "named_tokens", {})
    variables = {**named, **body.get("chat_template_kwargs", {})}
    written = render_chat(source, "", body["messages"], variables, add_generation_prompt=True)
    asked = alpaca_sample(*EXAMPLE, "x", Source("", 1))
    assert written == template.render_prompt(asked)


def test_an_input_follows_the_question_where_the_prompt_says_nothing_else_of_it():
    assert text_before_input(bundled("instruction")) == "\nInput: "
    assert text_before_input(bundled("chat")) == "\n\n"
    assert text_before_input(bundled("alpaca")) is None
    assert text_before_input(bundled("{input}\n{instruction}:")) is None
    assert '"\\nInput: "' in about_inputs(bundled("instruction"))
    assert "chat_template_kwargs" in about_inputs(bundled("alpaca"))


@pytest.mark.parametrize("setting", ["instruction", "alpaca"])
def test_the_python_to_copy_sends_the_same_request(
    setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import openai

    sent: dict[str, object] = {}

    class Recorder:
        def __init__(self, **_: object) -> None:
            self.chat = self.completions = self

        def create(self, *, extra_body: dict[str, object] | None = None, **body: object):
            sent.update(body, **(extra_body or {}))
            message = type("Message", (), {"content": "x = 4"})
            return type("Answer", (), {"choices": [type("Choice", (), {"message": message})]})

    monkeypatch.setattr(openai, "OpenAI", Recorder)
    exec("\n".join(python_lines(bundled(setting), "mine", "http://h")))
    assert sent == request_body(bundled(setting), "mine")
    assert capsys.readouterr().out == "x = 4\n"
