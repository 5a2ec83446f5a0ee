"""Schemas -> the tokens that may follow, and how they are sampled."""

import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.support.grammars import follow
from tests.support.inference import texts_of
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine import json_grammar
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.grammar_text import ThoughtForm
from tinkersmith.engine.json_grammar import (
    Grammars,
    GrammarState,
    JsonGrammar,
    vocabulary_of,
)
from tinkersmith.engine.messages import SampledSequence, SampleRequest
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.engine.sampling import rows
from tinkersmith.engine.sampling.sampler import sample

TEXTS = texts_of()
VOCABULARY = vocabulary_of("tiny", TEXTS.tokenizer)
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "y": {"enum": [1, 2, None]},
    },
    "required": ["x"],
    "additionalProperties": False,
}


INSIDE = ThoughtForm("<think>", "</think>", "", begins_inside=True)


def grammar_of(schema: dict[str, Any], thought: ThoughtForm | None = None) -> JsonGrammar:
    return Grammars(VOCABULARY).of(schema, thought)


def begin(schema: dict[str, Any], thought: ThoughtForm | None = None) -> GrammarState:
    return grammar_of(schema, thought).begin()


@pytest.mark.parametrize("text", ['{"x": 3}', '{"x":3,"y":null}', json.dumps({"x": 1, "y": 2})])
def test_what_the_schema_allows_is_allowed_on_one_line(text: str) -> None:
    state = begin(POINT)
    assert follow(TEXTS, state, text) == text and state.may_end
    assert state.allowed().nonzero()[0].tolist() == [VOCABULARY.end_id]


@pytest.mark.parametrize(
    "text", ['{"y"', '{"x": 1.5', '{"x": 1, "z"', "{}", "I say", '{"x"' + "  "]
)
def test_what_the_schema_forbids_is_not(text: str) -> None:
    state = begin(POINT)
    assert follow(TEXTS, state, text) != text and not state.may_end


def test_a_thought_may_come_first_or_must_be_closed() -> None:
    for text in ('{"x": 3}', '<think>\nIs it {4}?\n</think>\n\n{"x": 3}'):
        state = begin(POINT, ThoughtForm("<think>", "</think>", "", begins_inside=False))
        assert follow(TEXTS, state, text) == text and state.may_end
    inside = begin(POINT, INSIDE)
    assert (
        follow(TEXTS, inside, '{"x": 3}') == '{"x": 3}' and not inside.may_end
    )  # a thought so far
    assert follow(TEXTS, inside, ' </think>\n{"x": 3}') == ' </think>\n{"x": 3}' and inside.may_end


def test_two_answers_do_not_disturb_each_other() -> None:
    grammar = grammar_of(POINT)
    one, other = grammar.begin(), grammar.begin()
    assert follow(TEXTS, one, '{"x": 3}') and one.may_end
    assert not other.may_end and follow(TEXTS, other, '{"x": 4') == '{"x": 4'


def test_sampled_rows_follow_the_grammar_and_others_stay_as_they_are() -> None:
    base = load_base_model("tiny", next(iter(BUNDLED_MODELS.values())), "float32")
    prompt, grammar = TEXTS.tokens_of("Instruction: Say it.\n"), grammar_of(POINT)
    asked: Any = {"prompt": prompt, "max_tokens": 200, "seed": 5, "num_samples": 2}
    free = SampleRequest(**{**asked, "max_tokens": 30})
    bound = [SampleRequest(**asked, grammar=grammar, top_p=share) for share in (1.0, 0.5)]
    greedy = SampleRequest(**{**asked, "num_samples": 1}, grammar=grammar, temperature=0)
    alone = sample(base, None, [free])[0]
    together = sample(base, None, [free, *bound, greedy])
    assert [one.tokens for one in together[0].sequences] == [one.tokens for one in alone.sequences]
    for result in together[1:]:
        for sequence in result.sequences:
            assert sequence.stop_reason == "stop" and sequence.tokens[-1] in base.eos_ids
            value = json.loads(TEXTS.tokenizer.decode(sequence.tokens[:-1]))
            assert isinstance(value["x"], int) and set(value) <= {"x", "y"}
            assert all(torch.tensor(sequence.logprobs) < 0)


def test_without_the_library_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refused, match=r'pip install "tinkersmith\[structured\]"'):
        vocabulary_of("tiny", TEXTS.tokenizer)


