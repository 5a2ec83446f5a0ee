"""Cells hold all bytes of a sequence, whole characters, and the turn that they belong to."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from tests.support.chat_families import FAMILIES, make_family_tokenizer
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.preview.cells import Block, blocks_of, cells_of
from tinkersmith.preview.token_texts import token_texts
from tinkersmith.prompts.guards import GUARDED
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.templates import choose_template
from tinkersmith.text.thoughts import count_thoughts
from tinkersmith.text.tokenizer import load_tokenizer

TINY = load_tokenizer(BUNDLED_MODELS["tinkersmith/tiny-math"])
TEXTS = token_texts(TINY)


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer with one token per byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer as Llama 2 and Gemma have it: spaces as ▁, unknown characters as bytes."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    backend = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    folder = tmp_path_factory.mktemp("sentence piece")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return load_tokenizer(folder)


def text_of(tokenizer: TextTokenizer, text: str) -> str:
    tokens = tokenizer.encode(text)
    weights = np.zeros(len(tokens), np.float32)
    return "".join(
        cell.text for cell in cells_of(tokens, weights, len(tokens), token_texts(tokenizer))
    )


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters=GUARDED), max_size=60))
def test_the_cells_of_a_text_are_that_text(text: str) -> None:
    tokens = TINY.encode(text)
    cells = cells_of(tokens, np.ones(len(tokens), np.float32), len(tokens), TEXTS)
    assert "".join(cell.text for cell in cells) == text
    assert [token for cell in cells for token in cell.tokens] == tokens.tolist()
    places = [cell.position for cell in cells]
    assert places == [sum(len(c.tokens) for c in cells[:n]) for n in range(len(cells))]


@pytest.mark.parametrize("text", [" a b  a", "世界 🍁 a", "a\n\nb\n", "é"])
def test_a_sentence_piece_tokenizer_keeps_its_spaces_and_bytes(
    sentence_piece: TextTokenizer, text: str
) -> None:
    assert text_of(sentence_piece, text) == text


def test_a_new_line_that_is_an_added_token_is_no_control_token(
    sentence_piece: TextTokenizer,
) -> None:
    texts = token_texts(sentence_piece)
    assert {texts.added[token] for token in texts.control} == {"</s>"}


def test_tokens_that_share_a_character_are_one_cell(bytes_only: TextTokenizer) -> None:
    tokens = bytes_only.encode("a世🍁")
    cells = cells_of(tokens, np.ones(8, np.float32), 8, token_texts(bytes_only))
    assert [(cell.text, len(cell.tokens)) for cell in cells] == [("a", 1), ("世", 3), ("🍁", 4)]


def test_a_character_that_is_cut_in_half_shows_its_bytes(bytes_only: TextTokenizer) -> None:
    tokens = bytes_only.encode("a世b")
    cells = cells_of(tokens, np.ones(2, np.float32), 2, token_texts(bytes_only))
    assert [(cell.text, cell.cut) for cell in cells] == [
        ("a", False),
        ("⟨E4⟩", False),
        ("⟨B8⟩", True),
        ("⟨96⟩", True),
        ("b", True),
    ]


def test_bytes_that_are_no_text_are_shown_as_bytes(bytes_only: TextTokenizer) -> None:
    half = bytes_only.encode("世")[:1]
    tokens = np.concatenate([half, bytes_only.encode("a"), half])
    cells = cells_of(tokens, np.ones(3, np.float32), 3, token_texts(bytes_only))
    assert [cell.text for cell in cells] == ["⟨E4⟩", "a", "⟨E4⟩"]


# ---- turns


def blocks(
    sample: Sample, template_name: str, train_on: str = "all", sent: int = 10**6
) -> list[Block]:
    template = choose_template(template_name, TINY, "x/y-instruct")
    (rendered,) = template.render_all(sample, train_on)[:1]
    rows = [TINY.encode(piece.text) for piece in rendered.pieces]
    weights = np.concatenate(
        [
            np.full(len(row), piece.trained, np.float32)
            for piece, row in zip(rendered.pieces, rows, strict=True)
        ]
    )
    tokens = np.concatenate(rows)
    return blocks_of(sample, cells_of(tokens, weights, min(sent, len(tokens)), TEXTS), train_on)


def shown(block: Block) -> str:
    return "".join(cell.text for cell in block.cells)


CONVERSATION = Sample(
    (
        Turn("system", "Be kind."),
        Turn("user", "user"),  # also a word of the template's own
        Turn("assistant", "Hello."),
        Turn("user", "How much?", input="1 + 1"),
        Turn("assistant", "<think>\nEasy.\n</think>\n\nTwo."),
    ),
    Source("f.json", 1),
)


def test_each_turn_of_a_chat_is_a_block_with_the_markup_around_it() -> None:
    result = blocks(CONVERSATION, "chat")
    assert [block.role for block in result] == [turn.role for turn in CONVERSATION.turns]
    assert shown(result[0]) == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert shown(result[1]) == "<|im_start|>user\nuser<|im_end|>\n"
    assert shown(result[3]) == "<|im_start|>user\nHow much?\n\n1 + 1<|im_end|>\n"
    assert shown(result[4]).startswith("<|im_start|>assistant\n")


def test_the_turns_of_a_text_template_are_blocks_as_well() -> None:
    result = blocks(CONVERSATION, "instruction")
    assert [block.role for block in result][-2:] == ["user", "assistant"]
    assert shown(result[-1]).startswith("<think>\nEasy.")
    assert all(cell.trained for cell in result[-1].cells)


def test_a_thought_is_marked_and_its_answer_is_not() -> None:
    last = blocks(CONVERSATION, "chat")[-1]
    thought = "".join(cell.text for cell in last.cells if cell.thought)
    assert thought.startswith("<think>") and thought.endswith("</think>")
    assert "Two" in "".join(cell.text for cell in last.cells if not cell.thought)


def test_a_thought_that_a_user_wrote_is_not_marked() -> None:
    sample = Sample(
        (Turn("user", "<think>me</think>"), Turn("assistant", "Yes.")), Source("f.json", 1)
    )
    assert not any(cell.thought for block in blocks(sample, "chat") for cell in block.cells)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=6))
def test_whatever_the_turns_say_no_token_is_lost_or_doubled(texts: list[str]) -> None:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[n % 2], text) for n, text in enumerate(texts[: len(texts) // 2 * 2]))
    sample = Sample(turns, Source(str(Path("f.json")), 1))
    tokens = TINY.encode("".join(f"<|im_start|>{turn.text}<|im_end|>\n" for turn in turns))
    cells = cells_of(tokens, np.zeros(len(tokens), np.float32), len(tokens), TEXTS)
    result = blocks_of(sample, cells)
    ids = [token for block in result for cell in block.cells for token in cell.tokens]
    assert ids == tokens.tolist()


def test_what_a_template_adds_stays_in_the_turn_that_it_belongs_to(tmp_path: Path) -> None:
    make_family_tokenizer(tmp_path, FAMILIES["qwen3"])
    tokenizer = load_tokenizer(tmp_path)
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    function = {"name": "add", "description": "Adds.", "parameters": {}}
    sample = Sample(
        (
            Turn("system", "You add."),
            Turn("user", "1 + 1?"),
            Turn("assistant", "", thought="I call.", tool_calls=(call,)),
            Turn("tool", "2", tool_name="add", tool_call_id="c"),
            Turn("assistant", "It is 2."),
        ),
        Source("f.json", 1),
        tools=({"type": "function", "function": function},),
    )
    template = choose_template("chat", tokenizer, "m", thoughts=count_thoughts([sample]))
    for rendered in template.render_all(sample, "all"):
        tokens = np.concatenate([tokenizer.encode(piece.text) for piece in rendered.pieces])
        weights = np.zeros(len(tokens), np.float32)
        result = blocks_of(sample, cells_of(tokens, weights, len(tokens), token_texts(tokenizer)))
        roles = [turn.role for turn in sample.turns]
        assert [block.role for block in result] == roles[: len(result)]
        assert len(result) in (3, 5)
        assert all(shown(block).startswith("<|im_start|>") for block in result)
        assert "</tools>" in shown(result[0]) and "1 + 1?" in shown(result[1])
        assert "<tool_call>" in shown(result[2])


def conversation(*texts: str) -> Sample:
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return Sample(tuple(turns), Source("f.json", 1))


def roles_and_texts(result: list[Block]) -> list[tuple[str, str]]:
    return [(block.role, shown(block)) for block in result]


@pytest.mark.parametrize("said", ["i", "end", "im", "start"])
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_no_turn_is_found_within_a_control_token(said: str, train_on: str) -> None:
    result = blocks(conversation("Hello.", "Yes?", said, "Done."), "chat", train_on)
    assert [block.role for block in result] == ["user", "assistant", "user", "assistant"]
    assert shown(result[2]) == f"<|im_start|>user\n{said}<|im_end|>\n"


@pytest.mark.parametrize(
    ("train_on", "sent"), [("all", 10**6), ("last", 10**6), ("all", 25), ("all_text", 10**6)]
)
def test_an_end_token_belongs_to_the_answer_and_a_cue_to_the_question(
    train_on: str, sent: int
) -> None:
    sample = conversation("One?", "First.", "Two?", "Second.")
    result = blocks(sample, "instruction", train_on, sent)
    assert [block.role for block in result] == ["user", "assistant", "user", "assistant"]
    assert "Response:" in shown(result[0]) and "Response:" in shown(result[2])
    assert shown(result[1]).strip() == f"First.{TINY.eos_text}"
    assert shown(result[3]).strip() == f"Second.{TINY.eos_text}"


@pytest.mark.parametrize("name", ["chat", "instruction"])
def test_a_dropped_thought_is_not_looked_for_in_later_turns(name: str) -> None:
    turns = (
        Turn("user", "Where?"),
        Turn("assistant", "There.", thought="Bern"),
        Turn("user", "What is Bern?"),
        Turn("assistant", "A city."),
    )
    template = choose_template(name, TINY, "x/y-instruct")
    plain = Sample((turns[0], Turn("assistant", "There."), *turns[2:]), Source("f.json", 1))
    (rendered,) = template.render_all(plain, "last")
    tokens = np.concatenate([TINY.encode(piece.text) for piece in rendered.pieces])
    cells = cells_of(tokens, np.zeros(len(tokens), np.float32), len(tokens), TEXTS)
    with_thought = blocks_of(Sample(turns, Source("f.json", 1)), cells, "last")
    assert roles_and_texts(with_thought) == roles_and_texts(blocks_of(plain, cells, "last"))
    assert "What is Bern?" in shown(with_thought[2])


def test_text_that_the_tokenizer_normalises_is_found() -> None:
    said = "Cafe\u0301?"
    tokens = TINY.encode(
        "<|im_start|>user\nCaf\u00e9?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>"
    )
    cells = cells_of(tokens, np.zeros(len(tokens), np.float32), len(tokens), TEXTS)
    result = blocks_of(conversation(said, "Yes"), cells)
    assert [block.role for block in result] == ["user", "assistant"]


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize(
    ("family", "calls"),
    [
        *(("qwen3", 1), ("qwen3", 2), ("gptoss", 1), ("gptoss", 2)),
        *(("deepseek_v3_1", 1), ("llama3_2", 1)),
    ],
)
def test_a_result_is_not_found_within_the_arguments_of_its_call(
    tmp_path: Path, family: str, calls: int, train_on: str
) -> None:
    make_family_tokenizer(tmp_path, FAMILIES[family])
    tokenizer = load_tokenizer(tmp_path)
    call = {"type": "function", "function": {"name": "find", "arguments": {"city": "Bern"}}}
    sample = Sample(
        (
            Turn("user", "Where?"),
            Turn("assistant", "", tool_calls=(call,) * calls),
            Turn("tool", "Bern", tool_name="find"),
            Turn("assistant", "There."),
        ),
        Source("f.json", 1),
    )
    template = choose_template("chat", tokenizer, "m")
    rendered = template.render_all(sample, train_on)[0]
    rows = [tokenizer.encode(piece.text) for piece in rendered.pieces]
    weights = np.concatenate(
        [
            np.full(len(row), piece.trained, np.float32)
            for piece, row in zip(rendered.pieces, rows, strict=True)
        ]
    )
    tokens = np.concatenate(rows)
    cells = cells_of(tokens, weights, len(tokens), token_texts(tokenizer))
    result = blocks_of(sample, cells, train_on)
    assert [block.role for block in result] == ["user", "assistant", "tool", "assistant"]
    assert "Bern" in shown(result[1]) and "Bern" in shown(result[2])


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize(
    ("family", "name"),
    [("qwen3_5", "instruction"), ("deepseek_v3_1", "instruction"), ("deepseek_v3_1", "chat")],
)
def test_a_thought_is_one_turn_with_its_answer(
    tmp_path: Path, family: str, name: str, train_on: str
) -> None:
    make_family_tokenizer(tmp_path, FAMILIES[family])
    tokenizer = load_tokenizer(tmp_path)
    answers = ("<think>\nBern\n</think>\n\nBern", "<think>\nBern Bern\n</think>\n\nBern")
    sample = conversation("user", answers[0], "assistant", answers[1])
    template = choose_template(name, tokenizer, "m", thoughts=count_thoughts([sample]))
    rendered = template.render_all(sample, train_on)[0]
    rows = [tokenizer.encode(piece.text) for piece in rendered.pieces]
    trained = [np.full(len(r), p.trained) for p, r in zip(rendered.pieces, rows, strict=True)]
    tokens, weights = np.concatenate(rows), np.concatenate(trained).astype(np.float32)
    cells = cells_of(tokens, weights, len(tokens), token_texts(tokenizer))
    result = blocks_of(sample, cells, train_on)
    assert [block.role for block in result] == ["user", "assistant", "user", "assistant"]
    assert "<think>" not in shown(result[0]) + (shown(result[2]) if name != "chat" else "")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab im_<|>end\n", min_size=1, max_size=8), min_size=2, max_size=6),
    st.sampled_from(["chat", "instruction"]),
    st.sampled_from(["all", "last"]),
)
@example([" ", " ", "<", "<"], "chat", "all")
@example([" ", " ", "<", "<"], "instruction", "all")
def test_only_answers_hold_trained_tokens(texts: list[str], name: str, train_on: str) -> None:
    sample = conversation(*texts[: len(texts) // 2 * 2])
    for block in blocks(sample, name, train_on):
        assert block.role == "assistant" or not any(cell.trained for cell in block.cells)


@pytest.mark.parametrize("name", ["chat", "instruction"])
def test_an_answer_before_the_first_turn_that_is_found_has_a_block(name: str) -> None:
    result = blocks(conversation(" ", " ", "Next?", "Yes."), name)  # nobody can look for spaces
    assert [block.role for block in result] == ["", "assistant", "user", "assistant"]
    assert shown(result[1]).strip().endswith(("<|im_end|>", TINY.eos_text))
    assert "Next?" in shown(result[2]) and "Yes." in shown(result[3])
