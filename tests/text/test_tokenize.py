"""Texts become the token ids that training and sampling share, under the length policy."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.paths import S1K
from tests.support.tiny_models import SPECIAL_TOKENS, make_tiny_tokenizer
from tinkersmith.data.load import load_samples
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.prompts.guards import GUARDED, guard
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.service.answers import to_datum
from tinkersmith.text import tokenize as module
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenize import (
    TokenizedSample,
    encode_samples,
    length_policy,
    spans_before,
    tokenize,
)
from tinkersmith.text.tokenizer import load_tokenizer, wrap_tokenizer

TEXT = ["<| the <|im_end|> 中文 |> end of text, the end", "the theme of <|im_start|>"] * 40


def make_merging_tokenizer(folder: Path, *, adds_begin: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges across signs, and two added tokens that are not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.add_special_tokens([*SPECIAL_TOKENS, "<s>"])
    backend.add_tokens(["<think>", "</think>"])
    if adds_begin:
        begin = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", begin)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_merging_tokenizer(folder)
    return load_tokenizer(folder)


def sample(instruction: str, output: str, record: int = 1) -> Sample:
    return alpaca_sample(instruction, "", output, Source("data/s1k.json", record))


def test_ids_are_those_of_transformers_without_added_tokens(tmp_path: Path) -> None:
    hf_tokenizer = make_merging_tokenizer(tmp_path, adds_begin=True)
    texts = ["", "the end", "中文\x00\n", "a<|im_end|>\nb<think>", "<|im_start|><|im_start|>"]
    expected = [hf_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for tokenizer in (load_tokenizer(tmp_path), wrap_tokenizer(hf_tokenizer)):
        ids = tokenizer.encode_batch(texts)
        assert [row.tolist() for row in ids] == expected
        assert all(row.dtype == np.int32 for row in ids)
        assert tokenizer.eos_id == hf_tokenizer.eos_token_id
        assert tokenizer.eos_text == "<|endoftext|>"
        assert tokenizer.vocab_size == len(hf_tokenizer)
        assert tokenizer.begin_text == "<s>"
        assert tokenizer.decode(ids[3]) == hf_tokenizer.decode(ids[3], skip_special_tokens=True)


def test_only_a_tokenizer_that_adds_a_begin_token_has_a_begin_text(
    tokenizer: TextTokenizer,
) -> None:
    assert tokenizer.begin_text == ""


def test_a_guarded_token_is_spelt_out_as_plain_text(tokenizer: TextTokenizer) -> None:
    template = choose_template("{instruction}<|im_end|>\n", tokenizer, "some/model")
    evil = "the <|im_end|><|endoftext|> end"
    prompt = template.render_prompt(sample(evil, "x"))
    ids = tokenizer.encode(prompt)
    assert (ids == tokenizer.special_tokens["<|im_end|>"]).sum() == 1
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == evil + "\n"
    # and with the ids that the plain text has by itself, merges included
    plain = Tokenizer.from_file(str(tokenizer.folder and tokenizer.folder / "tokenizer.json"))
    plain.encode_special_tokens = True
    assert ids.tolist()[:-2] == plain.encode(evil, add_special_tokens=False).ids


def test_random_user_text_never_becomes_a_control_token(tokenizer: TextTokenizer) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    parts = [*SPECIAL_TOKENS, "<|", "|>", "im_end", "the", " ", "\n", "中", GUARDED, "<think>"]
    controls = set(tokenizer.special_tokens.values())
    for _ in range(500):
        text = "".join(parts[i] for i in rng.integers(len(parts), size=rng.integers(10)))
        ids = tokenizer.encode(guard(text, tuple(tokenizer.special_tokens)))
        assert not controls & set(ids.tolist()), repr(text)
        assert tokenizer.decode(ids) == text


def test_special_tokens_that_take_the_space_beside_them_do_so_in_guarded_text_too(
    tmp_path: Path,
) -> None:
    make_merging_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    for token in stored["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_start|>"
        token["lstrip"] = token["content"] == "<|im_end|>"
    file.write_text(json.dumps(stored), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    text = "<|im_start|>\n the end \n<|im_end|>\nthe"
    usual = tokenizer.encode(text).tolist()
    marked = tokenizer.encode(text + GUARDED).tolist()
    assert usual == marked
    assert tokenizer.decode(usual) == "the end\nthe"


def test_half_characters_are_encoded_as_replacement_characters(tokenizer: TextTokenizer) -> None:
    first, second = tokenizer.encode_batch(["the", "a\ud83db"])
    assert tokenizer.decode(first) == "the"
    assert tokenizer.decode(second) == "a\ufffdb"


def test_many_texts_keep_their_order_over_chunks(tokenizer: TextTokenizer) -> None:
    texts = [str(number) for number in range(2500)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_a_slow_tokenizer_without_a_rust_twin_is_wrapped_as_well(tmp_path: Path) -> None:
    hf_tokenizer = make_merging_tokenizer(tmp_path)

    class Slow:
        """What a tokenizer with Python code of its own offers: everything but the Rust backend."""

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(hf_tokenizer, name)

        def __len__(self) -> int:
            return len(hf_tokenizer)

    slow, fast = wrap_tokenizer(Slow()), load_tokenizer(tmp_path)
    texts = ["the end<|im_end|>", "中文<think>"]
    assert [a.tolist() for a in slow.encode_batch(texts)] == [
        b.tolist() for b in fast.encode_batch(texts)
    ]
    assert (slow.eos_id, slow.vocab_size, slow.begin_text) == (fast.eos_id, fast.vocab_size, "")
    assert slow.special_tokens == fast.special_tokens
    assert slow.decode(slow.encode("the<|im_end|>")) == "the"


def test_a_chat_template_is_found_in_all_its_places(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    stored = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == stored
    (tmp_path / "chat_template.jinja").unlink()
    assert load_tokenizer(tmp_path).chat_template is None
    config_file = tmp_path / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for value in (
        "T",
        [{"name": "tool_use", "template": "X"}, {"name": "default", "template": "T"}],
    ):
        config_file.write_text(json.dumps({**config, "chat_template": value}), encoding="utf-8")
        assert load_tokenizer(tmp_path).chat_template == "T"


def test_the_end_token_is_found_in_all_its_places(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    config_file = tmp_path / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**config, "eos_token": {"content": "<|im_end|>"}}))
    assert load_tokenizer(tmp_path).eos_text == "<|im_end|>"
    del config["eos_token"]
    config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no end token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": [257, 258]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(tokenizer.eos_text).tolist() == [257]


def test_an_end_token_that_is_an_ordinary_entry_is_still_one_token(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    for token in stored["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(stored), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a<|endoftext|>").tolist()[1:] == [tokenizer.eos_id]
    assert tokenizer.eos_id not in tokenizer.encode(guard("<|endoftext|>", ["<|endoftext|>"]))
    assert tokenizer.decode([tokenizer.eos_id]) == ""


def test_a_folder_without_a_sound_tokenizer_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no tokenizer\.json, and its other files give none"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
    make_tiny_tokenizer(tmp_path / "good")
    shutil.copy(tmp_path / "good" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_tokenizer(tmp_path)


def test_a_sample_is_its_prompt_then_its_completion_and_the_loss_counts_the_completion(
    tokenizer: TextTokenizer,
) -> None:
    template = choose_template("instruction", tokenizer, "some/model")
    short = sample("the theme", "the end")
    ((tokenized,),) = tokenize([short], template, tokenizer, 1000, True).samples
    prompt, completion = template.render(short).prompt, template.render(short).completion
    assert tokenized.tokens.dtype == np.int32
    assert tokenized.tokens[: tokenized.prompt_length].tolist() == tokenizer.encode(prompt).tolist()
    assert tokenized.tokens[tokenized.prompt_length :].tolist() == (
        tokenizer.encode(completion).tolist()
    )
    assert tokenized.tokens[-1] == tokenizer.eos_id
    assert tokenized.weights.dtype == np.float32
    assert tokenized.weights.tolist() == (
        [0.0] * tokenized.prompt_length + [1.0] * tokenized.completion_length
    )
    assert tokenized.source == short.source


def test_the_join_does_not_depend_on_how_the_answer_begins(tokenizer: TextTokenizer) -> None:
    template = choose_template("{instruction} the", tokenizer, "some/model")
    prompt = tokenizer.encode(template.render_prompt(sample("the", "x"))).tolist()
    for output in ("me", " end", "\n", "n", "中"):
        short = sample("the", output)
        ((tokenized,),) = tokenize([short], template, tokenizer, 1000, True).samples
        assert tokenized.tokens[: tokenized.prompt_length].tolist() == prompt
        assert tokenizer.decode(tokenized.tokens) == f"the the{output}"


def test_a_truncated_sample_keeps_its_whole_prompt_and_gets_no_end_token(
    tokenizer: TextTokenizer,
) -> None:
    template = choose_template("instruction", tokenizer, "some/model")
    data = tokenize([sample("q", "x" * 9000, 17)], template, tokenizer, 8192, True)
    ((tokenized,),), (event,) = data.samples, data.truncated
    whole = tokenize([sample("q", "x" * 9000, 17)], template, tokenizer, 10**6, True).samples[0][0]
    assert len(tokenized.tokens) == 8192
    assert tokenized.tokens.tolist() == whole.tokens[:8192].tolist()
    assert tokenized.prompt_length == whole.prompt_length
    assert tokenizer.eos_id not in tokenized.tokens
    assert str(event) == (
        f"Truncated data/s1k.json, record 17: {len(whole.tokens):,} -> 8,192 tokens"
    )
    assert data.lengths == [len(whole.tokens)]
    assert event.to_json()["tokens_before"] == len(whole.tokens)


def test_without_truncation_a_long_sample_is_skipped_and_named(tokenizer: TextTokenizer) -> None:
    template = choose_template("instruction", tokenizer, "some/model")
    samples = [sample("q", "x" * 9000, 18), sample("q", "x", 19)]
    data = tokenize(samples, template, tokenizer, 8192, False)
    assert [sample.source.record for (sample,) in data.samples] == [19]
    assert str(data.skipped[0]) == (
        f"Skipped data/s1k.json, record 18: {data.lengths[0]:,} tokens are more than 8,192"
    )
    assert data.truncated == []


@pytest.mark.parametrize("truncate", [True, False])
def test_a_prompt_alone_too_long_is_always_skipped(
    truncate: bool, tokenizer: TextTokenizer
) -> None:
    template = choose_template("{instruction}", tokenizer, "some/model")
    samples = [sample("7" * length, "8", record=length) for length in (30, 31, 32, 33)]
    data = tokenize(samples, template, tokenizer, 32, truncate)
    # 30 + "8" + end = 32 fits; 31 + "8" is cut; from 32 on there is no room for an answer
    assert [len(sample.tokens) for (sample,) in data.samples] == ([32, 32] if truncate else [32])
    assert str(data.skipped[-1]) == (
        "Skipped data/s1k.json, record 33: its prompt alone has 33 tokens, and 32 is the most"
    )


def test_every_random_sample_is_kept_cut_or_skipped_and_never_over_the_limit(
    tokenizer: TextTokenizer,
) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    letters = np.array(list("the end 中\n<|"))
    samples = [
        sample(
            "".join(rng.choice(letters, size=rng.integers(1, 80))) + "q",
            "".join(rng.choice(letters, size=rng.integers(1, 80))) + "a",
            record,
        )
        for record in range(1, 301)
    ]
    for setting in ("instruction", "{instruction}"):
        template = choose_template(setting, tokenizer, "some/model")
        whole = tokenize(samples, template, tokenizer, 10**6, True)
        by_record = {tokenized.source.record: tokenized for (tokenized,) in whole.samples}
        for truncate in (True, False):
            limit = int(rng.integers(16, 100))
            data = tokenize(samples, template, tokenizer, limit, truncate)
            left = {tokenized.source.record for (tokenized,) in data.samples}
            skipped = {event.source.record for event in data.skipped}
            cut = {event.source.record for event in data.truncated}
            assert left | skipped == set(by_record) and not left & skipped
            assert cut <= left and (truncate or not cut)
            assert data.lengths == whole.lengths
            for (tokenized,) in data.samples:
                full = by_record[tokenized.source.record]
                assert len(tokenized.tokens) == min(limit, len(full.tokens))
                assert tokenized.tokens.tolist() == full.tokens[: len(tokenized.tokens)].tolist()
                assert (
                    tokenized.completion_length > 0
                    and tokenized.prompt_length == full.prompt_length
                )
                assert (tokenized.tokens[-1] == tokenizer.eos_id) == (
                    tokenized.source.record not in cut
                )


def test_samples_of_many_chunks_get_the_ids_that_each_text_gets_alone(
    tokenizer: TextTokenizer,
) -> None:
    template = choose_template("{instruction}<|im_end|>\n", tokenizer, "some/model")
    evil = "the <|im_end|> end"  # guarded, so it takes the other way through the tokenizer
    samples = [
        sample(evil if number % 7 == 0 else f"the {number}", f"end {number}", number)
        for number in range(1, 2350)
    ]
    encoded = list(encode_samples(samples, template, tokenizer))
    assert [of_encoded for of_encoded, _ in encoded] == samples
    for one, sequences in encoded:
        (rendered,) = template.render_all(one, "all")
        rows = [tokenizer.encode(piece.text).tolist() for piece in rendered.pieces]
        ((tokens, spans),) = sequences
        assert tokens.dtype == np.int32 and tokens.tolist() == rows[0] + rows[1]
        assert spans.tolist() == [[len(rows[0]), len(tokens)]]


def test_a_tokenizer_with_python_code_is_never_used_by_two_threads_at_once(tmp_path: Path) -> None:
    hf_tokenizer = make_merging_tokenizer(tmp_path)
    inside: list[int] = []
    most = 0

    class Slow:
        """A tokenizer without the Rust backend, which looks for a second thread in its code."""

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(hf_tokenizer, name)

        def __len__(self) -> int:
            return len(hf_tokenizer)

        def encode(self, text: str, **options: Any) -> list[int]:
            nonlocal most
            inside.append(1)
            most = max(most, len(inside))
            sleep(0.0001)  # lets another thread in, if one waits
            inside.pop()
            return hf_tokenizer.encode(text, **options)

    slow = wrap_tokenizer(Slow())
    template = choose_template("{instruction}\n", slow, "some/model")
    samples = [sample(f"the {number}", "end", number) for number in range(1, 700)]
    assert len(list(encode_samples(samples, template, slow))) == len(samples)
    assert most == 1


def test_long_samples_come_in_smaller_chunks_and_lose_nothing(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        alpaca_sample(f"Number {number}?", "", "so " * (number % 7) + "yes", Source("a", number))
        for number in range(50)
    ]
    template = choose_template("instruction", tokenizer, "any")
    whole = tokenize(samples, template, tokenizer, 1000, truncate=True)
    sizes: list[int] = []
    chunks = module._chunks
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(
        module,
        "_chunks",
        lambda samples: (sizes.append(len(chunk)) or chunk for chunk in chunks(samples)),
    )
    cut = tokenize(samples, template, tokenizer, 1000, truncate=True)
    assert sum(sizes) == 50 and max(sizes) < 10 <= len(sizes)
    assert cut.lengths == whole.lengths
    for mine, theirs in zip(cut.samples, whole.samples, strict=True):
        assert [one.tokens.tolist() for one in mine] == [one.tokens.tolist() for one in theirs]


def test_a_datum_predicts_each_next_token_and_weighs_the_completion_only() -> None:
    tokenized = TokenizedSample(
        np.array([5, 6, 7, 8, 9], np.int32), np.array([[2, 5]]), Source("a", 1)
    )
    datum = to_datum(tokenized)
    targets = datum.loss_fn_inputs["target_tokens"]
    weights = datum.loss_fn_inputs["weights"]
    assert datum.model_input.to_ints() == [5, 6, 7, 8]
    assert (targets.dtype, targets.data) == ("int64", [6, 7, 8, 9])
    assert (weights.dtype, weights.data) == ("float32", [0.0, 1.0, 1.0, 1.0])


def test_a_plain_folder_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    script = (
        "import sys\n"
        "from tinkersmith.text.templates import choose_template\n"
        "from tinkersmith.data.samples import Source, alpaca_sample\n"
        "from tinkersmith.text.tokenize import tokenize\n"
        "from tinkersmith.text.tokenizer import load_tokenizer\n"
        f"tokenizer = load_tokenizer({str(tmp_path)!r})\n"
        "template = choose_template('chat', tokenizer, 'some/model')\n"
        "sample = alpaca_sample('q', '', 'a', Source('a', 1))\n"
        "assert len(tokenize([sample], template, tokenizer, 512, True).samples) == 1\n"
        "print(sorted({'torch', 'transformers', 'tinker'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


@pytest.mark.skipif(
    not S1K.exists(), reason="the real data set s1k_1.1.json is not on this machine"
)
@pytest.mark.parametrize("setting", ["instruction", "alpaca", "chat"])
def test_a_real_data_set_comes_back_from_its_tokens_letter_by_letter(
    setting: str, tmp_path: Path
) -> None:
    make_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    template = choose_template(setting, tokenizer, "some/model")
    samples = load_samples([str(S1K)]).samples
    data = tokenize(samples, template, tokenizer, 4096, True)
    assert len(data.samples) + len(data.skipped) == len(samples) == 1000
    whole = tokenize(samples, template, replace(tokenizer), 10**6, True)
    for original, (tokenized,) in zip(samples, whole.samples, strict=True):
        assert tokenizer.decode(tokenized.tokens[tokenized.prompt_length :]) == original.output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"", r"tokenizer\.json is not a tokenizer: "),
        ("tokenizer.json", b"[]", r"tokenizer\.json is not a tokenizer: "),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json is damaged: it holds a list"),
        ("tokenizer_config.json", b"\xff", r"config\.json is damaged: it is not UTF-8 at byte 0"),
        ("tokenizer_config.json", b'{"a": 1', r"config\.json is damaged: it is not JSON at line 1"),
        ("special_tokens_map.json", b"7", r"map\.json is damaged: it holds the number 7"),
        ("chat_template.jinja", b"\xc0\x80", r"chat_template\.jinja is not UTF-8 at byte 0"),
        ("tokenizer_config.json", b'{"eos_token": "\\ud800"}', r"The end token '.ud800' is not in"),
        ("tokenizer_config.json", b'{"eos_token": "</no>"}', r"The end token '</no>' is not in"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_odd_entries_among_the_chat_templates_do_no_harm(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [3, {"name": ["x"]}, {"name": "default", "template": "{{ 'a' }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).chat_template == "{{ 'a' }}"


# ---- the length policy, with several answers in a sequence


@st.composite
def _spans(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """Trained parts, ascending and perhaps empty or adjacent, and the sequence's length."""
    spans: list[tuple[int, int]] = []
    end = 0
    for _ in range(draw(st.integers(0, 5))):
        start = end + draw(st.integers(0, 6))
        end = start + draw(st.integers(0, 6))
        spans.append((start, end))
    return spans, max(1, end + draw(st.integers(0, 6)))


