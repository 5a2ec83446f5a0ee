"""Texts, thoughts and calls are the same however the tokens of an answer arrive."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.chat_families import FAMILIES, MISTRAL, SPECIAL, Family
from tinkersmith.engine.grammar_text import ThoughtForm
from tinkersmith.engine.server.routes.answer_text import (
    CallSplitter,
    StopCutter,
    ThoughtSplitter,
    TokenText,
    ToolCall,
)
from tinkersmith.prompts.probes import CallForm, TemplateProbe
from tinkersmith.prompts.tags import CLOSE, OPEN

TEXT = "naïve 你好 🙂 <think>"


def decode(tokens: list[int]) -> str:
    """A token for each byte, as byte-level vocabularies have them."""
    return bytes(tokens).decode(errors="replace")


def probe_of(family: Family) -> TemplateProbe:
    named = {"bos_token": family.bos, "eos_token": family.eos or family.end}
    return TemplateProbe(family.source, "2026-01-31", named, SPECIAL, family.end)


def split(form: ThoughtForm, text: str, sizes: list[int]) -> tuple[str, str]:
    """Thought and answer of a text that arrives in pieces of these sizes."""
    splitter, thought, answer, start = ThoughtSplitter(form), "", "", 0
    for size in [*sizes, len(text)]:
        more_thought, more = splitter.add(text[start : start + size])
        thought, answer, start = thought + more_thought, answer + more, start + size
    last_thought, last = splitter.finish()
    return thought + last_thought, answer + last


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=24))
def test_bytes_become_the_text_that_they_are_together(data: bytes) -> None:
    text = TokenText(decode)
    pieces = [text.add(byte) for byte in data]
    assert "".join(pieces) + text.finish() == decode(list(data))


def test_no_piece_of_a_text_ends_within_a_character() -> None:
    text = TokenText(decode)
    pieces = [text.add(byte) for byte in TEXT.encode()]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 3), max_size=8),
)
def test_a_text_is_cut_at_its_first_stop_string(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    cutter, start, given_text = StopCutter(stops), 0, ""
    for size in [*sizes, *[1] * len(text)]:
        given_text += cutter.add(text[start : start + size])
        start += size
        assert text.startswith(given_text)  # nothing is taken back
    given_text += cutter.finish()
    whole = StopCutter(stops)
    expected = whole.add(text) + whole.finish()
    # Pieces find the stop string that is complete first, the whole text the one that begins first.
    assert (cutter.match is None) == (whole.match is None)
    assert given_text.startswith(expected) or not stops
    assert not any(stop in given_text for stop in stops)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_thoughts_are_told_apart(name: str) -> None:
    family = FAMILIES[name]
    form = probe_of(family).answer_form()
    opening, closing = form.opening.strip() or OPEN, form.closing.strip() or CLOSE
    inside = form.carrier != "text" and not family.writes("t", "a").startswith(opening)
    thoughts = ThoughtForm(opening, closing, form.lead, inside)
    for written, expected in (
        (family.writes("Hm.\nSo.", "It is 7."), ("Hm.\nSo.", "It is 7.")),
        (family.writes("", "It is 7.") if not inside else "Hm.", ("", "It is 7.")),
    ):
        if inside and written == "Hm.":
            expected = ("Hm.", "")  # a thought that never ends gives no answer
        assert split(thoughts, written, []) == expected
        assert split(thoughts, written, [1] * len(written)) == expected


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qwen2_5", CallForm("<tool_call>", "</tool_call>", "arguments")),
        ("qwen3", CallForm("<tool_call>", "</tool_call>", "arguments")),
        ("llama3_2", CallForm("", "", "parameters")),
        ("mistral", CallForm("[TOOL_CALLS]", "", "arguments")),
        ("gemma3", None),
        ("deepseek_v3_1", None),  # the name stands outside the JSON
        ("qwen3_5", None),
    ],
)
def test_the_form_of_calls_is_found_by_trying_the_template(
    name: str, form: CallForm | None
) -> None:
    probe = probe_of({**FAMILIES, "mistral": MISTRAL}[name])
    tool_form = probe.tool_form()
    assert probe.call_form(tool_form) == form
    written = probe.written_calls(tool_form, probe.end_of_text)
    assert (written is None) == (form is None)
    assert form is None or written is None or written.first.startswith(form.opening)


HERMES, BARE = CallForm("<tool_call>", "</tool_call>", "arguments"), CallForm("", "", "parameters")
LIST = CallForm("[TOOL_CALLS]", "", "arguments")
ONE = json.dumps({"name": "add", "arguments": {"a": "<tool_call> } 你"}}, ensure_ascii=False)
TWO = json.dumps({"name": "sub", "arguments": {}})
CALLS = [ToolCall("add", '{"a": "<tool_call> } 你"}'), ToolCall("sub", "{}")]
WHOLE = f"<tool_call>\n{ONE}\n</tool_call>"
BARE_TWO = '{"name": "sub", "parameters": {}}; {"name": "sub", "parameters": {}}'
# No JSON that a client could read, or more than Python reads.
ODD_ARGUMENTS = [
    f'<tool_call>{{"name": "add", "arguments": {{"a": {value}}}}}</tool_call>'
    for value in ("NaN", "1e999", r'"\ud800"', "[" * 20_000)
]


@pytest.mark.parametrize(
    ("form", "text", "words", "calls"),
    [
        (HERMES, f"I add.\n<tool_call>\n{ONE}\n</tool_call>", "I add.", CALLS[:1]),
        (
            HERMES,
            f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
            "",
            CALLS,
        ),
        (HERMES, f"<tool_call>\n{ONE}", "", CALLS[:1]),  # the end token came first
        (HERMES, "<tool_call>\n{broken", "<tool_call>\n{broken", []),
        (HERMES, f"Now:\n{WHOLE}\n\nDone.", "Now:\n\nDone.", CALLS[:1]),
        (HERMES, f"{WHOLE}\n\nDone.", "Done.", CALLS[:1]),
        (HERMES, f"{WHOLE}\n<tool_call>\n{TWO[:9]}", f"<tool_call>\n{TWO[:9]}", CALLS[:1]),
        (HERMES, f"I add.\n{WHOLE}\n<tool", "I add.\n<tool", CALLS[:1]),  # cut by its limit
        (HERMES, f"<tool_call>no</tool_call> {WHOLE}", "<tool_call>no</tool_call>", CALLS[:1]),
        (HERMES, f"<tool_call>\n{ONE}\n</tool", f"<tool_call>\n{ONE}\n</tool", []),
        *((HERMES, odd, odd, []) for odd in ODD_ARGUMENTS),
        (HERMES, '<tool_call>{"name": "rm"}', '<tool_call>{"name": "rm"}', []),
        (HERMES, "a < b <tool", "a < b <tool", []),
        (HERMES, "no call \n", "no call \n", []),
        (LIST, f"[TOOL_CALLS][{ONE}, {TWO}]", "", CALLS),
        (BARE, '{"name": "sub", "parameters": {}}', "", CALLS[1:]),
        (LIST, f"[TOOL_CALLS][{ONE}] Done.", "Done.", CALLS[:1]),
        (BARE, '{"a": 1}', '{"a": 1}', []),
        (BARE, BARE_TWO, "", [CALLS[1], CALLS[1]]),
        (BARE, f"{BARE_TWO} Done.", f"{BARE_TWO} Done.", []),
        (BARE, "words {", "words {", []),
        (None, f"<tool_call>{ONE}", f"<tool_call>{ONE}", []),
    ],
)
def test_calls_are_told_apart_and_what_is_none_stays_text(
    form: CallForm | None, text: str, words: str, calls: list[ToolCall]
) -> None:
    for size in (1, 3, len(text)):
        splitter, said = CallSplitter(form, ("add", "sub")), ""
        for start in range(0, len(text), size):
            said += splitter.add(text[start : start + size])
        last, found = splitter.finish()
        assert (said + last, found) == (words, calls)
