"""Without colour, signs mark what is trained on and what is cut."""

from io import BytesIO, TextIOWrapper

import pytest

from tests.preview.test_page import encoding
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.preview.examine import Choice, examine_tokens
from tinkersmith.preview.terminal import sample_lines
from tinkersmith.preview.token_texts import token_texts


def lines(codec: str, limit: int) -> list[str]:
    how = encoding(MAX_SEQUENCE_LENGTH=limit)
    sample = alpaca_sample("Say much.", "", "word " * 12, Source("f.json", 1))
    (view,) = examine_tokens([sample], how, Choice(1)).chosen
    output = TextIOWrapper(BytesIO(), encoding=codec)
    return sample_lines(view, 1, token_texts(how.tokenizer), 400, output)


@pytest.mark.parametrize(
    ("codec", "trained", "cut"), [("utf-8", "⟦⟧", "⟪⟫"), ("ascii", ["[[", "]]"], ["{{", "}}"])]
)
def test_what_is_cut_is_marked_and_named_in_the_legend(
    codec: str, trained: list[str], cut: list[str]
) -> None:
    text = "\n".join(lines(codec, 20))
    legend, _, shown = text.partition("Sample 1")
    assert f"{trained[0]}trained{trained[1]}" in legend
    assert f"{cut[0]}cut: not sent{cut[1]}" in legend
    assert f"{trained[1]}{cut[0]}" in shown
    assert shown.count(cut[0]) == shown.count(cut[1]) == 1
    assert "word" in shown.partition(cut[0])[2].partition(cut[1])[0]


def test_nothing_is_marked_as_cut_where_all_is_sent() -> None:
    shown = "\n".join(lines("utf-8", 1000)).partition("Sample 1")[2]
    assert "⟪" not in shown and shown.count("⟦") == shown.count("⟧") == 1
