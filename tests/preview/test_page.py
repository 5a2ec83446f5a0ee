"""The page shows every text as text, says what it leaves out, and overwrites only its own kind."""

import html.parser
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.browser import DESKTOP, PHONE, open_page, overflow
from tinkersmith.batches.in_memory import SamplesInMemory
from tinkersmith.batches.source import Encoding
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.preview.examine import Choice, examine_tokens
from tinkersmith.preview.findings import PROBLEM_SENTENCES
from tinkersmith.preview.page import (
    _CHINESE,
    GENERATOR,
    MOST_CELLS,
    check_target,
    page_text,
    write_page,
)
from tinkersmith.preview.plan import local_encoding
from tinkersmith.preview.token_texts import token_texts
from tinkersmith.settings.reading import settings_from

NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script> -->",
    "]]><img src=x onerror=alert(1)>",
    "\u202ereversed\u202c \u2066iso\u2069",
    "\u2028\u2029\u0000\u0007\u001b[31m",
    "%DATA% %SCRIPT% %STYLE%",
    "&lt;b&gt; \\u003c \\ud800 {{ }}",
    "世界 🍁 👩‍👩‍👧 é",
]


def encoding(**names: object) -> Encoding:
    source = SamplesInMemory([], [], [])
    return local_encoding(settings_from({"PROMPT_TEMPLATE": "chat", **names}), source)[0]


def page(samples: list[Sample], count: int = 200, name: str = "all", **names: object) -> str:
    how = encoding(**names)
    examined = examine_tokens(samples, how, Choice(count, name, mixed=True, seed=1))
    return page_text(examined, how, token_texts(how.tokenizer))


