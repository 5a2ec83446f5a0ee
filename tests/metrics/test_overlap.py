"""Token F1, ROUGE-L and BLEU in English and Chinese, against the libraries and by hand."""

import random
import subprocess
import sys
import time
from typing import Any

import pytest
import rouge_chinese
import sacrebleu

from tinkersmith.metrics.overlap import (
    bleu_tokenizer,
    corpus_bleu,
    longest_common_subsequence,
    rouge_l,
    sentence_bleu,
    token_f1,
)
from tinkersmith.metrics.words import counted_words, jieba_words, writing_of


@pytest.mark.parametrize(
    ("expected", "produced", "f1"),
    [
        ("The cat sat.", "a cat SAT", 1.0),
        ("the cat sat down", "the dog sat down", 2 / 3),
        ("今天天气很好", "今天天气不错", 2 / 3),  # 4 of 6 characters in both
        ("今天天气很好。", "今天 天气 很好", 1.0),
        ("Paris", "London", 0.0),
        ("3.5", "35", 0.0),
        ("-1", "1", 0.0),
        ("x > 3", "x < 3", 2 / 3),
        ("", "", 1.0),
        ("", "word", 0.0),
        ("!", "?", 0.0),
        ("ＡＢＣ１２", "abc12", 1.0),
        ("a b b", "b b b", 4 / 5),  # the article "a" is left out, and b counts twice
    ],
)
def test_token_f1_by_hand(expected: str, produced: str, f1: float):
    assert token_f1(expected, produced) == pytest.approx(f1)


def test_a_chinese_character_is_a_word_for_f1_and_jieba_makes_the_words_for_rouge():
    assert counted_words("我来到北京 GPU") == ["我", "来", "到", "北", "京", "gpu"]
    assert jieba_words("我来到北京清华大学，x=-1") == [
        "我",
        "来到",
        "北京",
        "清华大学",
        "x",
        "=",
        "-1",
    ]
    assert jieba_words("价格 -1 元") == ["价格", "-1", "元"]


@pytest.mark.parametrize("size", [5, 30, 260])
def test_rouge_l_is_what_the_library_computes_below_and_above_its_table(size: int):
    generator = random.Random(size)
    library = rouge_chinese.Rouge(metrics=["rouge-l"])
    for _ in range(3):
        first, second = (
            " ".join(generator.choice("abcdefgh") * 2 for _ in range(size)) for _ in range(2)
        )
        scores: Any = library.get_scores(second, first)
        wanted = scores[0]["rouge-l"]["f"]
        assert rouge_l(first, second) == pytest.approx(wanted, abs=1e-6)


def test_equal_texts_have_a_rouge_l_of_exactly_one():
    assert rouge_l("今天天气很好。", "今天天气很好。") == 1.0
    assert rouge_l("", "") == 1.0 and rouge_l("", "a") == 0.0


def test_the_longest_common_subsequence_by_hand():
    assert longest_common_subsequence(list("abcd"), list("bxd")) == 2
    assert longest_common_subsequence([], ["a"]) == 0
    assert longest_common_subsequence(["a"] * 5, ["a"] * 3) == 3


def test_bleu_is_that_of_sacrebleu_with_the_tokenizer_of_the_script():
    pairs = [
        ("今天天气非常好，我们去公园", "今天天气很好，我们去公园"),
        ("他喜欢读书", "他喜欢看书"),
    ]
    tokenizer = bleu_tokenizer([wanted for wanted, _ in pairs])
    assert tokenizer == "zh"
    score, signature = corpus_bleu(pairs, tokenizer)
    library = sacrebleu.corpus_bleu(
        [given for _, given in pairs], [[wanted for wanted, _ in pairs]], tokenize="zh"
    )
    assert score == pytest.approx(library.score) and 0 < score < 100
    assert "tok:zh" in signature and "version:" in signature
    assert sentence_bleu("他喜欢读书", "他喜欢读书", "zh") == 1.0


@pytest.mark.parametrize(
    ("texts", "script", "tokenizer"),
    [
        (["the cat", "猫"], "other", "13a"),
        (["猫", "狗", "dog"], "zh", "zh"),
        (["用 PyTorch 训练模型 Qwen"], "zh", "zh"),
        (["これはテストです"], "ja", "char"),
        (["안녕하세요"], "ko", "char"),
        (["42", ""], "other", "13a"),
        ([], "other", "13a"),
    ],
)
def test_the_script_of_the_references_chooses_the_tokenizer(texts, script, tokenizer):
    assert (writing_of(texts), bleu_tokenizer(texts)) == (script, tokenizer)


def test_jieba_neither_prints_nor_leaves_a_file(tmp_path):
    code = (
        "from tinkersmith.metrics.overlap import rouge_l\n"
        "print(rouge_l('我来到北京清华大学', '我来到北京'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert done.stdout == f"{6 / 7}\n" and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_one_sentence_that_says_how_to_install_it(monkeypatch):
    from tinkersmith.errors import UserError
    from tinkersmith.metrics.choose import metrics_for

    for module, metric in (
        ("sacrebleu", "bleu"),
        ("rouge_chinese", "rouge_l"),
        ("jieba", "rouge_l"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(UserError) as caught:
                metrics_for([metric], ["a"])
        assert "pip install 'tinkersmith[metrics]'" in str(caught.value)


@pytest.mark.parametrize(
    "answer", ["北京" * 1000, "a " * 1000, "\u0301" * 2000, "🙂" * 2000, "\0" * 2000]
)
def test_no_answer_takes_long(answer: str):
    rouge_l("北京市", "北京市")  # the dictionary is loaded once
    begun = time.process_time()
    token_f1(answer, answer[::-1])
    rouge_l(answer, answer[::-1])
    sentence_bleu(answer, answer[::-1], "zh")
    assert time.process_time() - begun < 2