def test_a_format_that_json_schema_does_not_define_says_nothing_about_the_text() -> None:
    schema = {
        "type": "object",
        "properties": {
            "format": {"type": "string", "format": "path"},  # a name of its own
            "all": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/secret"}]}},
            "one": {"const": {"format": "path"}},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["format", "all", "one", "day"],
        "additionalProperties": False,
        "$defs": {"secret": {"type": "string", "format": "password", "writeOnly": True}},
    }
    text = '{"format": "a/b", "all": ["x"], "one": {"format": "path"}, "day": "2026-01-31"}'
    state = begin(schema)
    assert follow(TEXTS, state, text) == text and state.may_end
    no_day = text.replace("2026-01-31", "soon")
    assert follow(TEXTS, begin(schema), no_day) != no_day
    with pytest.raises(Refused, match="Unknown format: json-pointer"):
        grammar_of({"type": "string", "format": "json-pointer"})


def test_a_schema_of_great_depth_is_refused() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    with pytest.raises(Refused, match="recursion limit"):
        grammar_of(deep)


# ---- large schemas, and many requests with the same one


def test_requests_with_one_schema_share_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_text = json_grammar._compile

    def count(vocabulary: Any, text: str) -> JsonGrammar:
        compiled.append(text)
        return compile_text(vocabulary, text)

    monkeypatch.setattr(json_grammar, "_compile", count)
    grammars = Grammars(VOCABULARY)
    with ThreadPoolExecutor(16) as pool:
        same = list(pool.map(lambda _: grammars.of(dict(POINT)), range(64)))
    assert len(compiled) == 1 and all(grammar is same[0] for grammar in same)
    thoughtful = grammars.of(POINT, INSIDE)
    assert thoughtful is not same[0] and len(compiled) == 2
    for number in range(json_grammar._KEPT):  # others push it out
        grammars.of({"const": number})
    assert grammars.of(POINT) is not same[0]


def test_a_wrong_schema_is_refused_each_time_and_a_spent_one_compiled_again() -> None:
    grammars = Grammars(VOCABULARY)
    for _ in range(2):
        with pytest.raises(Refused, match="objekt"):
            grammars.of({"type": "objekt"})
    names = {f"k{number}": {"type": "integer"} for number in range(520)}
    broad = grammars.of({"type": "object", "properties": names})
    assert not broad.is_spent
    with pytest.raises(Refused, match="make the schema simpler"):
        follow(TEXTS, broad.begin(), '{"k1": 3}')
    assert broad.is_spent
    assert grammars.of({"type": "object", "properties": names}) is not broad


@pytest.mark.parametrize(
    ("schema", "states"),
    [
        ({"type": "integer", "multipleOf": 1_000_003}, "1,000,003"),
        ({"type": "number", "multipleOf": 1.0000000007}, "10,000,000,007"),
        ({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}, "990,015"),
    ],
    ids=["large", "many digits", "two at once"],
)
def test_a_multiple_with_too_many_remainders_is_refused_at_once(
    schema: dict[str, Any], states: str
) -> None:
    with pytest.raises(Refused, match=f"multipleOf add up to {states}; at most 100,000"):
        grammar_of(schema)


@pytest.mark.parametrize("number", [7, 0.01, 1_000_000, 2.5, 1e-9, True, 1e400], ids=str)
def test_other_multiples_are_left_to_the_library(number: float) -> None:
    schema = {"type": "integer", "multipleOf": number}
    try:
        assert not grammar_of(schema).is_spent
    except Refused as refusal:
        assert "add up to" not in str(refusal)


TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "parts"],
    "additionalProperties": False,
}


def test_tokens_chosen_among_those_allowed_are_those_of_the_whole_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = load_base_model("tiny", next(iter(BUNDLED_MODELS.values())), "float32")
    asked: Any = {"prompt": TEXTS.tokens_of("Say it.\n"), "max_tokens": 16}
    schemas = [grammar_of(schema) for schema in (POINT, TREE, {"type": "string"})]
    rules: list[dict[str, Any]] = [
        *({}, {"temperature": 0.0}, {"temperature": 0.3}, {"top_p": 0.7}, {"top_k": 5})
    ]
    requests = [SampleRequest(**asked, seed=1)]
    for seed, (grammar, rule) in enumerate(itertools.product(schemas, rules)):
        requests.append(SampleRequest(**asked, seed=seed, grammar=grammar, **rule))
    answers: list[list[SampledSequence]] = []
    for few in (rows._FEW, 0, 2**20):  # as it is; never by the tokens allowed; only by them
        monkeypatch.setattr(rows, "_FEW", few)
        results = sample(base, None, requests)
        answers.append([one for result in results for one in result.sequences])
    for others in answers[1:]:
        for one, other in zip(answers[0], others, strict=True):
            assert one.tokens == other.tokens and one.logprobs == other.logprobs
