"""Conversations x templates x settings, each compared with `apply_chat_template` of transformers.

The expected tokens are made apart from the code under test: transformers renders the messages, and
a family says what its model writes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.chat_families import Family
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.templates import choose_template
from tinkersmith.text.thoughts import ThoughtCounts, count_thoughts
from tinkersmith.text.tokenize import encode_samples

HERE = Source("data/matrix.jsonl", 1)
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"key": "中 7"}'},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up a key.",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "a key"}},
            "required": ["key"],
        },
    },
}
THINKING = ("auto", "keep", "strip", "off")
TRAIN_ON = ("all", "last", "all_text")


def _user(text: str) -> Turn:
    return Turn("user", text)


def _said(text: str, thought: str = "", **fields: Any) -> Turn:
    return Turn("assistant", text, thought=thought, **fields)


def _called(thought: str = "") -> Turn:
    return Turn("assistant", "", thought=thought, tool_calls=(CALL,))


_RESULT = Turn("tool", "22 degrees", tool_name="look_up", tool_call_id="call12345")
_THREE = (
    *(_user("How many?"), _said("Four, 四.")),
    *(_user("And\nthen?"), _said("Five\nsix.")),
    *(_user("Done?"), _said("Yes!")),
)
SHAPES: dict[str, tuple[Turn, ...]] = {
    "single": (_user("What is 2 + 2?"), _said("4")),
    "with input": alpaca_sample("Add.", "2 + 2", "4", HERE).turns,
    "system": (Turn("system", "Be brief."), _user("Hello"), _said("Hi.")),
    "three": _THREE,
    "system, three": (Turn("system", "Be brief."), *_THREE),
    "thought": (_user("Why?"), _said("Because.", "First this,\nthen that.")),
    "thought within": (_user("Why?"), _said("<think>\nHmm, 因为.\n</think>\n\nBecause.")),
    "empty thought": (_user("Why?"), _said("<think>\n\n</think>\n\nBecause.")),
    "thoughts in all": (
        *(_user("One?"), _said("1", "t1"), _user("Two?"), _said("2", "t2")),
        *(_user("Three?"), _said("3", "t3")),
    ),
    "thoughts in some": (
        *(_user("One?"), _said("1", "t1"), _user("Two?"), _said("2")),
        *(_user("Three?"), _said("3", "t3"), _user("Four?"), _said("4")),
    ),
    "flags": (
        *(_user("One?"), _said("1", trained=False), _user("Two?"), _said("2", trained=True)),
        *(_user("Three?"), _said("3")),
    ),
    "last flagged off": (*_THREE[:-1], replace(_THREE[-1], trained=False)),
    "tools": (_user("How warm?"), _called(), _RESULT, _said("22.")),
    "tools, thoughts": (
        _user("How warm?"),
        _called("I look."),
        _RESULT,
        _said("22.", "Now I know."),
    ),
    "tools, twice": (
        *(Turn("system", "Be brief."), _user("How warm?"), _called(), _RESULT, _said("22.")),
        *(_user("Again?"), _called(), _RESULT, _said("Still 22.")),
    ),
}


def samples_of(family: Family) -> Iterator[tuple[str, Sample]]:
    """The conversations that a family's template knows."""
    for name, turns in SHAPES.items():
        has_tools = any(turn.role == "tool" for turn in turns)
        if has_tools and not family.has_tools:
            continue
        yield name, Sample(turns, HERE, tools=(TOOL,) if has_tools else ())


def check_family(hf_tokenizer: Any, tokenizer: TextTokenizer, family: Family) -> Counter[str]:
    """Check all conversations in all settings; count what was compared."""
    counts: Counter[str] = Counter()
    for name, sample in samples_of(family):
        thoughts = count_thoughts([sample])
        for thinking in THINKING:
            if _is_refused(tokenizer, thinking, thoughts):
                counts["refused settings"] += 1
                continue
            for train_on in TRAIN_ON:
                where = f"{name}, THINKING {thinking}, TRAIN_ON {train_on}"
                args = (hf_tokenizer, tokenizer, family, sample, thinking, train_on, where, counts)
                is_dropped = family.drops_thought_of_call and keeps(thinking)
                if name == "tools, thoughts" and is_dropped and train_on == "all":
                    with pytest.raises(UserError, match="leaves out what an answer says beside"):
                        _check(*args)
                    counts["refused samples"] += 1
                    continue
                _check(*args)
                counts["cases"] += 1
    return counts


def keeps(thinking: str) -> bool:
    """Whether a value of THINKING leaves thoughts in the data."""
    return thinking in ("auto", "keep")


def _is_refused(tokenizer: TextTokenizer, thinking: str, thoughts: ThoughtCounts) -> bool:
    refused = (thinking == "off" and thoughts.with_thoughts) or (
        thinking == "keep" and not thoughts.with_thoughts
    )
    try:
        choose_template("chat", tokenizer, "some/model", thinking=thinking, thoughts=thoughts)
    except UserError as error:
        assert refused and "THINKING" in str(error)
        return True
    assert not refused
    return False


