"""Answers of real tokenizers against the grammars of calls, thoughts and JSON."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_families import FAMILIES, MISTRAL, make_family_tokenizer
from tests.support.grammars import follow
from tests.support.inference import texts_of
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.grammar_text import CallRules, ThoughtForm
from tinkersmith.engine.json_grammar import Grammars, JsonGrammar, vocabulary_of
from tinkersmith.engine.server.routes.answer_text import AnswerSyntax, AnswerText, ToolCall
from tinkersmith.engine.server.routes.chat_prompts import (
    CallChoice,
    Chat,
    ModelTexts,
    read_texts,
)
from tinkersmith.prompts.probes import WrittenCalls

ASKED = [{"role": "user", "content": "3 + 4?"}]
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ADD, ADD_ALL = tool("add", a=NUMBER, b=NUMBER), tool("add_all", text={"type": "string"})
ONE = {"name": "add", "arguments": {"a": 3, "b": 4}}
OTHER = {"name": "add_all", "arguments": {"text": 'a "quote" }] 你'}}
CALLING = {**FAMILIES, "mistral": MISTRAL}
WITH_TAGS = ("qwen2_5", "qwen3", "mistral")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelTexts]:
    @cache
    def read(name: str) -> ModelTexts:
        if name == "bundled":  # where tags are text, in the form of Qwen 3
            return texts_of(template=FAMILIES["qwen3"].source)
        folder: Path = tmp_path_factory.mktemp(name)
        make_family_tokenizer(folder, CALLING[name])
        (folder / "config.json").write_text("{}")
        return read_texts(name, folder, "2026-01-31")

    return read


def grammar_for(texts: ModelTexts, choice: CallChoice, think: bool | None = None) -> JsonGrammar:
    chat = Chat(ASKED, [ADD, ADD_ALL], think, calls=choice)
    prompt = texts.prompt_text(chat)
    return texts.call_grammar(chat, prompt, thoughts=texts.knows_thoughts)


def written(texts: ModelTexts, *calls: dict[str, Any]) -> str:
    """What the template writes for an answer with these calls, without thought and end."""
    form = texts.tool_form
    shaped = [
        {
            "id": "call12345",
            "type": "function",
            "function": {
                **call,
                "arguments": json.dumps(call["arguments"])
                if form.arguments_as_text
                else call["arguments"],
            },
        }
        for call in calls
    ]
    message = {"role": "assistant", "content": form.empty_content, "tool_calls": shaped}
    tools = [ADD, ADD_ALL]
    prompt = texts.probe.write(ASKED, prompt=True, tools=tools)
    answer = texts.probe.write([*ASKED, message], tools=tools).removeprefix(prompt)
    answer = answer.removeprefix("<think>\n\n</think>\n\n")
    answer = answer.replace(', "id": "call12345"', "")  # which is the client's
    return answer[: answer.rindex(texts.form.end.strip())]


def read_back(texts: ModelTexts, text: str) -> tuple[str, list[ToolCall]]:
    """The words and calls that clients get of an answer with this text."""
    syntax = AnswerSyntax(calls=texts.call_form, names=("add", "add_all"))
    answer, said, calls = AnswerText(texts.tokenizer, syntax), "", list[ToolCall]()
    for token in texts.tokens_of(text):
        piece = answer.add(token, 0.0, (), None)
        said, calls = said + piece.text, calls + piece.calls
    last = answer.finish("stop")
    return said + last.text, calls + last.calls


@pytest.mark.parametrize("name", [*WITH_TAGS, "llama3_2", "bundled"])
def test_a_forced_call_is_what_the_template_writes_and_is_read_back(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    grammar = grammar_for(own, CallChoice(forced=True), think=False if name == "qwen3" else None)
    for call in (ONE, OTHER):
        text, state = written(own, call), grammar.begin()
        assert follow(own, state, text) == text and state.may_end
        [found] = read_back(own, text)[1]
        assert (found.name, json.loads(found.arguments)) == (call["name"], call["arguments"])
    both = "" if name == "llama3_2" else written(own, ONE, OTHER)
    state = grammar.begin()
    assert follow(own, state, both) == both
    assert [call.name for call in read_back(own, both)[1]] == (["add", "add_all"] if both else [])
    for wrong in ("It is 7.", written(own, {"name": "sub", "arguments": {}}), "[", "{}"):
        state = grammar.begin()
        assert follow(own, state, wrong) != wrong and not state.may_end


@pytest.mark.parametrize("name", [*WITH_TAGS, "llama3_2", "bundled"])
def test_a_named_function_is_called_once_with_arguments_of_its_schema(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    grammar = grammar_for(own, CallChoice(forced=True, only="add"))
    good = written(own, ONE)
    assert follow(own, grammar.begin(), good) == good
    for arguments in ({"a": 3}, {"a": 3, "b": "4"}, {"a": 3, "b": 100}, {"a": 3, "b": 4, "c": 5}):
        wrong = written(own, {"name": "add", "arguments": arguments})
        assert follow(own, grammar.begin(), wrong) != wrong
    others = (
        [written(own, OTHER)]
        if name == "llama3_2"
        else [written(own, ONE, ONE), written(own, OTHER)]
    )
    for other in others:
        assert follow(own, grammar.begin(), other) != other


@pytest.mark.parametrize("name", [*WITH_TAGS, "bundled"])
def test_a_free_answer_may_have_words_and_strict_calls(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    grammar = grammar_for(own, CallChoice(strict=frozenset({"add"})))
    call, opening = written(own, ONE), own.call_form.opening if own.call_form else ""
    loose = written(own, {"name": "add_all", "arguments": {"any": [1]}})
    words = "Well, a < b { [ and\n\nmore."
    for text in ("", words, call, words + call, loose, f"{words}\n{call}"):
        state = grammar.begin()
        assert follow(own, state, text) == text and state.may_end
    said, calls = read_back(own, f"{words}\n{call}")
    assert said == words and [one.name for one in calls] == ["add"]
    wrong = written(own, {"name": "add", "arguments": {"a": "3"}})
    state = grammar.begin()
    assert opening in follow(own, state, wrong) and not state.may_end


def test_a_free_answer_without_a_tag_calls_where_it_begins_with_a_brace(
    texts: Callable[[str], ModelTexts],
) -> None:
    own = texts("llama3_2")
    grammar = grammar_for(own, CallChoice(strict=frozenset({"add", "add_all"})))
    for text in ("It is {7}.", "\n [7]"[:1] + "7", written(own, ONE)):
        state = grammar.begin()
        assert follow(own, state, text) == text and state.may_end
    for wrong in ('{"a": 1}', "[1]", " {x"):
        assert follow(own, grammar.begin(), wrong) != wrong


@pytest.mark.parametrize("name", [*WITH_TAGS, "bundled"])
def test_without_parallel_calls_an_answer_has_one(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    two, one = written(own, ONE, ONE), written(own, ONE)
    for choice in (CallChoice(several=False), CallChoice(forced=True, several=False)):
        state = grammar_for(own, choice).begin()
        assert follow(own, state, one) == one and state.may_end
        assert follow(own, grammar_for(own, choice).begin(), two) != two
    assert follow(own, grammar_for(own, CallChoice(forced=True)).begin(), two) == two


@pytest.mark.parametrize("name", ["qwen3", "bundled"])
def test_a_thought_may_precede_a_call_unless_the_prompt_has_closed_it(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    call = written(own, ONE)
    thoughtful = f"<think>\nI add {{.\n</think>\n\n{call}"
    for choice in (CallChoice(forced=True), CallChoice(strict=frozenset({"add"}))):
        for think, text in ((None, call), (True, thoughtful), (False, call)):
            state = grammar_for(own, choice, think).begin()
            assert follow(own, state, text) == text and state.may_end
        never = grammar_for(own, choice, think=False).begin()
        assert follow(own, never, thoughtful) != thoughtful or not choice.forced


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "gptoss", "deepseek_v3_1", "bundled"])
def test_a_thought_before_json_has_the_templates_own_tokens(
    texts: Callable[[str], ModelTexts], name: str
) -> None:
    own = texts(name)
    family = FAMILIES["qwen3" if name == "bundled" else name]
    for think in (True, False):
        chat = Chat(ASKED, think=think if family.switch else None)
        prompt = own.prompt_text(chat)
        grammar = own.json_grammar({"const": 7}, prompt, thoughts=own.knows_thoughts)
        if own.thought_form(prompt).begins_inside:
            answers = [f"Hm. {own.closing}7"]
        elif family.switch and not think:
            answers = ["7"]
        else:
            answers = [family.writes("Hm.\n7 is it.", "7"), family.writes("", "7")]
        for answer in answers:
            state = grammar.begin()
            assert follow(own, state, answer) == answer and state.may_end, answer
            assert follow(own, grammar.begin(), answer[:-1] + "8") == answer[:-1]


def test_a_schema_of_parameters_that_cannot_be_followed_is_named() -> None:
    grammars = Grammars(vocabulary_of("tiny", texts_of().tokenizer))
    form = WrittenCalls('{"name": "', '", "arguments": ', None, "}")

    def compiled(schema: dict[str, Any]) -> JsonGrammar:
        functions = {"good": {}, "bad": schema}
        return grammars.of_calls(CallRules(form, "", functions, forced=True, several=True))

    assert not compiled({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {}}}}).is_spent
    for schema, sentence in (
        ({"properties": {"a": {"type": "objekt"}}}, "'bad' cannot be followed: Invalid type"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "array"}, "'bad' have the type \"array\""),
        ({"x-guidance": {}}, "x-guidance"),
        ({"properties": {"a": {"multipleOf": 1_000_003}}}, "1,000,003"),
    ):
        with pytest.raises(Refused, match=sentence):
            compiled(schema)


def test_a_tag_spelled_letter_by_letter_is_no_way_around_a_grammar(
    texts: Callable[[str], ModelTexts],
) -> None:
    own = texts("qwen3")
    grammar = grammar_for(own, CallChoice(several=False)).begin()
    spelled = [token for letter in "x<tool_call>" for token in own.tokens_of(letter)]
    for token in spelled[:-1]:
        assert grammar.allowed()[token]
        grammar.add(token)
    assert not grammar.allowed()[spelled[-1]]
    thought = ThoughtForm("<think>", "</think>", "", begins_inside=True)
    inside = Grammars(vocabulary_of("x", own.tokenizer)).of({"const": 7}, thought).begin()
    for token in [token for letter in "</think" for token in own.tokens_of(letter)]:
        inside.add(token)
    assert not inside.allowed()[own.tokens_of(">")[0]]
