"""Schemas -> the tokens that may follow, and how they are sampled."""

import json
import sys
from typing import Any

import pytest
import torch

from tests.support.inference import texts_of
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.json_grammar import GrammarState, compile_schema, vocabulary_of
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.model.base_model import load_base_model
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


def follow(state: GrammarState, text: str) -> str:
    """As much of a text as a grammar allows."""
    taken: list[int] = []
    for token in TEXTS.tokens_of(text):
        if not state.allowed()[token]:
            break
        state.add(token)
        taken.append(token)
    return TEXTS.tokenizer.decode(taken)


def begin(schema: dict[str, Any], **thought: Any) -> GrammarState:
    return compile_schema(VOCABULARY, schema, **thought).begin()


@pytest.mark.parametrize("text", ['{"x": 3}', '{"x":3,"y":null}', json.dumps({"x": 1, "y": 2})])
def test_what_the_schema_allows_is_allowed_on_one_line(text: str) -> None:
    state = begin(POINT)
    assert follow(state, text) == text and state.may_end
    assert state.allowed().nonzero()[0].tolist() == [VOCABULARY.end_id]


@pytest.mark.parametrize(
    "text", ['{"y"', '{"x": 1.5', '{"x": 1, "z"', "{}", "I say", '{"x"' + "  "]
)
def test_what_the_schema_forbids_is_not(text: str) -> None:
    state = begin(POINT)
    assert follow(state, text) != text and not state.may_end


def test_a_thought_may_come_first_or_must_be_closed() -> None:
    tags = ("<think>", "</think>")
    for text in ('{"x": 3}', '<think>\nIs it {4}?\n</think>\n\n{"x": 3}'):
        state = begin(POINT, after_thought=tags)
        assert follow(state, text) == text and state.may_end
    inside = begin(POINT, after="</think>")
    assert follow(inside, '{"x": 3}') == '{"x": 3}' and not inside.may_end  # a thought so far
    assert follow(inside, ' </think>\n{"x": 3}') == ' </think>\n{"x": 3}' and inside.may_end


def test_two_answers_do_not_disturb_each_other() -> None:
    grammar = compile_schema(VOCABULARY, POINT)
    one, other = grammar.begin(), grammar.begin()
    assert follow(one, '{"x": 3}') and one.may_end
    assert not other.may_end and follow(other, '{"x": 4') == '{"x": 4'


def test_sampled_rows_follow_the_grammar_and_others_stay_as_they_are() -> None:
    base = load_base_model("tiny", next(iter(BUNDLED_MODELS.values())), "float32")
    prompt, grammar = TEXTS.tokens_of("Instruction: Say it.\n"), compile_schema(VOCABULARY, POINT)
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


def test_a_schema_of_great_depth_is_refused() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    with pytest.raises(Refused, match="recursion limit"):
        compile_schema(VOCABULARY, deep)