def _check(
    hf_tokenizer: Any,
    tokenizer: TextTokenizer,
    family: Family,
    sample: Sample,
    thinking: str,
    train_on: str,
    where: str,
    counts: Counter[str],
) -> None:
    template = choose_template(
        "chat", tokenizer, "some/model", thinking=thinking, thoughts=count_thoughts([sample])
    )
    ((_, sequences),) = encode_samples([sample], template, tokenizer, train_on)
    if train_on == "all_text":
        last = _expected(hf_tokenizer, family, sample, len(sample.turns) - 1, thinking, counts)
        _check_all_text(sequences, last, sample, where)
        counts["sequences"] += 1
        return
    expected = [
        _expected(hf_tokenizer, family, sample, place, thinking, counts)
        for place in _answers(sample, train_on)
    ]
    # The fewest sequences that hold each answer as it is written when it is the last one.
    longest: list[list[int]] = []
    for ids, _ in reversed(expected):
        if not any(longer[: len(ids)] == ids for longer in longest):
            longest.append(ids)
    assert [tokens.tolist() for tokens, _ in sequences] == longest, where
    spans = [
        (tokens[:stop].tolist(), stop - start)
        for tokens, of_sequence in sequences
        for start, stop in of_sequence.tolist()
    ]
    assert sorted(spans) == sorted(expected), where
    counts["sequences"] += len(sequences)
    counts["trained answers"] += len(spans)


def _check_all_text(
    sequences: list[tuple[np.ndarray, np.ndarray]],
    last: tuple[list[int], int],
    sample: Sample,
    where: str,
) -> None:
    ((tokens, spans),) = sequences
    ids, written = last
    untrained = sum(turn.trained is False for turn in sample.turns)
    if not untrained:
        assert tokens.tolist() == ids and int(np.diff(spans).sum()) == len(ids), where
    elif sample.turns[-1].trained is False:
        assert tokens.tolist() == ids[: len(ids) - written], where
    else:
        assert tokens.tolist() == ids and 0 < int(np.diff(spans).sum()) < len(ids), where


def _answers(sample: Sample, train_on: str) -> list[int]:
    """The places of the answers that are trained on."""
    answers = [place for place, turn in enumerate(sample.turns) if turn.role == "assistant"]
    return [
        place
        for place in answers
        if sample.turns[place].trained
        or (sample.turns[place].trained is None and (train_on != "last" or place == answers[-1]))
    ]


def _expected(
    hf_tokenizer: Any,
    family: Family,
    sample: Sample,
    place: int,
    thinking: str,
    counts: Counter[str],
) -> tuple[list[int], int]:
    """The ids up to an answer's end, as transformers writes the messages; and how many it is."""
    messages = [_message(turn, family, keeps(thinking)) for turn in sample.turns]
    turn = sample.turns[place]
    thought, answer = _split(turn) if keeps(thinking) else ("", _split(turn)[1])
    think = bool(thought) or thinking == "keep"
    options: dict[str, Any] = {"tools": list(sample.tools) or None, "return_dict": False}
    if family.switch:
        options[family.switch] = think
    prompt = hf_tokenizer.apply_chat_template(
        messages[:place], add_generation_prompt=True, **options
    )
    end = hf_tokenizer.convert_tokens_to_ids("<|call|>" if _calls(turn, family) else family.end)
    whole = hf_tokenizer.apply_chat_template(messages[: place + 1], **options)
    whole = whole[: len(whole) - whole[::-1].index(end)]
    if turn.tool_calls:
        assert whole[: len(prompt)] == prompt
        rest = whole[len(prompt) :]
        return whole, len(rest) - (0 if think else _empty_thought_at(hf_tokenizer, rest))
    text = family.writes(thought, answer)
    if think and not thought and family.switch:  # it learns to leave the thought empty
        text = family.writes("|", answer).replace("|", "", 1)
    if family.drops_thoughts and thought and not hf_tokenizer.decode(prompt).endswith("<think>"):
        text = f"<think>{text}"  # the prompt asks for no thought after a function's result
    written = hf_tokenizer.encode(text + family.end, add_special_tokens=False)
    if not family.drops_thoughts and prompt == whole[: len(prompt)]:
        # Unless THINKING is "keep", these are the tokens that transformers itself gives.
        assert whole == prompt + written or (think and not thought)
        counts["answers as apply_chat_template writes them"] += whole == prompt + written
    return prompt + written, len(written)


def _calls(turn: Turn, family: Family) -> bool:
    return bool(turn.tool_calls) and family.field == "thinking"


def _empty_thought_at(hf_tokenizer: Any, ids: list[int]) -> int:
    for empty in ("<think>\n\n</think>\n\n", "<think></think>"):
        written = hf_tokenizer.encode(empty, add_special_tokens=False)
        if ids[: len(written)] == written:
            return len(written)
    return 0


def _split(turn: Turn) -> tuple[str, str]:
    if "</think>" in turn.text:
        thought, _, answer = turn.text.partition("</think>")
        return thought.removeprefix("<think>").strip("\n"), answer.lstrip("\n")
    return turn.thought, turn.text


def _message(turn: Turn, family: Family, has_thoughts: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.input:
        message["content"] += "\n\n" + turn.input
    if turn.role == "assistant":
        thought, message["content"] = _split(turn)
        if thought and has_thoughts and family.field:
            message[family.field] = thought
        elif thought and has_thoughts and not family.drops_thoughts:
            message["content"] = family.writes(thought, message["content"])
        if turn.tool_calls:
            function = dict(CALL["function"])
            if not family.arguments_as_text:
                function["arguments"] = {"key": "中 7"}
            message["tool_calls"] = [{**CALL, "function": function}]
    if turn.role == "tool":
        message |= {"name": turn.tool_name, "tool_call_id": turn.tool_call_id}
    return message