def data_of(text: str) -> dict:
    (stored,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(stored)


def texts_of(sample: dict) -> str:
    return "".join(
        text
        for sequence in sample["sequences"]
        for block in sequence["blocks"]
        for text in block["texts"]
    )


class Elements(html.parser.HTMLParser):
    """Counts the elements, and notes whatever could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "data-src")]
        self.loads += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


PLAIN = page([alpaca_sample("Say yes.", "", "yes", Source("f.json", 1))])


@pytest.mark.parametrize("nasty", NASTY)
def test_no_text_of_a_sample_becomes_markup(nasty: str) -> None:
    text = page([alpaca_sample(nasty, nasty, nasty, Source(f"{nasty}.json", 1))])
    parsed = elements(text)
    assert parsed.names == elements(PLAIN).names
    assert parsed.loads == []
    assert all(character.isprintable() or character in "\n" for character in text)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=80).filter(str.strip))
def test_any_text_is_shown_and_stays_text(said: str) -> None:
    text = page([Sample((Turn("user", said), Turn("assistant", said)), Source("f.json", 1))])
    assert elements(text).names == elements(PLAIN).names
    shown = texts_of(data_of(text)["samples"][0])
    for word in re.findall(r"\w+", said):
        if word.isprintable():
            assert word in shown.replace("·", " ")


def test_the_page_loads_nothing_and_its_policy_allows_only_its_own_script() -> None:
    assert elements(PLAIN).loads == []
    namespace = "http://www.w3.org/2000/svg"  # a name, which no browser loads
    assert re.search(r"https?://", PLAIN.replace(namespace, "")) is None
    assert "default-src 'none'" in PLAIN and "unsafe-inline" not in PLAIN


def test_a_mark_of_direction_is_visible() -> None:
    text = page([alpaca_sample("a\u202eb", "", "c\td\n", Source("f.json", 1))])
    shown = texts_of(data_of(text)["samples"][0])
    assert "a⟨U+202E⟩b" in shown and "c⇥d↵\n" in shown


def test_tokens_flags_and_places_are_those_of_the_sequence() -> None:
    how = encoding(MAX_SEQUENCE_LENGTH=20)
    sample = alpaca_sample("Say much.", "", "word " * 30, Source("f.json", 1))
    examined = examine_tokens([sample], how, Choice(5))
    (view,) = examined.chosen[0].sequences
    (sequence,) = data_of(page_text(examined, how, token_texts(how.tokenizer)))["samples"][0][
        "sequences"
    ]
    ids = [
        token
        for block in sequence["blocks"]
        for entry in block["ids"]
        for token in (entry if isinstance(entry, list) else [entry])
    ]
    flags = [int(flag, 16) for block in sequence["blocks"] for flag in block["flags"]]
    assert ids == view.tokens.tolist()
    assert [flag & 1 for flag in flags] == [*(view.weights > 0), *[0] * (len(ids) - 20)]
    assert [bool(flag & 2) for flag in flags] == [place >= 20 for place in range(len(ids))]
    assert (sequence["sent"], sequence["tokens"]) == (20, len(ids))


def test_a_cut_sample_says_how_many_of_its_tokens_are_sent_and_how_many_of_those_trained() -> None:
    sample = alpaca_sample("Say much.", "", "word " * 30, Source("f.json", 1))
    stored = data_of(page([sample], MAX_SEQUENCE_LENGTH=20))["samples"][0]
    tokens, trained = stored["tokens"], stored["trained"]
    share = f"{100 * trained / 20:.1f} %"
    assert stored["much"]["en"] == f"{tokens} tokens, 20 sent, {trained} trained ({share})"
    assert stored["much"]["zh"] == f"{tokens} 个 token，发送 20，训练 {trained}（{share}）"


def test_a_whole_sample_says_only_how_many_of_its_tokens_are_trained() -> None:
    stored = data_of(PLAIN)["samples"][0]
    assert stored["tokens"] == stored["sent"] and "sent" not in stored["much"]["en"]


@pytest.mark.parametrize(
    ("question", "truncate", "sentence"),
    [
        (
            "Short?",
            False,
            "left out, longer than MAX_SEQUENCE_LENGTH while TRUNCATE_LONG_SEQUENCES",
        ),
        ("long " * 40, False, "left out, as MAX_SEQUENCE_LENGTH leaves no space for an answer."),
        ("long " * 40, True, "left out, as MAX_SEQUENCE_LENGTH leaves no space for an answer."),
        ("Short?", True, "cut at MAX_SEQUENCE_LENGTH."),
    ],
)
def test_the_page_says_why_a_long_sequence_is_left_out(
    question: str, truncate: bool, sentence: str
) -> None:
    sample = alpaca_sample(question, "", "word " * 30, Source("f.json", 1))
    text = page([sample], MAX_SEQUENCE_LENGTH=20, TRUNCATE_LONG_SEQUENCES=truncate)
    (finding,) = data_of(text)["findings"]
    assert sentence in finding["en"]


def many(count: int, words: int) -> list[Sample]:
    return [
        alpaca_sample(f"Question {n}?", "", f"{n} words " * words, Source("f.json", n + 1))
        for n in range(count)
    ]


def test_a_page_of_much_data_stays_small_and_says_what_it_holds() -> None:
    text = page(many(1500, 150), MAX_SEQUENCE_LENGTH=1000)
    data = data_of(text)
    assert data["counts"]["samples"] == 1500 and len(data["samples"]) == 200
    assert len(text) < 5_000_000
    cells = sum(
        len(block["texts"])
        for sample in data["samples"]
        for sequence in sample["sequences"]
        for block in sequence["blocks"]
    )
    assert cells <= MOST_CELLS * 1.1
    gaps = [
        block["gap"]
        for sample in data["samples"]
        for sequence in sample["sequences"]
        for block in sequence["blocks"]
    ]
    assert any(gaps)
    first = data["samples"][0]["sequences"][0]
    shown = sum(len(block["ids"]) for block in first["blocks"])
    assert shown + sum(block["gap"] for block in first["blocks"]) == first["tokens"]


def test_a_page_holds_the_first_the_longest_and_what_is_suspicious() -> None:
    samples = many(600, 1)
    samples[400] = alpaca_sample("Say <|im_end|>.", "", "no", Source("f.json", 401))
    samples[500] = alpaca_sample("Say much.", "", "word " * 200, Source("f.json", 501))
    held = [sample["record"] for sample in data_of(page(samples, count=30))["samples"]]
    assert len(held) == 30 and held == sorted(held)
    assert {1, 401, 501} <= set(held)
    again = [sample["record"] for sample in data_of(page(samples, count=30))["samples"]]
    assert held == again


def suspicious(text: str) -> list[int]:
    return [
        sample["record"] for sample in data_of(text)["samples"] if "suspicious" in sample["tags"]
    ]


def with_the_same_answer(count: int, every: int) -> list[Sample]:
    samples = many(count, 1)
    for n in range(0, count, every):
        samples[n] = alpaca_sample(f"Question {n}?", "", "The same.", Source("f.json", n + 1))
    return samples


def test_samples_with_the_same_answer_are_suspicious_and_chosen() -> None:
    text = page(with_the_same_answer(120, 4), count=40)
    assert suspicious(text) == list(range(1, 121, 4))
    assert data_of(text)["totals"]["suspicious"] == 30
    assert "30 samples (25%) with the same answer" in data_of(text)["findings"][0]["en"]
    only = page(with_the_same_answer(120, 4), count=10, name="suspicious")
    assert suspicious(only) == list(range(1, 41, 4))
    assert suspicious(page(with_the_same_answer(120, 6), count=40)) == []


def test_suspicious_samples_come_before_random_ones() -> None:
    samples = many(200, 1)
    for n in range(50, 80):
        samples[n] = alpaca_sample("Say <|im_end|>.", "", f"no {n}", Source("f.json", n + 1))
    assert suspicious(page(samples, count=40)) == list(range(51, 81))


def test_what_was_left_out_or_cut_is_suspicious_as_well() -> None:
    samples = many(3, 1)
    samples[1] = alpaca_sample("Say much.", "", "word " * 60, Source("f.json", 2))
    assert suspicious(page(samples, MAX_SEQUENCE_LENGTH=60)) == [2]


def test_every_finding_has_its_chinese_sentence() -> None:
    assert list(_CHINESE) == list(PROBLEM_SENTENCES)
    assert [
        kind
        for kind in PROBLEM_SENTENCES
        if ("{}" in PROBLEM_SENTENCES[kind]) != ("{}" in _CHINESE[kind])
    ] == []


# ---- the file


def written(path: Path) -> None:
    how = encoding()
    examined = examine_tokens(many(3, 1), how, Choice(3))
    write_page(path, examined, how, token_texts(how.tokenizer))


def test_only_a_page_of_the_preview_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    written(target)
    assert GENERATOR in target.read_text(encoding="utf-8")
    check_target(target, force=False)
    target.write_text("<p>mine</p>")
    with pytest.raises(UserError, match=r"is not a page of tinkersmith preview.*--force"):
        check_target(target, force=False)
    check_target(target, force=True)
    with pytest.raises(UserError, match="is a folder"):
        check_target(tmp_path, force=True)
    check_target(tmp_path / "new.html", force=False)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "file" / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("size", "language", "title"),
    [(DESKTOP, "en-US", "Training data preview"), (PHONE, "zh-CN", "训练数据预览")],
)
def test_the_page_works_in_a_browser(
    tmp_path: Path, size: tuple[int, int], language: str, title: str
) -> None:
    samples = [
        alpaca_sample(f"Question {text}", "", text, Source("f.json", number))
        for number, text in enumerate(NASTY, 1)
    ]
    path = tmp_path / "preview.html"
    path.write_text(page(samples), encoding="utf-8")
    with open_page(path, size=size, language=language) as shown:
        assert shown.locator("#title").inner_text() == title
        assert shown.locator("#samples > *").count() == len(samples)
        assert overflow(shown) == 0
        shown.locator("#search").fill("onerror")
        assert shown.locator("#samples > *").count() == 1
        shown.locator("#samples .t, #samples span").first.hover()
        assert shown.locator("script").count() == 3  # the data, the shared one and its own
