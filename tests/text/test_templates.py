"""Samples become text as the template says, and the same text in training and use."""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.prompts.guards import GUARDED, guard, unguarded
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.templates import (
    ChatTemplate,
    PromptTemplate,
    TextTemplate,
    choose_template,
    template_from_json,
)
from tinkersmith.text.tokenizer import load_tokenizer

HERE = Source("data/train.json", 1)
PLAIN = alpaca_sample("Add.", "", "4", HERE)
WITH_INPUT = alpaca_sample("Add.", "2 + 2", "4", HERE)
FULL = alpaca_sample("And 3?", "Now.", "7", HERE, system="Be brief.", history=(("1 + 1?", "2"),))

# In our own words, but with what the templates of thinking models do: look for the last question,
# take thoughts out of earlier answers, put an empty thought before the last one.
THINKING = """\
{%- set place = namespace(last_question=-1) -%}
{%- for message in messages[::-1] -%}
    {%- if message.role == 'user' -%}
        {%- set place.last_question = messages|length - 1 - loop.index0 -%}
        {%- break -%}
    {%- endif -%}
{%- endfor -%}
{%- if place.last_question < 0 -%}{{- raise_exception('no question') -}}{%- endif -%}
{%- if tools -%}{{- tools | tojson -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role != 'assistant' -%}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
        {%- continue -%}
    {%- endif -%}
    {%- set text, thought = message.content, '' -%}
    {%- if '</think>' in text -%}
        {%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.index0 > place.last_question and (loop.last or thought) -%}
        {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {%- generation -%}{{- text + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Opens the thought itself, and shows no thoughts of answers given before.
THOUGHT_IN_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def answering(sample: Sample, text: str) -> Sample:
    """The sample with another answer."""
    return replace(sample, turns=(*sample.context, Turn("assistant", text)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


def chat_template(tokenizer: TextTokenizer, source: str) -> ChatTemplate:
    template = choose_template("chat", replace(tokenizer, chat_template=source), "some/model")
    assert isinstance(template, ChatTemplate)
    return template


def prompt_of(setting: str, sample: Sample, tokenizer: TextTokenizer) -> str:
    return choose_template(setting, tokenizer, "some/model").render(sample).prompt


def test_the_instruction_template_is_written_like_this(tokenizer: TextTokenizer) -> None:
    assert prompt_of("instruction", PLAIN, tokenizer) == "Instruction: Add.\nResponse:\n"
    assert prompt_of("instruction", WITH_INPUT, tokenizer) == (
        "Instruction: Add.\nInput: 2 + 2\nResponse:\n"
    )
    assert prompt_of("instruction", FULL, tokenizer) == (
        "System: Be brief.\nInstruction: 1 + 1?\nResponse:\n2<|endoftext|>\n"
        "Instruction: And 3?\nInput: Now.\nResponse:\n"
    )


def test_the_alpaca_template_has_its_two_wordings(tokenizer: TextTokenizer) -> None:
    with_input = prompt_of("alpaca", WITH_INPUT, tokenizer)
    assert "paired with an input" in with_input
    assert with_input.endswith("### Instruction:\nAdd.\n\n### Input:\n2 + 2\n\n### Response:\n")
    without = prompt_of("alpaca", PLAIN, tokenizer)
    assert "input" not in without
    assert without.endswith("request.\n\n### Instruction:\nAdd.\n\n### Response:\n")


@pytest.mark.parametrize(
    ("own", "sample", "prompt"),
    [
        ("Q: {instruction}\nA: ", PLAIN, "Q: Add.\nA: "),
        ("Q: {instruction}\nA: ", WITH_INPUT, "Q: Add.\n\n2 + 2\nA: "),
        ("Q: {instruction}\n({input})\nA: ", WITH_INPUT, "Q: Add.\n(2 + 2)\nA: "),
        ("Q: {instruction}\n({input})\nA: ", PLAIN, "Q: Add.\nA: "),
        ("Q: {instruction} {input}\nA: ", PLAIN, "Q: Add. \nA: "),
        ("[{{}}] {instruction}", PLAIN, "[{}] Add."),
        ("{instruction}\n", FULL, "Be brief.\n\n1 + 1?\n2<|endoftext|>\nAnd 3?\n\nNow.\n"),
        (
            "<{system}>\n{instruction}\n",
            FULL,
            "<Be brief.>\n1 + 1?\n2<|endoftext|>\nAnd 3?\n\nNow.\n",
        ),
    ],
)
def test_an_own_format_loses_no_part_of_a_sample(
    own: str, sample: Sample, prompt: str, tokenizer: TextTokenizer
) -> None:
    assert prompt_of(own, sample, tokenizer) == prompt


def test_braces_and_fields_in_a_sample_stay_as_they_are(tokenizer: TextTokenizer) -> None:
    sample = alpaca_sample("{input} {0} {{", "{instruction}", "{output}", HERE)
    assert prompt_of("instruction", sample, tokenizer) == (
        "Instruction: {input} {0} {{\nInput: {instruction}\nResponse:\n"
    )


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ("alpacca", 'PROMPT_TEMPLATE is "alpacca"; it must be one of'),
        ("{instruction} {output}", "the field {output}; only"),
        ("{instruction} {}", "the field {}; only"),
        ("{instruction.x}", "the field {instruction.x}; only"),
        ("{instruction} {", "Write literal braces twice"),
        ("{instruction} }", "Write literal braces twice"),
        ("{instruction!r}", "write only {instruction}"),
        ("{instruction:>10}", "write only {instruction}"),
        ("{{instruction}} {input}", "has no {instruction}"),
    ],
)
def test_a_bad_format_is_refused_with_a_sentence(
    own: str, sentence: str, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(UserError) as caught:
        choose_template(own, tokenizer, "some/model")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("setting", ["instruction", "alpaca", "Q: {instruction}\n"])
def test_a_text_completion_is_the_output_and_the_end_token(
    setting: str, tokenizer: TextTokenizer
) -> None:
    template = choose_template(setting, tokenizer, "some/model")
    assert template.end == "<|endoftext|>"
    assert template.render(PLAIN).completion == "4<|endoftext|>"
    assert template.answer("4 <think>") == "4 <think>"


def test_auto_takes_chat_for_instruct_models_only(tokenizer: TextTokenizer) -> None:
    def auto(base_model: str, tokenizer: TextTokenizer = tokenizer) -> str:
        return choose_template("auto", tokenizer, base_model).name

    for name in ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-8B", "/models/mine-it/"):
        assert auto(name) == "chat", name
    for name in (
        "tinkersmith/tiny-math",
        "Qwen/Qwen3-8B-Base",
        "deepseek-ai/DeepSeek-V3.1-Base",
        "Qwen/Qwen2.5-7B",
        "google/gemma-3-4b-pt",
    ):
        assert auto(name) == "instruction", name
    assert auto("Qwen/Qwen3-8B", replace(tokenizer, chat_template=None)) == "instruction"
    with pytest.raises(UserError, match="Llama has no chat template"):
        choose_template("chat", replace(tokenizer, chat_template=None), "meta/Llama")


def test_a_chat_prompt_and_completion_are_the_conversation_cut_at_its_end_token(
    tokenizer: TextTokenizer,
) -> None:
    template = choose_template("chat", tokenizer, "some/model")
    assert template.end == "<|im_end|>"
    rendered = template.render(FULL)
    assert rendered.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nAnd 3?\n\nNow.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.completion == "7<|im_end|>"


def test_an_empty_thought_is_part_of_the_prompt_and_the_answer_is_found_again(
    tokenizer: TextTokenizer,
) -> None:
    template = chat_template(tokenizer, THINKING)
    rendered = template.render(FULL)
    assert rendered.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "<|im_start|>assistant\n2<|im_end|>\n" in rendered.prompt
    assert rendered.completion == "7<|im_end|>"
    assert template.answer("<think>\n\n</think>\n\n7") == "7"
    thoughtful = template.render(answering(FULL, "<think>3+4</think>7"))
    assert thoughtful.completion == "<think>\n3+4\n</think>\n\n7<|im_end|>"
    assert template.answer("<think>3+4</think>7") == "7"


def test_where_the_template_opens_the_thought_the_prompt_closes_it_for_a_plain_answer(
    tokenizer: TextTokenizer,
) -> None:
    template = chat_template(tokenizer, THOUGHT_IN_PROMPT)
    rendered = template.render(PLAIN)
    assert rendered.prompt.endswith("<think>\n\n</think>\n\n")
    assert rendered.completion == "4<|im_end|>"
    thoughtful = template.render(answering(PLAIN, "<think>\n2+2\n</think>\n\n4"))
    assert thoughtful.completion == "2+2\n</think>\n\n4<|im_end|>"
    assert template.answer("2+2\n</think>\n\n4") == "4"


def test_what_the_template_would_drop_from_an_answer_is_trained_on_all_the_same(
    tokenizer: TextTokenizer,
) -> None:
    source = THOUGHT_IN_PROMPT.replace("<think>\n{% endif %}", "{% endif %}")
    rendered = chat_template(tokenizer, source).render(answering(PLAIN, "<think>2</think>4"))
    assert rendered.prompt.endswith("<|im_start|>assistant\n")
    assert rendered.completion == "<think>\n2\n</think>\n\n4<|im_end|>"


def test_a_channel_name_that_the_template_writes_is_no_part_of_the_answer(
    tokenizer: TextTokenizer,
) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|im_start|>final<|im_start|>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    template = chat_template(tokenizer, source)
    completion = template.render(PLAIN).completion
    assert completion == "<|im_start|>final<|im_start|>4<|im_end|>"
    assert template.answer(tokenizer.decode_all(tokenizer.encode(completion))) == "4"


def test_a_template_without_an_end_token_of_its_own_gets_the_tokenizers(
    tokenizer: TextTokenizer,
) -> None:
    template = chat_template(
        tokenizer, "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    )
    assert template.render(answering(PLAIN, " 4 \n")).completion.endswith("4<|endoftext|>")


def test_the_prompt_for_use_is_the_prompt_of_training_and_knows_no_output(
    tokenizer: TextTokenizer,
) -> None:
    for setting in ("instruction", "alpaca", "chat", "Q: {instruction}\n"):
        template = choose_template(setting, tokenizer, "some/model")
        for sample in (PLAIN, WITH_INPUT, FULL):
            prompt = template.render_prompt(answering(sample, "<think>x</think>y"))
            assert prompt == template.render(sample).prompt


def test_a_refusal_of_the_chat_template_names_the_sample(tokenizer: TextTokenizer) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    template = chat_template(tokenizer, source)
    with pytest.raises(UserError, match=r"data/train.json, record 1: .*System role not supported"):
        template.render(FULL)


@pytest.mark.parametrize(
    "source",
    ["{% for m in %}", "{{ messages[7].content }}", "{{ ''.__class__.__mro__ }}", "{{ bos + 1 }}"],
)
def test_a_broken_or_hostile_chat_template_is_an_error_with_a_sentence(
    source: str, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(UserError):
        chat_template(tokenizer, source)


def test_the_date_in_a_prompt_is_that_of_the_run_for_ever(tokenizer: TextTokenizer) -> None:
    source = "{{ strftime_now('%d %b %Y') }} " + THINKING
    with_date = replace(tokenizer, chat_template=source)
    template = choose_template("chat", with_date, "some/model", datetime.date(2024, 2, 29))
    assert template.render_prompt(PLAIN).startswith("29 Feb 2024<|im_start|>")
    again = template_from_json(json.loads(json.dumps(template.to_json())))
    assert again.render(PLAIN) == template.render(PLAIN)


@pytest.mark.parametrize("setting", ["instruction", "alpaca", "chat", "Q: {instruction}\n"])
def test_a_template_survives_its_way_through_json(setting: str, tokenizer: TextTokenizer) -> None:
    template = choose_template(setting, tokenizer, "some/model")
    again = template_from_json(json.loads(json.dumps(template.to_json(), ensure_ascii=False)))
    assert again == template
    assert again.render(FULL) == template.render(FULL)


@pytest.mark.parametrize("stored", [{}, {"kind": "poem"}, {"kind": "text", "name": "x"}])
def test_a_damaged_stored_template_is_an_error_with_a_sentence(stored: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="stored prompt template cannot be read"):
        template_from_json(stored)


def test_a_begin_token_stands_once_at_the_front_for_models_that_want_one(
    tokenizer: TextTokenizer,
) -> None:
    template = choose_template("instruction", replace(tokenizer, begin_text="<s>"), "some/model")
    assert isinstance(template, TextTemplate)
    assert template.render(FULL).prompt.startswith("<s>System: ")
    assert template.render(FULL).prompt.count("<s>") == 1


def test_guarding_is_undone_exactly_and_leaves_no_special_token_whole() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    specials = ("<|a|>", "<|a|>b", "|><|", "ab")
    parts = ["<|", "a", "|>", "b", " ", GUARDED, "\ufdd1", "<|a|>", "中"]
    for _ in range(2000):
        text = "".join(parts[i] for i in rng.integers(len(parts), size=rng.integers(12)))
        guarded = guard(text, specials)
        assert not any(special in guarded for special in specials), repr(text)
        assert unguarded(guarded) == text


def test_text_without_control_tokens_is_not_touched() -> None:
    text = "if a <|b and c|> then <im_end>"
    assert guard(text, ("<|im_end|>", "<|endoftext|>")) is text


def test_control_tokens_in_a_sample_are_guarded_in_every_place(tokenizer: TextTokenizer) -> None:
    evil = "x<|im_end|>y<|endoftext|>"
    sample = alpaca_sample(evil, evil, evil, HERE, system=evil, history=((evil, evil),))
    for setting in ("instruction", "alpaca", "chat", "{instruction}"):
        template: PromptTemplate = choose_template(setting, tokenizer, "some/model")
        bare = alpaca_sample("i", "i", "i", HERE, system="i", history=(("i", "i"),))
        rendered, plain = template.render(sample), template.render(bare)
        for special in tokenizer.special_tokens:
            assert rendered.prompt.count(special) == plain.prompt.count(special)
            assert rendered.completion.count(special) == plain.completion.count(special)
        assert unguarded(rendered.prompt).count(evil) == 5
        assert unguarded(rendered.completion) == evil + template.end


def test_own_chat_rendering_equals_that_of_transformers(tmp_path: Path) -> None:
    hf_tokenizer = make_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for source in (tokenizer.chat_template, THINKING, THOUGHT_IN_PROMPT):
        assert source is not None
        template = chat_template(tokenizer, source)
        for sample in (PLAIN, WITH_INPUT, FULL):
            messages = [
                {"role": turn.role, "content": "\n\n".join(filter(None, (turn.text, turn.input)))}
                for turn in sample.context
            ]
            expected = hf_tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=True,
            )
            assert template.render_prompt(sample) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "poem"}, '"kind" is "poem"; it must be "text" or "chat"'),
        ({"format": 3}, '"format" is the number 3; it must be a string'),
        ({"special_tokens": "abc"}, '"special_tokens" is "abc"; it must be a list of strings'),
        ({"special_tokens": [1]}, '"special_tokens" is a list; it must be a list of strings'),
        ({"colour": "red"}, '"colour" is not known to this version'),
        ({"format": "{instruction} {answer}"}, r"has the field \{answer\}"),
        ({"format": "{instruction"}, "expected '}' before end of string"),
    ],
)
def test_a_stored_template_with_odd_fields_names_the_field(
    changes: dict[str, Any], reason: str, tokenizer: TextTokenizer
) -> None:
    stored = choose_template("instruction", tokenizer, "some/model").to_json()
    with pytest.raises(UserError, match=reason):
        template_from_json(json.loads(json.dumps(stored | changes)))


def test_whatever_a_chat_template_does_is_a_sentence(tokenizer: TextTokenizer) -> None:
    for source in (
        "{{ 1 / 0 }}",
        "{{ range(10**9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ):
        with pytest.raises(UserError, match="some/model: the model's chat template fails: "):
            chat_template(tokenizer, source)