@given(sequence=_spans(), limit=st.integers(1, 60), truncate=st.booleans())
def test_a_cut_keeps_all_whole_answers_that_fit_and_else_cuts_the_first(
    sequence: tuple[list[tuple[int, int]], int], limit: int, truncate: bool
) -> None:
    spans, length = sequence
    array = np.array(spans, dtype=np.int64).reshape(-1, 2)
    end, event = length_policy(Source("a", 1), array, length, limit, truncate)
    answers = [(start, stop) for start, stop in spans if start < stop]
    left = spans_before(array, end)
    trained = int((left[:, 1] - left[:, 0]).sum())
    # Token by token, as one would do it by hand.
    if not answers:
        assert (end, event and event.kind) == (0, "nothing to train on")
    elif length <= limit:
        assert (end, event) == (length, None)
    elif answers[0][0] >= limit or not truncate:
        assert (end, event and event.kind) == (0, "too long")
    else:
        whole = [stop for _, stop in answers if stop <= limit]
        assert event is not None and event.kind == "truncated" and event.after == end <= limit
        if len(answers) > 1 and whole:
            assert end == whole[-1]
            assert trained == sum(stop - start for start, stop in answers if stop <= limit)
        else:
            assert end == limit
            start, stop = answers[0]
            assert trained == min(stop, limit) - start
    assert (trained > 0) == (end > 0)
    if event:
        assert event.before == length and (event.after > 0) == (event.kind == "truncated")


def test_a_cut_says_how_many_answers_are_left() -> None:
    spans = np.array([[2, 4], [6, 8], [10, 14]])
    _, event = length_policy(Source("a.json", 3), spans, 14, 12, truncate=True)
    said = "Truncated a.json, record 3: 14 -> 8 tokens, the first 2 of 3 trained parts"
    assert str(event) == said
    _, event = length_policy(Source("a.json", 3), np.zeros((0, 2)), 5, 12, truncate=True)
    assert str(event) == "Skipped a.json, record 3: nothing of it is trained on"
