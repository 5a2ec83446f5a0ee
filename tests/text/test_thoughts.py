"""A thought at an answer's start is one, in every usual spelling; anywhere else it is text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.prompts.tags import (
    THOUGHT_TAGS,
    is_cut_within_thought,
    leading_empty_thought,
    split_thought,
)
from tinkersmith.text.thoughts import has_thought


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("\n <think>Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("<think>\n\n</think>\n\nYes.", ("", "Yes.")),
        ("<thinking>Hm.</thinking>\nYes.", ("Hm.", "Yes.")),
        ("[THINK]Hm.[/THINK]Yes.", ("Hm.", "Yes.")),
        ("<seed:think>Hm.</seed:think>Yes.", ("Hm.", "Yes.")),
        (
            "<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n\n"
            "<|begin_of_solution|>\nYes.\n<|end_of_solution|>",
            ("Hm.", "Yes."),
        ),
        ("Hm.\n</think>\n\nYes.", ("Hm.", "Yes.")),  # the prompt has opened the thought
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
    ],
)
def test_a_thought_at_the_start_is_split_from_the_answer(text: str, split: tuple[str, str]) -> None:
    assert split_thought(text) == split


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "Close it with </think>, please.",
        "Write <think>a</think>.",
        "<reasoning>Hm.</reasoning><answer>Yes.</answer>",
        "a\n</think>\nb\n</think>\nc",
        "a < b",
    ],
)
def test_what_only_mentions_a_thought_is_text(text: str) -> None:
    assert split_thought(text) is None and not is_cut_within_thought(text)


def test_a_thought_that_never_ends_is_no_thought_but_known() -> None:
    assert split_thought("<think>\nHm") is None
    assert is_cut_within_thought(" <think>\nHm") and is_cut_within_thought("[THINK]x")


def test_only_answers_have_thoughts_and_empty_ones_do_not_count() -> None:
    def sample(*turns: Turn) -> Sample:
        return Sample(turns, Source("a", 1))

    question = Turn("user", "<think>a</think>b")
    assert not has_thought(sample(question, Turn("assistant", "<think>\n</think>a")))
    assert not has_thought(sample(question, Turn("assistant", "a", thought=" \n")))
    assert has_thought(sample(question, Turn("assistant", "a", thought="b")))
    assert has_thought(sample(question, Turn("assistant", "<think>b</think>a"), question))


def test_the_empty_thought_before_an_answer_is_found() -> None:
    assert leading_empty_thought("<think>\n\n</think>\n\nYes") == "<think>\n\n</think>\n\n"
    assert leading_empty_thought("\n</think>\n\nYes") == "\n</think>\n\n"
    assert leading_empty_thought("<think></think>Yes") == "<think></think>"
    assert leading_empty_thought("<think>a</think>Yes") == leading_empty_thought("Yes") == ""


@given(st.lists(st.sampled_from([*THOUGHT_TAGS, "Hm", "\n", " "]), max_size=7).map("".join))
def test_the_quick_looks_at_an_answer_find_what_a_look_at_each_tag_finds(text: str) -> None:
    pairs = list(zip(THOUGHT_TAGS[::2], THOUGHT_TAGS[1::2], strict=True))
    start = text.lstrip()
    opened = [closing for opening, closing in pairs if start[: len(opening)] == opening]
    assert is_cut_within_thought(text) == any(closing not in start for closing in opened)
    closes_only = text.count("</think>") == 1 and "<think>" not in text
    on_its_line = "\n</think>\n" in f"\n{text}\n"
    whole = opened[0] in start if opened else closes_only and on_its_line
    assert (split_thought(text) is not None) == whole
